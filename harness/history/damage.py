# SPDX-License-Identifier: BSD-2-Clause
"""A history file that is damaged is set aside, never emptied: and what can be read of it is read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock

from harness.results.model import CaseResult, RunResult, SetupStep

# sqlite3.DatabaseError: database disk image is malformed / file is not a database / malformed database schema
_SIGNS = ("malformed", "not a database", "corrupt")


def is_damage(said: str) -> bool:
    """Whether the file itself is broken, rather than locked, full or out of reach."""
    return any(sign in said for sign in _SIGNS)


def set_aside(path: Path) -> Path:
    """Give the file (with its log) another name beside it; returns that. Two processes may find the damage at once."""
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
    """The runs that can still be read out of a damaged file, oldest first. Never raises."""
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
    cases = tuple(_case(row) for row in _readable(connection, query, run["id"]))
    inputs, options = json.loads(run["inputs"]), json.loads(run["options"])
    rows = _readable(connection, "SELECT what, seconds FROM setup WHERE run_id = ? ORDER BY rowid", run["id"])
    setup = tuple(SetupStep(row["what"], row["seconds"]) for row in rows)
    return RunResult(
        run["run"], run["started"], run["ended"], run["command"], inputs, run["exit_code"], cases, options, run["branch"], setup
    )


def _case(row: sqlite3.Row) -> CaseResult:
    suite_file, _, name = row["case"].partition("::")
    case, _, rest = name.removesuffix("]").partition("[")
    parameters = "-".join(filter(None, (row["cell"], rest)))
    nodeid = f"suites/{row['suite']}/{suite_file.rpartition('/')[2]}.py::{case}" + (f"[{parameters}]" if parameters else "")
    return CaseResult(
        nodeid, row["suite"], case, row["cell"], row["outcome"], row["seconds"], row["reason"], row["identity"],
        inputs=json.loads(row["data"]), directory=row["directory"], metrics=json.loads(row["metrics"]), phase=row["phase"],
    )  # fmt: skip


def _readable(connection: sqlite3.Connection, query: str, *arguments: object) -> Iterator[sqlite3.Row]:
    """Rows up to the first that cannot be read."""
    with suppress(sqlite3.Error):
        yield from connection.execute(query, arguments)
