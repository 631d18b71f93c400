# SPDX-License-Identifier: BSD-2-Clause
"""Copy the runs of one history into another, row by row: for the step from SQLite to PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import insert, select

from harness.errors import UsageError
from harness.history.delivery import place_of
from harness.history.rows import Run, clean
from harness.history.schema import INPUTS, OF_RUNS, RUNS
from harness.history.store import History, input_ids
from harness.results.model import RunResult


class Copied(NamedTuple):
    """Counts of runs and of results."""

    runs: int
    results: int
    known: int
    """Runs that the target had before, also as a part of a merged run, or as a merged run with one of the same parts."""


def import_file(path: Path, target: History) -> Copied:
    """Copy the runs of the file ``path`` that ``target`` lacks, in their order. After an interruption, a second call copies the rest.

    Raises UsageError if there is no such file, or if it is the target itself; and the errors of History.
    """
    if not path.is_file():
        raise UsageError(f"--import {path}: no such file", hint="give a history.sqlite of a reports directory")
    if not target.database.shared:
        raise UsageError("--import without run.history", hint="set run.history in fxh.toml to the URL of the database")
    source = History(path)
    present, merged = target.numbers(), target.parts()
    parts: dict[int, list[str]] = {}
    for part, number in source.parts().items():
        parts.setdefault(number, []).append(part)
    place = runs = results = known = 0
    for run in source.runs():
        own = parts.get(run.number, [])
        here = present.get(run.run) or next((merged[name] for name in (run.run, *own) if name in merged), None)
        if here is not None:
            known += 1
            place = here
        else:
            place = max(place_of(RunResult(run.run, run.started, run.ended)), place + 1)
            # The target may have a part as a run of its own, from a file without the merged run.
            place, count = _copy(source, run, target, place, [present[name] for name in own if name in present])
            runs, results = runs + 1, results + count
    return Copied(runs, results, known)


def _copy(source: History, run: Run, target: History, place: int, replaced: Sequence[int]) -> tuple[int, int]:
    """Copy a run with all its rows in one transaction, in place of the runs ``replaced``.

    Returns its number there, and the number of its results.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    with source.reading() as connection:
        own = dict(connection.execute(select(RUNS).where(RUNS.c.id == run.number)).one()._mapping)
        for table in OF_RUNS:
            if source.database.has(connection, table):
                found = connection.execute(select(table).where(table.c.run_id == run.number))
                rows[table.name] = [{name: _cleaned(value) for name, value in row._mapping.items()} for row in found]
        used = {row["inputs_id"] for row in rows["results"]}
        inputs = {row.id: clean(row.data) for row in connection.execute(select(INPUTS).where(INPUTS.c.id.in_(used)))}
    del own["id"]
    with target.writing() as connection:
        target.remove(connection, replaced)
        number = target.database.number(connection, place)
        connection.execute(insert(RUNS).values(id=number, **{name: _cleaned(value) for name, value in own.items()}))
        ids = input_ids(connection, set(inputs.values()))
        for row in rows["results"]:
            row["inputs_id"] = ids[inputs[row["inputs_id"]]]
        for table in OF_RUNS:
            if values := rows.get(table.name):
                connection.execute(insert(table), [row | {"run_id": number} for row in values])
    assert number is not None
    return number, len(rows["results"])


def _cleaned(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value
