# SPDX-License-Identifier: BSD-2-Clause
"""Conversion between rows of the history and values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from harness.results import schema1
from harness.results.model import FAILED, HARNESS, KNOWN, PASSED, CaseResult, KnownIssueMatch, Outcome, RunResult, SetupStep
from harness.verdicts.values import Inputs, Observation

# Length to which a reason is cut, in characters.
_REASON = 600
_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
RowKey = tuple[int, str, str]
"""Number of the run, case and cell."""


@dataclass(frozen=True)
class Run:
    """A recorded run. ``number`` gives the order in which runs were recorded."""

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
    """A recorded result: the observation for a verdict, and further values for reports."""

    seen: Observation
    number: int
    suite: str
    seconds: float
    raw_metrics: str
    reason: str
    directory: str

    @property
    def metrics(self) -> dict[str, float]:
        """The case's metrics, and the stages of its first boot as ``stage NAME`` (s)."""
        found: dict[str, float] = json.loads(self.raw_metrics)
        return found


def clean(text: str) -> str:
    """``text`` without what PostgreSQL cannot store: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def run_values(run: RunResult) -> dict[str, Any]:
    """The row of the table ``runs``, without its number."""
    return {
        "run": run.run,
        "started": run.started,
        "ended": run.ended,
        "command": clean(run.command),
        "branch": clean(run.branch),
        "exit_code": run.exit_code,
        "inputs": clean(dump(run.inputs)),
        "options": clean(dump(run.options)),
    }


def result_values(number: int, case: CaseResult, inputs: int) -> dict[str, Any]:
    """The row of the table ``results`` for a case of run ``number``."""
    return {
        "run_id": number,
        "suite": case.suite,
        "case": case.key,
        "cell": case.cell,
        "outcome": case.outcome.value,
        "identity": clean(case.identity),
        "phase": case.phase,
        "reason": clean(case.reason[:_REASON]),
        "seconds": case.seconds,
        "inputs_id": inputs,
        "metrics": json.dumps(metrics_of(case)),
        "directory": case.directory,
    }


def known_issue_values(number: int, case: CaseResult) -> dict[str, Any] | None:
    """The row of the table ``known_issues`` for a case of run ``number``, or None."""
    issue = case.known_issue
    if issue is None:
        return None
    return {
        "run_id": number,
        "case": case.key,
        "cell": case.cell,
        "bug": clean(issue.bug),
        "why": clean(issue.why),
        "gone": issue.gone,
    }


def metrics_of(case: CaseResult) -> dict[str, float]:
    """A case's metrics, and the stages of its first boot as ``stage NAME`` (s)."""
    stages = {f"stage {stamp.name}": stamp.at for boot in case.boots[:1] for stamp in boot.stages}
    return stages | case.metrics


def setup_of(steps: Iterable[SetupStep]) -> dict[str, float]:
    """Seconds of each setup step. If several workers waited for the same step, the longest wait counts."""
    found: dict[str, float] = {}
    for step in steps:
        found[step.what] = max(step.seconds, found.get(step.what, 0.0))
    return found


def observation(run: RunResult, case: CaseResult) -> Observation:
    """A result as an observation for verdicts."""
    inputs = parse_inputs(dump(run.inputs | case.inputs))
    outcome, known = _without_known_issue(case.outcome, case.known_issue)
    return Observation(
        run.run, case.key, case.cell, outcome, clean(case.identity), inputs, case.phase, clean(run.branch), known, case.paused
    )


def _without_known_issue(outcome: Outcome, issue: KnownIssueMatch | None) -> tuple[Outcome, str]:
    """The outcome as if known_issues.toml had no entry, and the entry's line or ""."""
    if issue is None:
        return (FAILED if outcome == KNOWN else outcome), ""
    return (PASSED if issue.gone else FAILED), issue.line


def run_of(row: Any) -> Run:
    return Run(
        row.id, row.run, row.started, row.ended, row.command, row.branch, row.exit_code, json.loads(row.inputs), json.loads(row.options)
    )  # fmt: skip


def row_of(row: Any, inputs: Mapping[int, Inputs], issues: Mapping[RowKey, KnownIssueMatch]) -> Row:
    """A result from the columns that :meth:`History.results` selects."""
    number, run, branch, suite, case, cell, name, identity, phase, seconds, inputs_id, metrics, reason, directory = row
    recorded = _OUTCOMES.get(name, HARNESS)
    outcome, known = recorded, ""
    if recorded in (KNOWN, FAILED):
        outcome, known = _without_known_issue(recorded, issues.get((number, case, cell)) or issue_of_reason(recorded, reason))
    seen = Observation(run, case, cell, outcome, identity, inputs[inputs_id], phase, branch, known)
    return Row(seen, number, suite, seconds, metrics, reason, directory)


def issue_of_reason(outcome: str, reason: str) -> KnownIssueMatch | None:
    """The known issue of a row that an older harness recorded."""
    found = schema1.known_issue(outcome, reason)
    return KnownIssueMatch(*found) if found else None


def dump(values: Mapping[str, str]) -> str:
    return json.dumps(dict(values), sort_keys=True)


@lru_cache(maxsize=4096)
def parse_inputs(data: str) -> Inputs:
    return Inputs(json.loads(data))
