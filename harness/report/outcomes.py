# SPDX-License-Identifier: BSD-2-Clause
"""Outcomes over the last runs: of each case, and of each suite in each cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.history.rows import Row
from harness.report.model import MatrixRow, SuiteRun
from harness.results.model import (
    FAILED,
    HARNESS,
    INFRASTRUCTURE,
    KNOWN,
    PASSED,
    SKIPPED,
    WORST_FIRST,
    CaseResult,
    Outcome,
    RunResult,
)  # fmt: skip

# The order in which a report counts outcomes.
COUNTED = (PASSED, KNOWN, FAILED, INFRASTRUCTURE, HARNESS, SKIPPED)


def strip(run: RunResult, case: CaseResult, past: Iterable[Row], shown: Sequence[str]) -> tuple[tuple[str, Outcome], ...]:
    """(run, outcome) of a case in the runs ``shown``, oldest first. ``past`` are its rows in the history."""
    visible = set(shown)
    return (*((row.seen.run, row.seen.shown) for row in past if row.seen.run in visible), (run.run, case.outcome))


def matrix(run: RunResult, rows: Iterable[Row], shown: Sequence[str]) -> tuple[MatrixRow, ...]:
    """The outcomes of each suite in each cell, for the runs ``shown``. ``rows`` are the history without ``run``."""
    visible = set(shown)
    outcomes: dict[tuple[str, str], dict[str, list[Outcome]]] = {}
    for row in rows:
        if row.seen.run in visible:
            outcomes.setdefault((row.suite, row.seen.cell), {}).setdefault(row.seen.run, []).append(row.seen.shown)
    for case in run.cases:
        outcomes.setdefault((case.suite, case.cell), {}).setdefault(run.run, []).append(case.outcome)
    return tuple(
        MatrixRow(suite, cell, tuple(_suite_run(name, runs.get(name, [])) for name in shown))
        for (suite, cell), runs in sorted(outcomes.items())
    )


def _suite_run(run: str, outcomes: Sequence[Outcome]) -> SuiteRun:
    counts = tuple((outcomes.count(outcome), outcome) for outcome in COUNTED if outcome in outcomes)
    return SuiteRun(run, min(outcomes, key=WORST_FIRST.index, default=None), counts)
