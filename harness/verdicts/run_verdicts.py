# SPDX-License-Identifier: BSD-2-Clause
"""The verdicts of a run: each case by its own history, and the cases that a failure of the same run blocked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.results.model import FAILED
from harness.verdicts.judge import judge
from harness.verdicts.values import Baseline, LastGreen, Observation, Verdict

Key = tuple[str, str]
"""Case and cell."""
History = Mapping[Key, Sequence[Observation]]
"""Earlier observations of each case and cell, oldest first."""


def judge_run(
    results: Sequence[Observation],
    history: History,
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
) -> dict[Key, Verdict]:
    """A verdict for each of ``results``, which are those of one run in the order in which they ran."""
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
    """The blocked cases, each with the case that has the failure.

    If a guest dies during the setup of a case, it does so for every case of its cell. The failure then counts for one of them:
    for the case that died of it in its own steps, or for the first one.
    """
    culprits: dict[tuple[str, str], str] = {}
    early: dict[tuple[str, str], list[Observation]] = {}
    for seen in results:
        if seen.outcome != FAILED or not seen.judged or not seen.identity:
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
    """Cases of the run before that this run does not have: removed, renamed or not selected."""
    now = {(seen.case, seen.cell) for seen in results}
    return tuple(sorted(key for key, seen in history.items() if key not in now and seen and seen[-1].run == last_run))
