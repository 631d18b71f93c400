# SPDX-License-Identifier: BSD-2-Clause
"""The history in one file of SQLite. Several processes of this machine may write at once."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError, UsageError
from harness.history import damage
from harness.history.database import Database, message_of
from harness.history.schema import MIGRATIONS, Migration
from harness.results.model import RunResult

log = logging.getLogger("fxh.history")

# How long to wait for the lock (s). A writer holds it for milliseconds, unless its disk is in trouble.
_LOCK_TIMEOUT = 30


class HistoryDamaged(InfrastructureError):
    """The file was damaged and renamed. A new file has the rows that were readable."""


class File(Database):
    """The file ``path``, which is created if it is missing. A damaged one is renamed, and its readable rows are copied."""

    shared = False
    failures = (DatabaseError, sqlite3.DatabaseError)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.engine = self._open()

    def _open(self) -> Engine:
        engine = create_engine(f"sqlite:///{self.path}", connect_args={"timeout": _LOCK_TIMEOUT}, poolclass=NullPool)
        event.listen(engine, "connect", _configure)
        return engine

    def prepare(self) -> None:
        with self.engine.connect() as connection:
            migrate(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def has(self, connection: Connection, table: Table) -> bool:
        found = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,))
        return found.first() is not None

    def number(self, connection: Connection, place: int | None) -> int | None:
        return None

    def rows(self, connection: Connection, query: Select[Any]) -> Sequence[Any]:
        found = connection.connection.cursor()
        found.execute(str(query.compile(self.engine, compile_kwargs={"literal_binds": True})))
        return found.fetchall()

    def explain(self, exc: Exception, record: Callable[[RunResult], object]) -> HarnessError:
        message = message_of(exc)
        if damage.is_damage(message):
            aside = self._set_aside(message, record)
            return HistoryDamaged(
                f"{self.path} was damaged ({message}); it is set aside as {aside.name}, and its readable runs are kept",
                hint="run the command again",
            )
        hint = "check that the file and its directory are writable"
        if "full" in message:
            hint = "free space on that disk"
        elif "locked" in message:
            hint = "another process holds the lock; run the command again"
        return InfrastructureError(f"{self.path}: {message}", hint=hint)

    def _set_aside(self, message: str, record: Callable[[RunResult], object]) -> Path:
        self.engine.dispose()
        aside = damage.set_aside(self.path)
        self.engine = self._open()
        self.prepare()
        rescued = 0
        for run in damage.salvage(aside):
            record(run)
            rescued += 1
        log.warning("%s is damaged (%s): set aside as %s; %d runs were copied from it", self.path, message, aside.name, rescued)
        return aside


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Migrate the file to the latest version, in one transaction. Raises UsageError for a file of a newer harness."""
    found = _version(connection)
    if found > len(migrations):
        raise UsageError(
            f"the history has schema {found}; this harness reads up to {len(migrations)}",
            hint="use the newer harness that wrote it, or choose another directory with --reports",
        )
    if found == len(migrations):
        return
    # Another process may have migrated the file meanwhile, so check again under the write lock.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    for step in migrations[_version(connection) :]:
        step(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {len(migrations)}")
    connection.commit()


def _version(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    # No implicit transactions of the sqlite3 module: it would begin them too late for "BEGIN IMMEDIATE".
    connection.isolation_level = None
    _enable_wal(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _enable_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode. If several processes open a new file at once, SQLite fails with "locked" without waiting, so retry."""
    deadline = Deadline(_LOCK_TIMEOUT)
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or deadline.expired:
                raise
        time.sleep(0.02)
