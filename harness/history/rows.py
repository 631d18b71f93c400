# SPDX-License-Identifier: BSD-2-Clause
"""Rows of the history as values, and results as rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from harness.results.model import FAILED, GONE_WORDS, KNOWN, KNOWN_WORDS, PASSED, CaseResult, RunResult, SetupStep
from harness.verdicts.values import Inputs, Observation

# Characters of a reason that are kept.
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


def values_of(number: int, case: CaseResult, inputs: int) -> dict[str, Any]:
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


def setup_of(steps: Iterable[SetupStep]) -> dict[str, float]:
    """Seconds by what was set up; of a step for which several workers waited the longest wait."""
    found: dict[str, float] = {}
    for step in steps:
        found[step.what] = max(step.seconds, found.get(step.what, 0.0))
    return found


def observation(run: RunResult, case: CaseResult) -> Observation:
    """A result as verdicts see it."""
    inputs = parsed(dump(run.inputs | case.inputs))
    return _observation(run.run, case.key, case.cell, case.outcome, case.identity, inputs, case.phase, run.branch, case.reason)


def _observation(
    run: str, case: str, cell: str, outcome: str, identity: str, inputs: Inputs, phase: str, branch: str, reason: str
) -> Observation:
    """What the run said of known issues, put as what happened: the case failed and is excused, or it passed."""
    known, first = "", ""
    if outcome in (KNOWN, FAILED):
        first = reason.partition("\n")[0]
    if outcome == KNOWN:
        outcome, known = FAILED, first.removeprefix(KNOWN_WORDS)
    elif outcome == FAILED and first.startswith(GONE_WORDS):
        outcome, known = PASSED, first.removeprefix(GONE_WORDS)
    return Observation(run, case, cell, outcome, identity, inputs, phase, branch, known)


def run_of(row: Any) -> Run:
    return Run(
        row.id, row.run, row.started, row.ended, row.command, row.branch, row.exit_code, json.loads(row.inputs), json.loads(row.options)
    )  # fmt: skip


def row_of(row: Any, inputs: Mapping[int, Inputs]) -> Row:
    number, run, branch, suite, case, cell, outcome, identity, phase, seconds, inputs_id, metrics, reason, directory = row
    seen = _observation(run, case, cell, outcome, identity, inputs[inputs_id], phase, branch, reason)
    return Row(seen, number, suite, seconds, metrics, reason, directory)


def dump(values: Mapping[str, str]) -> str:
    return json.dumps(dict(values), sort_keys=True)


@lru_cache(maxsize=4096)
def parsed(data: str) -> Inputs:
    return Inputs(json.loads(data))
