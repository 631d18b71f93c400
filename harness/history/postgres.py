# SPDX-License-Identifier: BSD-2-Clause
"""The history on a server with PostgreSQL, for many controllers. psycopg is the driver.

The number of a run is a time: that of the server when the run was recorded (ms since 1970). A run that is delivered late gets the time
of its own end, so that it comes before the runs that were recorded meanwhile.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Select, Table, create_engine, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from harness.config.databaseurl import shown
from harness.errors import HarnessError, InfrastructureError, UsageError
from harness.history.database import Database, message_of
from harness.history.schema import BY_DATA, MIGRATIONS, RUNS, Migration
from harness.results.model import RunResult
from harness.safetext import plain

BY_DATA.dialect_options["postgresql"]["using"] = "hash"

# Seconds: to connect; to wait for another writer; for one statement, by the server's clock; for one transaction, by ours.
_CONNECT, _LOCK, _STATEMENT, _TRANSACTION = 10, 30, 60, 120
# Seconds until the server ends the session of a controller that lost its power or network: in a transaction, or with data on its way.
# Its lock must be free before the others give up, so this is below _LOCK.
_SILENT = 20
# The lock of all writers of a history, "fxh" in ASCII. PostgreSQL has such locks for each database.
_WRITERS = 0x667868
_SCHEMA = "fxh_schema"
EXTRA = "freebsd-xen-harness[postgresql]"
"""The requirement with which pip installs the driver."""

# Messages of the server, and who must act. The first match counts; texts for connections, which have no SQLSTATE.
_HINTS = (
    (("53100", "No space left"), "the administrator of the database must free space on the server's disk"),
    (("25006",), "the administrator must name the primary server in run.history, or end its read-only mode"),
    (("42501",), "the administrator must grant this user SELECT, INSERT, UPDATE and DELETE on the tables, and CREATE to set them up"),
    (("55P03",), "another writer held the lock; run the command again"),
    (("23505",), "another controller recorded the same run meanwhile; run the command again"),
    (("57014", "25P03"), "the administrator must check the load of the server; then run the command again"),
    (("42P01", "42703"), "the administrator must restore the tables of this database, or name an empty one in run.history"),
    (("password", "pg_hba.conf", "authentication", "role "), "correct the user and password: run.history, ~/.pgpass or PGPASSWORD"),
    (("does not exist",), "the administrator must create the database (createdb), or correct run.history"),
    (("too many", "53300", "remaining connection slots"), "the administrator must raise max_connections of the server"),
)  # fmt: skip
_UNREACHABLE = "the administrator must start the server; or correct run.history"


class Server(Database):
    """The database of ``url``. Raises UsageError without psycopg."""

    shared = True

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        try:
            import psycopg
        except ImportError as exc:
            raise UsageError(f"run.history = {self.name}: {exc}", hint=f"pip install '{EXTRA}'") from exc
        self.failures = (DBAPIError, psycopg.Error)
        try:
            address = make_url(url)
            self.engine = create_engine(address.update_query_dict(_options(address.query)), isolation_level="REPEATABLE READ")
        except (ArgumentError, ValueError) as exc:
            raise UsageError(f"run.history = {self.name}: not the URL of a database", hint="use only options of libpq") from exc

    def prepare(self, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        with self.reading() as connection:
            found = self._version(connection)
        if found < len(migrations):
            with self.writing() as connection:
                # Another controller may have migrated the database meanwhile.
                found = self._version(connection)
                for step in migrations[found:]:
                    step(connection)
                connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {_SCHEMA} (version integer NOT NULL)")
                connection.exec_driver_sql(f"DELETE FROM {_SCHEMA}")
                connection.exec_driver_sql(f"INSERT INTO {_SCHEMA} VALUES ({len(migrations)})")
        elif found > len(migrations):
            raise UsageError(
                f"{self.name}: the history has schema {found}; this harness reads up to {len(migrations)}",
                hint="the operator of this machine must install the harness version of the other controllers",
            )

    def _version(self, connection: Connection) -> int:
        """The schema of the tables, 0 without any. Raises UsageError for tables that are not ours."""
        tables = select(func.to_regclass(_SCHEMA), func.to_regclass(RUNS.name))
        ours, runs = connection.execute(tables).one()
        if ours is not None:
            version = connection.exec_driver_sql(f"SELECT max(version) FROM {_SCHEMA}").scalar_one()
            if version is not None:
                return int(version)
        elif runs is None:
            return 0
        raise UsageError(
            f"{self.name}: its tables have no schema version",
            hint="the administrator must create an empty database for the history",
        )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        # The deadline ends after the connection, so it also covers the end of the transaction.
        with _Deadline() as deadline, self.engine.connect() as connection:
            deadline.limit(connection)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        # A snapshot of the transaction would be older than the lock.
        engine = self.engine.execution_options(isolation_level="READ COMMITTED")
        with _Deadline() as deadline, engine.connect() as connection:
            deadline.limit(connection)
            connection.execute(select(func.pg_advisory_xact_lock(_WRITERS)))
            yield connection
            connection.commit()

    def has(self, connection: Connection, table: Table) -> bool:
        return True

    def number(self, connection: Connection, place: int | None) -> int | None:
        clock = func.floor(func.extract("epoch", func.clock_timestamp()) * 1000)
        newest, now = connection.execute(select(func.coalesce(select(func.max(RUNS.c.id)).scalar_subquery(), 0), clock)).one()
        last = max(int(newest) + 1, int(now))
        wanted = last if place is None else min(place, last)
        for taken in connection.execute(select(RUNS.c.id).where(RUNS.c.id >= wanted).order_by(RUNS.c.id)).scalars():
            if taken != wanted:
                break
            wanted += 1
        return wanted

    def rows(self, connection: Connection, query: Select[Any]) -> Sequence[Any]:
        compiled = query.compile(self.engine)
        found = connection.connection.cursor()
        found.execute(str(compiled), compiled.params)
        return list(found.fetchall())

    def explain(self, exc: Exception, record: Callable[[RunResult], object]) -> HarnessError:
        state = getattr(getattr(exc, "orig", exc), "sqlstate", None) or ""
        message = plain(message_of(exc).strip().splitlines()[0] if message_of(exc).strip() else type(exc).__name__)
        hint = next((hint for signs, hint in _HINTS if state in signs or any(sign in message for sign in signs)), _UNREACHABLE)
        return InfrastructureError(f"{self.name}: {message}", hint=hint)


def _options(given: Mapping[str, Any]) -> dict[str, str]:
    """Options of libpq with our time limits, unless ``given`` has others. A controller that stops must not keep the lock."""
    ours = {"connect_timeout": _CONNECT, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
    limits = {"statement": _STATEMENT, "lock": _LOCK, "idle_in_transaction_session": _SILENT, "tcp_user": _SILENT}
    words = [f"-c {name}_timeout={seconds}s" for name, seconds in limits.items()]
    words += ["-c tcp_keepalives_idle=10", "-c tcp_keepalives_interval=3", "-c tcp_keepalives_count=3"]
    return {name: str(value) for name, value in ours.items() if name not in given} | {
        "options": " ".join([*words, str(given.get("options", ""))]).strip()
    }


class _Deadline:
    """Closes a connection after ``_TRANSACTION`` seconds, because a hung server does not enforce its own limits."""

    def __init__(self) -> None:
        self._driver: Any = None
        self._timer = threading.Timer(_TRANSACTION, self._cut)
        self._timer.daemon = True

    def limit(self, connection: Connection) -> None:
        self._driver = connection.connection.driver_connection

    def _cut(self) -> None:
        # The connection may be closed, or not open yet (which has a separate limit).
        with suppress(Exception), socket.socket(fileno=os.dup(self._driver.fileno())) as link:
            link.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
