# SPDX-License-Identifier: BSD-2-Clause
"""One SQLite file of all runs. Many may write at once; a run is in it whole or not at all."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, create_engine, delete, event, func, insert, select, update
from sqlalchemy import case as sql_case
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.history import damage, schema
from harness.history.rows import Row, Run, dump, parsed, row_of, run_of, setup_of, values_of
from harness.history.schema import INPUTS, RESULTS, RUNS, SETUP
from harness.results.model import CaseResult, RunResult

log = logging.getLogger("fxh.history")

FILE = "history.sqlite"
# Another writer holds the lock for milliseconds; this long (s) only when the disk is in trouble.
_PATIENCE = 30


class HistoryDamaged(InfrastructureError):
    """The file was damaged and is set aside; there is a new one, with what could be read."""


class History:
    """Raises UsageError for a file of a newer schema, InfrastructureError when the disk will not have it.

    A file that is damaged is set aside with a warning, and what can still be read of it is taken over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = self._open()
        try:
            self._prepare()
        except DatabaseError as exc:
            if not damage.is_damage(_said(exc)):
                raise self._trouble(_said(exc)) from exc
            self._set_aside(_said(exc))

    def _open(self) -> Engine:
        engine = create_engine(f"sqlite:///{self.path}", connect_args={"timeout": _PATIENCE}, poolclass=NullPool)
        event.listen(engine, "connect", _configure)
        return engine

    def _prepare(self) -> None:
        with self._engine.connect() as connection:
            schema.migrate(connection)

    # -- writing ------------------------------------------------------------------------------------------------------

    def record(self, run: RunResult) -> None:
        """Take a run in, whole or not at all; one that is there already is replaced and keeps its place."""
        with self._guarded() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            row: dict[str, Any] = {
                "run": run.run,
                "started": run.started,
                "ended": run.ended,
                "command": run.command,
                "branch": run.branch,
                "exit_code": run.exit_code,
                "inputs": dump(run.inputs),
                "options": dump(run.options),
            }
            number = connection.execute(select(RUNS.c.id).where(RUNS.c.run == run.run)).scalar()
            if number is None:
                number = connection.execute(insert(RUNS).values(row)).inserted_primary_key[0]  # type: ignore[index]
            else:
                connection.execute(update(RUNS).where(RUNS.c.id == number).values(row))
                connection.execute(delete(RESULTS).where(RESULTS.c.run_id == number))
            for case in run.cases:
                for old in case.formerly:
                    self._rename(connection, old, case)
            # A case that ran twice in a run counts once, as it ended last.
            rows = {(case.key, case.cell): case for case in run.cases}
            if rows:
                ids = self._inputs(connection, {dump(run.inputs | case.inputs) for case in rows.values()})
                values = [values_of(number, case, ids[dump(run.inputs | case.inputs)]) for case in rows.values()]
                connection.execute(insert(RESULTS), values)
            self._record_setup(connection, number, run)
            connection.commit()

    def _record_setup(self, connection: Connection, number: int, run: RunResult) -> None:
        found = setup_of(run.setup)
        if found or _has(connection, SETUP):
            connection.execute(CreateTable(SETUP, if_not_exists=True))
            connection.execute(delete(SETUP).where(SETUP.c.run_id == number))
        if found:
            connection.execute(
                insert(SETUP), [{"run_id": number, "what": what, "seconds": seconds} for what, seconds in found.items()]
            )

    def _inputs(self, connection: Connection, wanted: set[str]) -> dict[str, int]:
        ids: dict[str, int] = {}
        for data in sorted(wanted):
            found = connection.execute(select(INPUTS.c.id).where(INPUTS.c.data == data)).scalar()
            ids[data] = found or connection.execute(insert(INPUTS).values(data=data)).inserted_primary_key[0]  # type: ignore[index]
        return ids

    def _rename(self, connection: Connection, old: str, case: CaseResult) -> None:
        taken = select(RESULTS.c.run_id).where(RESULTS.c.case == case.key, RESULTS.c.cell == case.cell)
        wanted = (RESULTS.c.case == old) & (RESULTS.c.cell == case.cell) & RESULTS.c.run_id.not_in(taken)
        connection.execute(update(RESULTS).where(wanted).values(case=case.key, suite=case.suite))

    # -- reading ------------------------------------------------------------------------------------------------------

    def runs(self, before: int | None = None) -> tuple[Run, ...]:
        """All runs, or those recorded before number ``before``; oldest first."""
        query = select(RUNS).order_by(RUNS.c.id)
        if before is not None:
            query = query.where(RUNS.c.id < before)
        with self._guarded() as connection:
            return tuple(run_of(row) for row in connection.execute(query))

    def run(self, name: str) -> Run | None:
        with self._guarded() as connection:
            row = connection.execute(select(RUNS).where(RUNS.c.run == name)).first()
            return run_of(row) if row else None

    def number(self, name: str) -> int:
        """The number of a run, or one more than there are for a run that is not recorded."""
        found = self.run(name)
        if found:
            return found.number
        with self._guarded() as connection:
            return int(connection.execute(select(func.coalesce(func.max(RUNS.c.id), 0))).scalar_one()) + 1

    def results(
        self, *, before: int | None = None, last: int = 0, run: str = "", case: str = "", measured: int = 0
    ) -> tuple[Row, ...]:
        """Results, oldest run first: of the ``last`` runs recorded before ``before``, of one ``run``, of one ``case``.

        ``measured``: metrics of the last so many of these runs only, since a long history's weigh more than all the rest.
        """
        r = RESULTS.c
        recent = _latest(measured, before).scalar_subquery()
        metrics = sql_case((r.run_id.in_(recent), r.metrics), else_="{}") if measured else r.metrics
        columns = (
            r.run_id, RUNS.c.run, RUNS.c.branch, r.suite, r.case, r.cell, r.outcome, r.identity, r.phase, r.seconds, r.inputs_id,
            metrics, r.reason, r.directory,
        )  # fmt: skip
        query = select(*columns).join(RUNS, RUNS.c.id == r.run_id).order_by(r.run_id)
        if before is not None:
            query = query.where(r.run_id < before)
        if last:
            query = query.where(r.run_id.in_(_latest(last, before).scalar_subquery()))
        if run:
            query = query.where(RUNS.c.run == run)
        if case:
            query = query.where(r.case == case)
        with self._guarded() as connection:
            inputs = {row.id: parsed(row.data) for row in connection.execute(select(INPUTS))}
            # A hundred thousand rows: the driver's own tuples cost half of SQLAlchemy's.
            sql = str(query.compile(self._engine, compile_kwargs={"literal_binds": True}))
            found = connection.connection.cursor()
            found.execute(sql)
            return tuple(row_of(row, inputs) for row in found.fetchall())

    def setups(self, before: int, last: int) -> tuple[dict[str, float], ...]:
        """How long the setup took (s, by what was set up) of the ``last`` runs recorded before ``before``; oldest first."""
        found: dict[int, dict[str, float]] = {}
        with self._guarded() as connection:
            if not _has(connection, SETUP):
                return ()
            wanted = SETUP.c.run_id.in_(_latest(last, before).scalar_subquery())
            for row in connection.execute(select(SETUP).where(wanted).order_by(SETUP.c.run_id)):
                found.setdefault(row.run_id, {})[row.what] = row.seconds
        return tuple(found.values())

    def cases(self) -> tuple[str, ...]:
        """The keys of all cases that were ever seen."""
        with self._guarded() as connection:
            return tuple(connection.execute(select(RESULTS.c.case).distinct().order_by(RESULTS.c.case)).scalars())

    # -- when something is wrong --------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (DatabaseError, sqlite3.DatabaseError) as exc:
            said = _said(exc)
            if not damage.is_damage(said):
                raise self._trouble(said) from exc
            aside = self._set_aside(said)
            raise HistoryDamaged(
                f"{self.path} was damaged ({said}); it is set aside as {aside.name}, and what could be read is kept",
                hint="run the command again",
            ) from exc

    def _set_aside(self, said: str) -> Path:
        self._engine.dispose()
        aside = damage.set_aside(self.path)
        self._engine = self._open()
        self._prepare()
        rescued = 0
        for run in damage.salvage(aside):
            self.record(run)
            rescued += 1
        log.warning("%s is damaged (%s): set aside as %s; %d runs were read out of it", self.path, said, aside.name, rescued)
        return aside

    def _trouble(self, said: str) -> InfrastructureError:
        hint = "make room on that disk" if "full" in said else "see that the file and its directory can be written"
        return InfrastructureError(f"{self.path}: {said}", hint="another process holds it; try again" if "locked" in said else hint)


def _has(connection: Connection, table: Table) -> bool:
    found = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,))
    return found.first() is not None


def _latest(count: int, before: int | None) -> Select[tuple[int]]:
    """The numbers of the latest ``count`` runs, of those recorded before number ``before``."""
    numbers = select(RUNS.c.id).order_by(RUNS.c.id.desc()).limit(count)
    return numbers if before is None else numbers.where(RUNS.c.id < before)


def _said(exc: DatabaseError | sqlite3.DatabaseError) -> str:
    """The database's own words, whether SQLAlchemy passed them on or the driver."""
    return str(exc.orig if isinstance(exc, DatabaseError) else exc)


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are ours: sqlite3's own would begin them too late for "BEGIN IMMEDIATE".
    connection.isolation_level = None
    _write_ahead(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Of several that find a new file at once SQLite lets one make it a WAL, and does not let the others wait: it is busy."""
    deadline = Deadline(_PATIENCE)
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or deadline.expired:
                raise
        time.sleep(0.02)
