# SPDX-License-Identifier: BSD-2-Clause
"""Metrics with tolerance: a boot that takes twice as long is a finding, not an invisible pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# Fewer earlier values than this are no baseline.
ENOUGH = 5
# How many of the latest are one.
WINDOW = 20
# A value drifts when it leaves the median by more than all of these: a share of it, a multiple of its usual scatter (median
# absolute deviation, scaled to a standard deviation), and an absolute amount below which nobody cares.
SHARE, SCATTER, LEAST = 0.25, 4.0, 0.25
_SIGMA = 1.4826
# Names that say that more is better; of times less is.
_MORE_IS_BETTER = ("throughput", "per second", "/s", "rate")


@dataclass(frozen=True)
class Drift:
    """``metric`` left what is usual. ``usual`` and ``now`` in the metric's own unit, ``runs`` is how many ``usual`` is from."""

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
        more = any(word in self.metric for word in _MORE_IS_BETTER)
        return (self.now < self.usual) == more

    @property
    def words(self) -> str:
        how = f"{self.factor:.1f} times" if self.usual else "from nothing to"
        return f"{self.metric}: {self.now:.2f}, usually {self.usual:.2f} (median of {self.runs} runs): {how} as much"


def drifts(case: str, cell: str, now: Mapping[str, float], past: Sequence[Mapping[str, float]]) -> tuple[Drift, ...]:
    """The metrics of ``now`` that left what they were in ``past`` (oldest first, passed runs only)."""
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
