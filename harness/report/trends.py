# SPDX-License-Identifier: BSD-2-Clause
"""How metrics went over the last runs: series for plots, chosen so that a page stays a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from harness.history.rows import Row, metrics_of
from harness.results.model import PASSED, CaseResult, RunResult
from harness.verdicts.drift import Drift

_PLOTS, _POINTS, _ENOUGH = 24, 60, 3
# A boot's stages are many; the plot of its end says enough, unless another drifts.
_ALWAYS = ("stage login",)


@dataclass(frozen=True)
class Trend:
    """One metric of one case in one cell: (run, value) of the runs that passed, oldest first. ``drift`` where it left them."""

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
    """Every drift, then boots to login and the cases' own metrics while there is room."""
    wanted: dict[tuple[str, str, str], tuple[int, CaseResult, Drift | None]] = {}
    for case, found in cases:
        for drift in found:
            wanted[(case.key, case.cell, drift.metric)] = (0, case, drift)
        for metric in metrics_of(case):
            rank = 1 if not metric.startswith("stage ") else 2
            if rank == 1 or metric in _ALWAYS:
                wanted.setdefault((case.key, case.cell, metric), (rank, case, None))
    chosen = sorted(wanted.items(), key=lambda item: (item[1][0], item[0]))
    made: list[Trend] = []
    for (key, cell, metric), (_, case, drift_) in chosen:
        if len(made) == _PLOTS:
            break
        series = [(row.seen.run, row.metrics) for row in past.get((key, cell), ())[-_POINTS:] if row.seen.outcome == PASSED]
        points = [(name, values[metric]) for name, values in series if metric in values]
        if case.outcome == PASSED:
            points.append((run.run, metrics_of(case)[metric]))
        if len(points) >= _ENOUGH:
            made.append(Trend(key, cell, metric, tuple(points), drift_))
    return tuple(made)
