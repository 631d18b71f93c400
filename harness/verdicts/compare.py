# SPDX-License-Identifier: BSD-2-Clause
"""The comparison of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.results.model import PASSED
from harness.verdicts.drift import LEAST, SHARE
from harness.verdicts.judge import judge
from harness.verdicts.run_verdicts import Key
from harness.verdicts.values import KINDS, NamedRun, Observation, Verdict


@dataclass(frozen=True)
class Change:
    """A case in a cell, with its verdict against the earlier run. ``metrics``: (name, before, now) that differ."""

    case: str
    cell: str
    before: str
    now: str
    verdict: Verdict
    metrics: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """``inputs``: (name, before, now) that differ. ``only_before``: cases that only the earlier run has."""

    before: str
    now: str
    inputs: tuple[tuple[str, str, str], ...]
    changes: tuple[Change, ...]
    only_before: tuple[Key, ...]

    @property
    def worse(self) -> bool:
        return any(change.verdict.is_news for change in self.changes)


def compare(
    before: Sequence[tuple[Observation, Mapping[str, float]]], now: Sequence[tuple[Observation, Mapping[str, float]]]
) -> Comparison:
    """Compare two runs. Each is given as its observations and their metrics."""
    earlier = {(seen.case, seen.cell): (seen, metrics) for seen, metrics in before}
    later = {(seen.case, seen.cell): (seen, metrics) for seen, metrics in now}
    name = before[0][0].run if before else ""
    inputs: dict[tuple[str, str, str], None] = {}
    changes = []
    for key, (seen, metrics) in later.items():
        old = earlier.get(key)
        verdict = judge(seen, [old[0]] if old else [], baseline=NamedRun(name))
        moved = _changed_metrics(old[1], metrics) if old and old[0].outcome == seen.outcome == PASSED else ()
        changes.append(Change(*key, old[0].outcome if old else "", seen.outcome, verdict, moved))
        for what in old[0].inputs.changes(seen.inputs) if old else ():
            inputs[(what, old[0].inputs.words(what), seen.inputs.words(what))] = None  # type: ignore[index]
    changes.sort(key=lambda change: (KINDS.index(change.verdict.kind), change.case, change.cell))
    only = tuple(sorted(key for key in earlier if key not in later))
    return Comparison(name, now[0][0].run if now else "", tuple(inputs), tuple(changes), only)


def _changed_metrics(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[tuple[str, float, float], ...]:
    """Metrics that differ by more than twice the limits of a drift, since there is only one earlier value."""
    return tuple(
        (name, before[name], value)
        for name, value in sorted(now.items())
        if name in before and abs(value - before[name]) > max(2 * SHARE * abs(before[name]), 2 * LEAST)
    )
