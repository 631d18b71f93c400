# SPDX-License-Identifier: BSD-2-Clause
"""The verdicts of a whole run: each case by its own history, and what an earlier failure of the run kept from acting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.results.model import FAILED
from harness.verdicts.judge import judge
from harness.verdicts.values import Baseline, LastGreen, Observation, Verdict

Key = tuple[str, str]
"""Case and cell."""
History = Mapping[Key, Sequence[Observation]]
"""Oldest first, without the run that is judged."""


def judge_run(
    results: Sequence[Observation],
    history: History,
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
) -> dict[Key, Verdict]:
    """A verdict for each of ``results``, which are one run's, in the order in which they ran."""
    blockers = find_blockers(results)
    return {
        (now.case, now.cell): judge(
            now,
            history.get((now.case, now.cell), ()),
            baseline=baseline,
            blocked_by=blockers.get((now.case, now.cell), ""),
        )
        for now in results
    }


def find_blockers(results: Iterable[Observation]) -> dict[Key, str]:
    """Which case could not act because of which other's failure.

    A guest that dies before a case has begun to act (in its set-up) does so for every case of its cell. The failure belongs
    to one: to a case that died of the same in its own acting, else to the first.
    """
    culprits: dict[tuple[str, str], str] = {}
    early: dict[tuple[str, str], list[Observation]] = {}
    for seen in results:
        if seen.outcome != FAILED or not seen.identity:
            continue
        death = (seen.cell, seen.identity)
        if seen.phase == "setup":
            early.setdefault(death, []).append(seen)
        else:
            culprits.setdefault(death, seen.case)
    found: dict[Key, str] = {}
    for death, victims in early.items():
        culprit = culprits.get(death)
        if culprit is None:
            culprit, victims = victims[0].case, victims[1:]
        found |= {(seen.case, seen.cell): culprit for seen in victims}
    return found


def gone(results: Iterable[Observation], history: History, last_run: str) -> tuple[Key, ...]:
    """What the run before had and this one has not: taken out, renamed, or not selected."""
    now = {(seen.case, seen.cell) for seen in results}
    return tuple(sorted(key for key, seen in history.items() if key not in now and seen and seen[-1].run == last_run))
