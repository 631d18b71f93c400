# SPDX-License-Identifier: BSD-2-Clause
"""Metrics over the last runs, as series for the plots of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from harness.history.rows import Row, metrics_of
from harness.results.model import PASSED, CaseResult, RunResult
from harness.verdicts.drift import Drift

# At most this many plots and points in a plot, and at least this many points.
_PLOTS, _POINTS, _ENOUGH = 24, 60, 3
# A boot has many stages. Plot only its end, unless another stage drifts.
_ALWAYS = ("stage login",)
BOOTS = "boot/test_boot::test_boots_to_login"
"""The case that boots from the first line, in the default shape. Its console and its stages are compared."""


@dataclass(frozen=True)
class Trend:
    """One metric of one case in one cell. ``points`` are (run, value) of the runs that passed, oldest first."""

    case: str
    cell: str
    metric: str
    points: tuple[tuple[str, float], ...]
    drift: Drift | None = None

    @property
    def usual(self) -> float:
        return median(value for _, value in self.points[:-1] or self.points)


def trends(
    run: RunResult, cases: Sequence[tuple[CaseResult, tuple[Drift, ...]]], past: Mapping[tuple[str, str], Sequence[Row]]
) -> tuple[Trend, ...]:
    """A trend for each drift; then for the cases' own metrics and the boots to login, up to the limit."""
    wanted: dict[tuple[str, str, str], tuple[int, CaseResult, Drift | None]] = {}
    for case, drifts in cases:
        for drift in drifts:
            wanted[(case.key, case.cell, drift.metric)] = (0, case, drift)
        for metric in metrics_of(case):
            rank = 1 if not metric.startswith("stage ") else 2
            if rank == 1 or metric in _ALWAYS:
                wanted.setdefault((case.key, case.cell, metric), (rank, case, None))
    chosen = sorted(wanted.items(), key=lambda item: (item[1][0], item[0]))
    found: list[Trend] = []
    for (key, cell, metric), (_, case, drifted) in chosen:
        if len(found) == _PLOTS:
            break
        series = [(row.seen.run, row.metrics) for row in past.get((key, cell), ())[-_POINTS:] if row.seen.outcome == PASSED]
        points = [(name, values[metric]) for name, values in series if metric in values]
        if case.outcome == PASSED:
            points.append((run.run, metrics_of(case)[metric]))
        if len(points) >= _ENOUGH:
            found.append(Trend(key, cell, metric, tuple(points), drifted))
    return tuple(found)
