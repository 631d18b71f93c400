# SPDX-License-Identifier: BSD-2-Clause
"""The setup steps of a run, compared with earlier runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.history.rows import setup_of
from harness.report.model import SetupReport
from harness.results.model import RunResult
from harness.verdicts.drift import drifts


def setup_steps(run: RunResult, past: Sequence[Mapping[str, float]]) -> tuple[SetupReport, ...]:
    """The setup steps by start time. ``past`` are the seconds of each step in earlier runs, oldest first."""
    seconds = setup_of(run.setup)
    drifted = {drift.metric: drift for drift in drifts("setup", "", seconds, past)}
    cases = {case.nodeid: case for case in run.cases}
    found = []
    for what, longest in seconds.items():
        steps = [step for step in run.setup if step.what == what]
        waited = tuple(cases[name] for name in dict.fromkeys(step.case for step in steps) if name in cases)
        found.append(SetupReport(what, longest, min(step.started for step in steps), waited, drifted.get(what)))
    return tuple(sorted(found, key=lambda item: item.started))
