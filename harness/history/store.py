"""One SQLite file of all runs. Many may write at once; a run is in it whole or not at all."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, delete, event, func, insert, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from harness.errors import InfrastructureError
from harness.history import damage, schema
from harness.history.schema import INPUTS, RESULTS, RUNS
from harness.results.model import FAILED, GONE_WORDS, KNOWN, KNOWN_WORDS, PASSED, CaseResult, RunResult
from harness.verdicts.values import Inputs, Observation

log = logging.getLogger("fxh.history")

FILE = "history.sqlite"
# Another writer holds the lock for milliseconds; this long (s) only when the disk is in trouble.
_PATIENCE = 30
_REASON = 600


@dataclass(frozen=True)
class Run:
    """A recorded run. ``number`` orders runs by when they were recorded."""

    number: int
    run: str
    started: str
    ended: str
    command: str
    branch: str
    exit_code: int | None
    inputs: dict[str, str]
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded result: what a verdict needs, and what reports show beside it."""

    seen: Observation
    number: int
    suite: str
    seconds: float
    raw_metrics: str
    reason: str
    directory: str

    @property
    def metrics(self) -> dict[str, float]:
        """Stages of the first boot as ``stage NAME``, and the case's own."""
        found: dict[str, float] = json.loads(self.raw_metrics)
        return found


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
                "inputs": _dump(run.inputs),
                "options": _dump(run.options),
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
                ids = self._inputs(connection, {_dump(run.inputs | case.inputs) for case in rows.values()})
                values = [_values(number, case, ids[_dump(run.inputs | case.inputs)]) for case in rows.values()]
                connection.execute(insert(RESULTS), values)
            connection.commit()

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
            return tuple(_run(row) for row in connection.execute(query))

    def run(self, name: str) -> Run | None:
        with self._guarded() as connection:
            row = connection.execute(select(RUNS).where(RUNS.c.run == name)).first()
            return _run(row) if row else None

    def number(self, name: str) -> int:
        """The number of a run, or one more than there are for a run that is not recorded."""
        found = self.run(name)
        if found:
            return found.number
        with self._guarded() as connection:
            return int(connection.execute(select(func.coalesce(func.max(RUNS.c.id), 0))).scalar_one()) + 1

    def results(self, *, before: int | None = None, last: int = 0, run: str = "", case: str = "") -> tuple[Row, ...]:
        """Results, oldest run first: of the ``last`` runs recorded before ``before``, of one ``run``, of one ``case``."""
        r = RESULTS.c
        columns = (
            r.run_id, RUNS.c.run, RUNS.c.branch, r.suite, r.case, r.cell, r.outcome, r.identity, r.phase, r.seconds, r.inputs_id,
            r.metrics, r.reason, r.directory,
        )  # fmt: skip
        query = select(*columns).join(RUNS, RUNS.c.id == r.run_id).order_by(r.run_id)
        if before is not None:
            query = query.where(r.run_id < before)
        if last:
            numbers = select(RUNS.c.id).order_by(RUNS.c.id.desc()).limit(last)
            if before is not None:
                numbers = numbers.where(RUNS.c.id < before)
            query = query.where(r.run_id.in_(numbers.scalar_subquery()))
        if run:
            query = query.where(RUNS.c.run == run)
        if case:
            query = query.where(r.case == case)
        with self._guarded() as connection:
            inputs = {row.id: _parsed(row.data) for row in connection.execute(select(INPUTS))}
            # A hundred thousand rows: the driver's own tuples cost half of SQLAlchemy's.
            sql = str(query.compile(self._engine, compile_kwargs={"literal_binds": True}))
            found = connection.connection.cursor()
            found.execute(sql)
            return tuple(_row(row, inputs) for row in found.fetchall())

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
                mend="run the command again",
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
        mend = "make room on that disk" if "full" in said else "see that the file and its directory can be written"
        return InfrastructureError(f"{self.path}: {said}", mend="another process holds it; try again" if "locked" in said else mend)


def _said(exc: DatabaseError | sqlite3.DatabaseError) -> str:
    """The database's own words, whether SQLAlchemy passed them on or the driver."""
    return str(exc.orig if isinstance(exc, DatabaseError) else exc)


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are ours: sqlite3's own would begin them too late for "BEGIN IMMEDIATE".
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _values(number: int, case: CaseResult, inputs: int) -> dict[str, Any]:
    return {
        "run_id": number,
        "suite": case.suite,
        "case": case.key,
        "cell": case.cell,
        "outcome": case.outcome,
        "identity": case.identity,
        "phase": case.phase,
        "reason": case.reason[:_REASON],
        "seconds": case.seconds,
        "inputs_id": inputs,
        "metrics": json.dumps(metrics_of(case)),
        "directory": case.directory,
    }


def metrics_of(case: CaseResult) -> dict[str, float]:
    """A case's metrics, and the stages of its first boot as ``stage NAME`` (s)."""
    stages = {f"stage {stamp.name}": stamp.at for boot in case.boots[:1] for stamp in boot.stages}
    return stages | case.metrics


def observation(run: RunResult, case: CaseResult) -> Observation:
    """A result as verdicts see it."""
    inputs = _parsed(_dump(run.inputs | case.inputs))
    build = case.identity.startswith("build")
    outcome, issue = _known(case.outcome, case.reason)
    return Observation(run.run, case.key, case.cell, outcome, case.identity, inputs, case.phase, run.branch, build, issue)


def _known(outcome: str, reason: str) -> tuple[str, str]:
    """What happened, and the known issue that it was judged by (see harness.plugin.known)."""
    first = reason.partition("\n")[0]
    if outcome == KNOWN:
        return FAILED, first.removeprefix(KNOWN_WORDS)
    if outcome == FAILED and first.startswith(GONE_WORDS):
        return PASSED, first.removeprefix(GONE_WORDS)
    return outcome, ""


def _run(row: Any) -> Run:
    return Run(
        row.id, row.run, row.started, row.ended, row.command, row.branch, row.exit_code, json.loads(row.inputs), json.loads(row.options)
    )  # fmt: skip


def _row(row: Any, inputs: Mapping[int, Inputs]) -> Row:
    number, run, branch, suite, case, cell, outcome, identity, phase, seconds, inputs_id, metrics, reason, directory = row
    happened, issue = _known(outcome, reason)
    build = identity.startswith("build")
    seen = Observation(run, case, cell, happened, identity, inputs[inputs_id], phase, branch, build, issue)
    return Row(seen, number, suite, seconds, metrics, reason, directory)


def _dump(values: Mapping[str, str]) -> str:
    return json.dumps(dict(values), sort_keys=True)


@lru_cache(maxsize=4096)
def _parsed(data: str) -> Inputs:
    return Inputs(json.loads(data))
