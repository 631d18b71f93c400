# SPDX-License-Identifier: BSD-2-Clause
"""Drifts: metrics that left their usual range, although the case passed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# A baseline needs at least ENOUGH earlier values, and uses at most the last WINDOW ones.
ENOUGH = 5
WINDOW = 20
# A value drifts if its difference from the median exceeds three limits. They are a share of the median, a multiple of the scatter,
# and an amount in the metric's unit. The scatter is the median absolute deviation, scaled to a standard deviation.
SHARE, SCATTER, LEAST = 0.25, 4.0, 0.25
_SIGMA = 1.4826
# In the names of metrics for which higher values are better: work for each unit of time.
_MORE_IS_BETTER = re.compile(r"\bthroughput\b|\brate\b|\bper (?:second|minute|hour)\b|/(?:s|min|h)\b")


def more_is_better(metric: str) -> bool:
    """Whether a higher value of the metric with this name is the better one."""
    return _MORE_IS_BETTER.search(metric) is not None


@dataclass(frozen=True)
class Drift:
    """A metric outside its usual range. ``usual`` is the median of ``runs`` earlier runs, in the metric's unit, as is ``now``."""

    case: str
    cell: str
    metric: str
    usual: float
    now: float
    runs: int

    @property
    def factor(self) -> float:
        return self.now / self.usual if self.usual else float("inf")

    @property
    def worse(self) -> bool:
        return (self.now < self.usual) == more_is_better(self.metric)

    @property
    def words(self) -> str:
        factor = f", factor {self.factor:.1f}" if self.usual else ""
        return f"{self.metric}: {self.now:.2f}, usually {self.usual:.2f} (median of {self.runs} runs){factor}"


def drifts(case: str, cell: str, now: Mapping[str, float], past: Sequence[Mapping[str, float]]) -> tuple[Drift, ...]:
    """The metrics of ``now`` that drifted from ``past``, the metrics of passed runs, oldest first."""
    found = []
    for metric, value in sorted(now.items()):
        values = [seen[metric] for seen in past if metric in seen][-WINDOW:]
        if len(values) < ENOUGH:
            continue
        usual = median(values)
        scatter = _SIGMA * median(abs(value - usual) for value in values)
        if abs(value - usual) > max(SHARE * abs(usual), SCATTER * scatter, LEAST):
            found.append(Drift(case, cell, metric, usual, value, len(values)))
    return tuple(found)
