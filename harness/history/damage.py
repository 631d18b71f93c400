# SPDX-License-Identifier: BSD-2-Clause
"""A damaged history file: rename it, and read the rows that are still readable."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from harness.results.model import CaseResult, ComplaintRecord, KnownIssueMatch, Outcome, RunResult, SetupStep, with_schema1_fields

# sqlite3.DatabaseError: database disk image is malformed / file is not a database / malformed database schema
_SIGNS = ("malformed", "not a database", "corrupt")


def is_damage(message: str) -> bool:
    """Whether SQLite's message reports a broken file, rather than one that is locked, on a full disk or out of reach."""
    return any(sign in message for sign in _SIGNS)


def set_aside(path: Path) -> Path:
    """Rename the file and its log; return the new path. Two processes may find the damage at the same time."""
    from filelock import FileLock  # Each command that reads the history imports this module, and filelock takes 17 ms.

    with FileLock(path.with_name(f"{path.name}.lock")):
        number = 1
        while path.with_name(f"{path.name}.broken-{number}").exists():
            number += 1
        aside = path.with_name(f"{path.name}.broken-{number}")
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        with suppress(FileNotFoundError):
            path.rename(aside)
    return aside


def salvage(path: Path) -> Iterator[RunResult]:
    """The readable runs of a damaged file, oldest first. Never raises."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            for run in _readable(connection, "SELECT * FROM runs ORDER BY id"):
                with suppress(ValueError, TypeError, IndexError):
                    yield _run(connection, run)
    except sqlite3.Error:
        return


def _run(connection: sqlite3.Connection, run: sqlite3.Row) -> RunResult:
    query = "SELECT * FROM results JOIN inputs ON inputs.id = inputs_id WHERE run_id = ?"
    rows = _readable(connection, "SELECT * FROM known_issues WHERE run_id = ?", run["id"])
    issues = {(row["case"], row["cell"]): KnownIssueMatch(row["bug"], row["why"], bool(row["gone"])) for row in rows}
    seen: dict[str, list[ComplaintRecord]] = {}
    for row in _readable(connection, "SELECT cell, identity FROM complaints WHERE run_id = ?", run["id"]):
        seen.setdefault(row["cell"], []).extend([ComplaintRecord("", "", "", row["identity"])] if row["identity"] else [])
    cases = tuple(
        # The history has complaints of cells, so the first case of a cell gets them.
        replace(case, complaints=tuple(seen.pop(case.cell))) if case.cell in seen else case
        for case in (_case(row, issues) for row in _readable(connection, query, run["id"]))
    )
    inputs, options = json.loads(run["inputs"]), json.loads(run["options"])
    rows = _readable(connection, "SELECT what, seconds FROM setup WHERE run_id = ? ORDER BY rowid", run["id"])
    setup = tuple(SetupStep(row["what"], row["seconds"]) for row in rows)
    parts = tuple(row["part"] for row in _readable(connection, "SELECT part FROM parts WHERE run_id = ? ORDER BY rowid", run["id"]))
    return RunResult(
        run["run"],
        run["started"],
        run["ended"],
        run["command"],
        inputs,
        run["exit_code"],
        cases,
        options,
        run["branch"],
        setup,
        parts,
    )


def _case(row: sqlite3.Row, issues: Mapping[tuple[str, str], KnownIssueMatch]) -> CaseResult:
    """The case of a row. The history has no node id, so this builds one; cell and death come from their texts."""
    suite_file, _, name = row["case"].partition("::")
    case, _, own = name.removesuffix("]").partition("[")
    parameters = "-".join(filter(None, (row["cell"], own)))
    nodeid = f"suites/{row['suite']}/{suite_file.rpartition('/')[2]}.py::{case}" + (f"[{parameters}]" if parameters else "")
    found = with_schema1_fields(CaseResult(
        nodeid, row["suite"], case, row["cell"], Outcome(row["outcome"]), row["seconds"], row["reason"], row["identity"],
        inputs=json.loads(row["data"]), directory=row["directory"], metrics=json.loads(row["metrics"]), phase=row["phase"],
    ))  # fmt: skip
    issue = issues.get((row["case"], row["cell"]))
    return replace(found, parameters=own, known_issue=issue or found.known_issue)


def _readable(connection: sqlite3.Connection, query: str, *arguments: object) -> Iterator[sqlite3.Row]:
    """Rows up to the first unreadable one."""
    with suppress(sqlite3.Error):
        yield from connection.execute(query, arguments)
