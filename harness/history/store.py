# SPDX-License-Identifier: BSD-2-Clause
"""The history: all runs in one database. Several processes may write at once; each run is added atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, func, insert, or_, select, update
from sqlalchemy import case as sql_case
from sqlalchemy.schema import CreateTable

from harness.history.database import Database
from harness.history.rows import (
    Row,
    RowKey,
    Run,
    clean,
    dump,
    known_issue_values,
    parse_inputs,
    result_values,
    row_of,
    run_of,
    run_values,
    setup_of,
)  # fmt: skip
from harness.history.schema import COMPLAINTS, DIGESTS, INPUTS, KNOWN_ISSUES, OF_RUNS, PARTS, RESULTS, RUNS, SETUP
from harness.history.sqlite import File, HistoryDamaged
from harness.results.model import CaseResult, KnownIssueMatch, RunResult

FILE = "history.sqlite"


def _server(url: str) -> Database:
    # Its modules take longer to import than a query of a file takes.
    from harness.history.postgres import Server

    return Server(url)


class History:
    """The history in the file ``where``, which is created if it is missing, or in the database of the URL ``where``.

    Raises UsageError for a database of another schema, InfrastructureError if it cannot be read or written. Renames a damaged
    file with a warning, and copies its readable rows into a new one.
    """

    def __init__(self, where: Path | str) -> None:
        self.database: Database = File(where) if isinstance(where, Path) else _server(where)
        try:
            self.database.prepare()
        except self.database.failures as exc:
            error = self.database.explain(exc, self.record)
            if not isinstance(error, HistoryDamaged):
                raise error from exc

    # -- writing ------------------------------------------------------------------------------------------------------

    def record(self, run: RunResult, place: int | None = None) -> int:
        """Add a run atomically, and return its number. Cases that were paused are left out.

        A run of the same name is replaced and keeps its number. A merged run also replaces its parts, and an earlier merged run with
        one of them. A part of a merged run is not added again; the number is that of the merged run. ``place``: the wanted number of a
        run that is delivered late, if the database orders runs by time.
        """
        run = replace(run, cases=tuple(case for case in run.cases if not case.paused))
        row = run_values(run)
        with self.writing() as connection:
            merged = None if run.parts else self._merged_with(connection, run.run)
            if merged is not None:
                return merged
            number = self._number(connection, run, row, place)
            for case in run.cases:
                for old in case.formerly:
                    self._rename(connection, old, case)
            # Of a case that ran twice in a run, the last result counts.
            rows = {(case.key, case.cell): case for case in run.cases}
            if rows:
                ids = input_ids(connection, {clean(dump(run.inputs | case.inputs)) for case in rows.values()})
                values = [result_values(number, case, ids[clean(dump(run.inputs | case.inputs))]) for case in rows.values()]
                connection.execute(insert(RESULTS), values)
            issues = [known_issue_values(number, case) for case in rows.values()]
            self._replace(connection, KNOWN_ISSUES, number, [values for values in issues if values])
            searched = [case for case in run.cases if case.complaints is not None]
            # Without known ones: when the entry of one is removed, the complaint is news again.
            seen = {
                (case.cell, clean(identity))
                for case in searched
                for identity in ("", *(one.identity for one in case.complaints or () if one.known_issue is None))
            }
            complaints = [{"run_id": number, "cell": cell, "identity": identity} for cell, identity in sorted(seen)]
            self._replace(connection, COMPLAINTS, number, complaints)
            digest = hashlib.sha256(repr([row, sorted(map(repr, rows.values()))]).encode("utf-8", "surrogatepass")).hexdigest()
            self._replace(connection, DIGESTS, number, [{"run_id": number, "digest": digest}])
            steps = setup_of(run.setup).items()
            self._replace(
                connection, SETUP, number, [{"run_id": number, "what": clean(what), "seconds": seconds} for what, seconds in steps]
            )
            self._replace(connection, PARTS, number, [{"run_id": number, "part": part} for part in run.parts])
        return number

    def _number(self, connection: Connection, run: RunResult, row: Mapping[str, Any], place: int | None) -> int:
        """The number of the run, after the runs that it replaces are deleted and its row is written."""
        same: ColumnElement[bool] = RUNS.c.run.in_((run.run, *run.parts))
        if run.parts and self.database.has(connection, PARTS):
            same = or_(same, RUNS.c.id.in_(select(PARTS.c.run_id).where(PARTS.c.part.in_(run.parts))))
        found: list[int] = list(connection.execute(select(RUNS.c.id).where(same).order_by(RUNS.c.id)).scalars())
        *others, number = found or [0]
        self.remove(connection, others)
        if not number:
            chosen = self.database.number(connection, place)
            added = connection.execute(insert(RUNS).values(row if chosen is None else {"id": chosen, **row}))
            key: Any = added.inserted_primary_key
            return int(key[0])
        for table in OF_RUNS:
            self._replace(connection, table, number, [])
        connection.execute(update(RUNS).where(RUNS.c.id == number).values(row))
        return number

    def remove(self, connection: Connection, numbers: Collection[int]) -> None:
        """Delete runs with all their rows, within a transaction."""
        for number in numbers:
            for table in OF_RUNS:
                self._replace(connection, table, number, [])
        connection.execute(delete(RUNS).where(RUNS.c.id.in_(numbers)))

    def _merged_with(self, connection: Connection, name: str) -> int | None:
        """The number of the merged run with the part ``name``."""
        if not self.database.has(connection, PARTS):
            return None
        found: int | None = connection.execute(select(PARTS.c.run_id).where(PARTS.c.part == name)).scalar()
        return found

    def _rename(self, connection: Connection, old: str, case: CaseResult) -> None:
        taken = select(RESULTS.c.run_id).where(RESULTS.c.case == case.key, RESULTS.c.cell == case.cell)
        renamed = (RESULTS.c.case == old) & (RESULTS.c.cell == case.cell) & RESULTS.c.run_id.not_in(taken)
        runs = select(RESULTS.c.run_id).where(renamed)
        if self.database.has(connection, DIGESTS):
            connection.execute(delete(DIGESTS).where(DIGESTS.c.run_id.in_(runs)))
        if self.database.has(connection, KNOWN_ISSUES):
            issues = KNOWN_ISSUES.c
            of_renamed = (issues.case == old) & (issues.cell == case.cell) & issues.run_id.in_(runs)
            connection.execute(update(KNOWN_ISSUES).where(of_renamed).values(case=case.key))
        connection.execute(update(RESULTS).where(renamed).values(case=case.key, suite=case.suite))

    def _replace(self, connection: Connection, table: Table, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rows of run ``number`` in a table, which may be missing."""
        if not self.database.has(connection, table):
            if not rows:
                return
            connection.execute(CreateTable(table))
        connection.execute(delete(table).where(table.c.run_id == number))
        if rows:
            connection.execute(insert(table), rows)

    # -- reading ------------------------------------------------------------------------------------------------------

    def runs(self, before: int | None = None) -> tuple[Run, ...]:
        """All runs, or those recorded before number ``before``; oldest first."""
        query = select(RUNS).order_by(RUNS.c.id)
        if before is not None:
            query = query.where(RUNS.c.id < before)
        with self.reading() as connection:
            return tuple(run_of(row) for row in connection.execute(query))

    def run(self, name: str) -> Run | None:
        with self.reading() as connection:
            row = connection.execute(select(RUNS).where(RUNS.c.run == name)).first()
            return run_of(row) if row else None

    def number(self, name: str) -> int:
        """The number of a run, or of the merged run with this part. For one that is not recorded: the number that it would get."""
        with self.reading() as connection:
            found = connection.execute(select(RUNS.c.id).where(RUNS.c.run == name)).scalar()
            return (
                found
                or self._merged_with(connection, name)
                or int(connection.execute(select(func.coalesce(func.max(RUNS.c.id), 0))).scalar_one()) + 1
            )

    def numbers(self) -> dict[str, int]:
        """The numbers of all runs, by name."""
        with self.reading() as connection:
            return {row.run: row.id for row in connection.execute(select(RUNS.c.run, RUNS.c.id))}

    def parts(self) -> dict[str, int]:
        """The numbers of the merged runs, by the names of their parts."""
        with self.reading() as connection:
            if not self.database.has(connection, PARTS):
                return {}
            return {row.part: row.run_id for row in connection.execute(select(PARTS.c.part, PARTS.c.run_id))}

    def results(
        self, *, before: int | None = None, last: int = 0, run: str = "", case: str = "", measured: int = 0
    ) -> tuple[Row, ...]:
        """Results, oldest run first.

        ``before``: only runs with a lower number. ``last``: only this many of the latest runs. ``run``, ``case``: only these.
        ``measured``: metrics of only this many of the latest runs; in a long history they are most of the data. 0 means all.
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
        with self.reading() as connection:
            inputs = {row.id: parse_inputs(row.data) for row in connection.execute(select(INPUTS))}
            issues = self._known_issues(connection)
            return tuple(row_of(row, inputs, issues) for row in self.database.rows(connection, query))

    def _known_issues(self, connection: Connection, *which: ColumnElement[bool]) -> dict[RowKey, KnownIssueMatch]:
        if not self.database.has(connection, KNOWN_ISSUES):
            return {}
        rows = connection.execute(select(KNOWN_ISSUES).where(*which))
        return {(row.run_id, row.case, row.cell): KnownIssueMatch(row.bug, row.why, row.gone) for row in rows}

    def digests(self) -> dict[int, str]:
        """The digests of the results by run. A run of an older harness, or with a case that was renamed, has none."""
        with self.reading() as connection:
            if not self.database.has(connection, DIGESTS):
                return {}
            return {row.run_id: row.digest for row in connection.execute(select(DIGESTS))}

    def known_issues(self, first: int, last: int) -> dict[RowKey, KnownIssueMatch]:
        """The known issues of the results that have one, in the runs from number ``first`` to ``last``."""
        with self.reading() as connection:
            return self._known_issues(connection, (KNOWN_ISSUES.c.run_id >= first) & (KNOWN_ISSUES.c.run_id <= last))

    def setups(self, before: int, last: int) -> tuple[dict[str, float], ...]:
        """Seconds of each setup step of the ``last`` runs before number ``before``, oldest run first."""
        found: dict[int, dict[str, float]] = {}
        with self.reading() as connection:
            if not self.database.has(connection, SETUP):
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
        with self.reading() as connection:
            if not self.database.has(connection, COMPLAINTS):
                return {}
            wanted = COMPLAINTS.c.run_id.in_(_latest(last, before).scalar_subquery())
            for row in connection.execute(select(COMPLAINTS).where(wanted)):
                found.setdefault(row.cell, set()).add(row.identity)
        return {cell: frozenset(identities - {""}) for cell, identities in found.items()}

    def cases(self) -> tuple[str, ...]:
        """The keys of all recorded cases."""
        with self.reading() as connection:
            return tuple(connection.execute(select(RESULTS.c.case).distinct().order_by(RESULTS.c.case)).scalars())

    # -- errors -------------------------------------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection for queries, which all see the same state. Errors of the database become those of this class."""
        return self._explained(self.database.reading())

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction without another writer at the same time. Errors of the database become those of this class."""
        return self._explained(self.database.writing())

    @contextmanager
    def _explained(self, opened: AbstractContextManager[Connection]) -> Iterator[Connection]:
        try:
            with opened as connection:
                yield connection
        except self.database.failures as exc:
            raise self.database.explain(exc, self.record) from exc


def input_ids(connection: Connection, wanted: Collection[str]) -> dict[str, int]:
    """The numbers of sets of inputs, which are added if they are missing."""
    ids: dict[str, int] = {}
    for data in sorted(wanted):
        found = connection.execute(select(INPUTS.c.id).where(INPUTS.c.data == data)).scalar()
        ids[data] = found or connection.execute(insert(INPUTS).values(data=data)).inserted_primary_key[0]  # type: ignore[index]
    return ids


def _latest(count: int, before: int | None) -> Select[tuple[int]]:
    """The numbers of the latest ``count`` runs before number ``before``."""
    numbers = select(RUNS.c.id).order_by(RUNS.c.id.desc()).limit(count)
    return numbers if before is None else numbers.where(RUNS.c.id < before)
