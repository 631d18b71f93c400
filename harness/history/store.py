# SPDX-License-Identifier: BSD-2-Clause
"""The history file: all runs in one SQLite file. Several processes may write at once; each run is added atomically."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
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
from harness.history.rows import Row, RowKey, Run, dump, known_issue_values, parse_inputs, result_values, row_of, run_of, setup_of
from harness.history.schema import COMPLAINTS, DIGESTS, INPUTS, KNOWN_ISSUES, RESULTS, RUNS, SETUP
from harness.results.model import CaseResult, KnownIssueMatch, RunResult

log = logging.getLogger("fxh.history")

FILE = "history.sqlite"
# How long to wait for the lock (s). A writer holds it for milliseconds, unless its disk is in trouble.
_LOCK_TIMEOUT = 30


class HistoryDamaged(InfrastructureError):
    """The file was damaged and renamed. A new file has the rows that were readable."""


class History:
    """The history in file ``path``, which is created if it is missing.

    Raises UsageError for a file of a newer schema, InfrastructureError if the file cannot be read or written. Renames a damaged
    file with a warning, and copies its readable rows into a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = self._open()
        try:
            self._prepare()
        except DatabaseError as exc:
            if not damage.is_damage(_message(exc)):
                raise self._error(_message(exc)) from exc
            self._set_aside(_message(exc))

    def _open(self) -> Engine:
        engine = create_engine(f"sqlite:///{self.path}", connect_args={"timeout": _LOCK_TIMEOUT}, poolclass=NullPool)
        event.listen(engine, "connect", _configure)
        return engine

    def _prepare(self) -> None:
        with self._engine.connect() as connection:
            schema.migrate(connection)

    # -- writing ------------------------------------------------------------------------------------------------------

    def record(self, run: RunResult) -> None:
        """Add a run atomically. A run of the same name is replaced and keeps its number. Cases that were paused are left out."""
        run = replace(run, cases=tuple(case for case in run.cases if not case.paused))
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
            # Of a case that ran twice in a run, the last result counts.
            rows = {(case.key, case.cell): case for case in run.cases}
            if rows:
                ids = self._inputs(connection, {dump(run.inputs | case.inputs) for case in rows.values()})
                values = [result_values(number, case, ids[dump(run.inputs | case.inputs)]) for case in rows.values()]
                connection.execute(insert(RESULTS), values)
            issues = [known_issue_values(number, case) for case in rows.values()]
            _replace(connection, KNOWN_ISSUES, number, [values for values in issues if values])
            searched = [case for case in run.cases if case.complaints is not None]
            # Without known ones: when the entry of one is removed, the complaint is news again.
            seen = {
                (case.cell, identity)
                for case in searched
                for identity in ("", *(one.identity for one in case.complaints or () if one.known_issue is None))
            }
            complaints = [{"run_id": number, "cell": cell, "identity": identity} for cell, identity in sorted(seen)]
            _replace(connection, COMPLAINTS, number, complaints)
            digest = hashlib.sha256(repr([row, sorted(map(repr, rows.values()))]).encode("utf-8", "surrogatepass")).hexdigest()
            _replace(connection, DIGESTS, number, [{"run_id": number, "digest": digest}])
            steps = setup_of(run.setup).items()
            _replace(connection, SETUP, number, [{"run_id": number, "what": what, "seconds": seconds} for what, seconds in steps])
            connection.commit()

    def _inputs(self, connection: Connection, wanted: set[str]) -> dict[str, int]:
        ids: dict[str, int] = {}
        for data in sorted(wanted):
            found = connection.execute(select(INPUTS.c.id).where(INPUTS.c.data == data)).scalar()
            ids[data] = found or connection.execute(insert(INPUTS).values(data=data)).inserted_primary_key[0]  # type: ignore[index]
        return ids

    def _rename(self, connection: Connection, old: str, case: CaseResult) -> None:
        taken = select(RESULTS.c.run_id).where(RESULTS.c.case == case.key, RESULTS.c.cell == case.cell)
        renamed = (RESULTS.c.case == old) & (RESULTS.c.cell == case.cell) & RESULTS.c.run_id.not_in(taken)
        runs = select(RESULTS.c.run_id).where(renamed)
        if _has(connection, DIGESTS):
            connection.execute(delete(DIGESTS).where(DIGESTS.c.run_id.in_(runs)))
        if _has(connection, KNOWN_ISSUES):
            issues = KNOWN_ISSUES.c
            of_renamed = (issues.case == old) & (issues.cell == case.cell) & issues.run_id.in_(runs)
            connection.execute(update(KNOWN_ISSUES).where(of_renamed).values(case=case.key))
        connection.execute(update(RESULTS).where(renamed).values(case=case.key, suite=case.suite))

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
        """The number of a run. For a run that is not recorded: the number that it would get."""
        found = self.run(name)
        if found:
            return found.number
        with self._guarded() as connection:
            return int(connection.execute(select(func.coalesce(func.max(RUNS.c.id), 0))).scalar_one()) + 1

    def results(
        self, *, before: int | None = None, last: int = 0, run: str = "", case: str = "", measured: int = 0
    ) -> tuple[Row, ...]:
        """Results, oldest run first.

        ``before``: only runs with a lower number. ``last``: only so many of the latest runs. ``run``, ``case``: only these.
        ``measured``: metrics of only so many of the latest runs; in a long history they are most of the data. 0 means all.
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
            inputs = {row.id: parse_inputs(row.data) for row in connection.execute(select(INPUTS))}
            issues = self._known_issues(connection)
            # For 100 000 rows the driver's tuples take half the time of SQLAlchemy's rows.
            sql = str(query.compile(self._engine, compile_kwargs={"literal_binds": True}))
            found = connection.connection.cursor()
            found.execute(sql)
            return tuple(row_of(row, inputs, issues) for row in found.fetchall())

    def _known_issues(self, connection: Connection) -> dict[RowKey, KnownIssueMatch]:
        if not _has(connection, KNOWN_ISSUES):
            return {}
        rows = connection.execute(select(KNOWN_ISSUES))
        return {(row.run_id, row.case, row.cell): KnownIssueMatch(row.bug, row.why, row.gone) for row in rows}

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection for queries. Errors of the database become those of this class."""
        return self._guarded()

    def digests(self) -> dict[int, str]:
        """The digests of the results by run. A run of an older harness, or with a case that was renamed, has none."""
        with self._guarded() as connection:
            if not _has(connection, DIGESTS):
                return {}
            return {row.run_id: row.digest for row in connection.execute(select(DIGESTS))}

    def known_issues(self) -> dict[RowKey, KnownIssueMatch]:
        """The known issues of all results that have one."""
        with self._guarded() as connection:
            return self._known_issues(connection)

    def setups(self, before: int, last: int) -> tuple[dict[str, float], ...]:
        """Seconds of each setup step of the ``last`` runs before number ``before``, oldest run first."""
        found: dict[int, dict[str, float]] = {}
        with self._guarded() as connection:
            if not _has(connection, SETUP):
                return ()
            wanted = SETUP.c.run_id.in_(_latest(last, before).scalar_subquery())
            for row in connection.execute(select(SETUP).where(wanted).order_by(SETUP.c.run_id)):
                found.setdefault(row.run_id, {})[row.what] = row.seconds
        return tuple(found.values())

    def complaints(self, before: int, last: int) -> dict[str, frozenset[str]]:
        """The identities of complaints in each cell, of the ``last`` runs before number ``before``.

        A cell in which no run looked for complaints is left out.
        """
        found: dict[str, set[str]] = {}
        with self._guarded() as connection:
            if not _has(connection, COMPLAINTS):
                return {}
            wanted = COMPLAINTS.c.run_id.in_(_latest(last, before).scalar_subquery())
            for row in connection.execute(select(COMPLAINTS).where(wanted)):
                found.setdefault(row.cell, set()).add(row.identity)
        return {cell: frozenset(identities - {""}) for cell, identities in found.items()}

    def cases(self) -> tuple[str, ...]:
        """The keys of all recorded cases."""
        with self._guarded() as connection:
            return tuple(connection.execute(select(RESULTS.c.case).distinct().order_by(RESULTS.c.case)).scalars())

    # -- errors -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (DatabaseError, sqlite3.DatabaseError) as exc:
            message = _message(exc)
            if not damage.is_damage(message):
                raise self._error(message) from exc
            aside = self._set_aside(message)
            raise HistoryDamaged(
                f"{self.path} was damaged ({message}); it is set aside as {aside.name}, and its readable runs are kept",
                hint="run the command again",
            ) from exc

    def _set_aside(self, message: str) -> Path:
        self._engine.dispose()
        aside = damage.set_aside(self.path)
        self._engine = self._open()
        self._prepare()
        rescued = 0
        for run in damage.salvage(aside):
            self.record(run)
            rescued += 1
        log.warning("%s is damaged (%s): set aside as %s; %d runs were copied from it", self.path, message, aside.name, rescued)
        return aside

    def _error(self, message: str) -> InfrastructureError:
        hint = "check that the file and its directory are writable"
        if "full" in message:
            hint = "free space on that disk"
        elif "locked" in message:
            hint = "another process holds the lock; run the command again"
        return InfrastructureError(f"{self.path}: {message}", hint=hint)


def _replace(connection: Connection, table: Table, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the rows of run ``number`` in a table that is created at the first write."""
    if rows or _has(connection, table):
        connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(delete(table).where(table.c.run_id == number))
    if rows:
        connection.execute(insert(table), rows)


def _has(connection: Connection, table: Table) -> bool:
    found = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,))
    return found.first() is not None


def _latest(count: int, before: int | None) -> Select[tuple[int]]:
    """The numbers of the latest ``count`` runs before number ``before``."""
    numbers = select(RUNS.c.id).order_by(RUNS.c.id.desc()).limit(count)
    return numbers if before is None else numbers.where(RUNS.c.id < before)


def _message(exc: DatabaseError | sqlite3.DatabaseError) -> str:
    """SQLite's message, from an exception of SQLAlchemy or of the driver."""
    return str(exc.orig if isinstance(exc, DatabaseError) else exc)


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
