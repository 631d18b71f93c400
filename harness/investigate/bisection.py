# SPDX-License-Identifier: BSD-2-Clause
"""Which of a list of builds brought the failure in: a state machine without a machine, so that it can be tested and resumed.

A build is judged by N of M tries; a broken one is passed over; a culprit is named only after it failed and the one before it
passed a number of times (KernelCI's 3 + 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.results.model import FAILED, PASSED
from harness.verdicts.values import SKIP

GOOD, BAD = "good", "bad"
# Tries of one build that taught nothing (infrastructure) before it is passed over.
_LOST = 3


@dataclass(frozen=True)
class Rule:
    """A build is bad when it failed ``need`` of at most ``of`` tries; ``confirm`` failures and passes name a culprit."""

    need: int = 2
    of: int = 3
    confirm: int = 3


@dataclass(frozen=True)
class State:
    """``names`` are the builds, oldest first: the first is known good, the last known bad. ``answers``: (which, outcome)."""

    names: tuple[str, ...]
    answers: tuple[tuple[int, str], ...] = ()

    def answered(self, which: int, outcome: str) -> State:
        """``outcome`` is passed, failed, skipped (the build is broken), or anything else for a try that taught nothing."""
        return replace(self, answers=(*self.answers, (which, outcome)))

    def count(self, which: int, outcome: str) -> int:
        return sum(answer == (which, outcome) for answer in self.answers)


@dataclass(frozen=True)
class Try:
    """Run the case with build number ``which``."""

    which: int
    why: str


@dataclass(frozen=True)
class Culprit:
    """The first bad build and the last good one before it; ``between`` are broken builds that may be it as well."""

    which: int
    before: int
    between: tuple[int, ...]
    sentence: str


@dataclass(frozen=True)
class Stuck:
    """No culprit can be named."""

    sentence: str


def judgement(state: State, which: int, rule: Rule) -> str:
    """good, bad, skipped, or "" when more tries are needed."""
    if state.count(which, SKIP):
        return SKIP
    passes, failures = state.count(which, PASSED), state.count(which, FAILED)
    if failures >= rule.need:
        return BAD
    if passes > rule.of - rule.need:
        return GOOD
    lost = sum(answer[0] == which and answer[1] not in (PASSED, FAILED) for answer in state.answers)
    return SKIP if lost >= _LOST else ""


def next_step(state: State, rule: Rule = Rule()) -> Try | Culprit | Stuck:
    """What to do now, from all answers so far."""
    last = len(state.names) - 1
    if last < 1:
        return Stuck("There is nothing between fewer than two builds.")
    for which, wanted in ((last, BAD), (0, GOOD)):
        found = judgement(state, which, rule)
        if found == "":
            return Try(which, f"is the {'last' if which else 'first'} one {wanted}?")
        if found != wanted:
            how = {SKIP: "cannot be judged", GOOD: "passes", BAD: "fails"}[found]
            return Stuck(f"The {'last' if which else 'first'} build, {state.names[which]}, {how}: there is nothing to bisect.")
    judged = [judgement(state, which, rule) for which in range(last + 1)]
    # The latest good one before the earliest bad one; a good one after that would be a second change.
    bad = judged.index(BAD)
    good = max(which for which in range(bad) if judged[which] == GOOD)
    untried = [which for which in range(good + 1, bad) if judged[which] == ""]
    if untried:
        middle = (good + bad) / 2
        which = min(untried, key=lambda candidate: (abs(candidate - middle), candidate))
        return Try(which, f"between {state.names[good]} (good) and {state.names[bad]} (bad)")
    return _confirm(state, rule, good, bad)


def _confirm(state: State, rule: Rule, good: int, bad: int) -> Try | Culprit | Stuck:
    for which, wanted in ((bad, FAILED), (good, PASSED)):
        hits = state.count(which, wanted)
        tries = state.count(which, PASSED) + state.count(which, FAILED)
        if hits >= rule.confirm:
            continue
        if tries >= 2 * rule.confirm or _lost(state, which) >= 2 * _LOST:
            return Stuck(f"{state.names[which]} {wanted} only {hits} of {tries} times: too flaky to name a culprit.")
        return Try(which, f"confirming {state.names[which]}: {wanted} {hits} of the {rule.confirm} times that are needed")
    between = tuple(range(good + 1, bad))
    fails = f"failed {state.count(bad, FAILED)} of {_tries(state, bad)}"
    passes = f"passed {state.count(good, PASSED)} of {_tries(state, good)}"
    sentence = f"{state.names[bad]} is the first bad build: it {fails}; {state.names[good]} before it {passes}."
    if between:
        names = ", ".join(state.names[which] for which in between)
        sentence = (
            f"The change came in between {state.names[good]} ({passes}) and {state.names[bad]} ({fails}): {names} cannot be judged."
        )
    return Culprit(bad, good, between, sentence)


def _tries(state: State, which: int) -> int:
    return state.count(which, PASSED) + state.count(which, FAILED)


def _lost(state: State, which: int) -> int:
    return sum(answer[0] == which and answer[1] not in (PASSED, FAILED, SKIP) for answer in state.answers)


def tried(state: State) -> Sequence[int]:
    """The builds that were tried, in the order in which they first were."""
    return list(dict.fromkeys(which for which, _ in state.answers))
