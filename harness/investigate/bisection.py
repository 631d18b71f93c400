# SPDX-License-Identifier: BSD-2-Clause
"""Find the build that introduced a failure. Pure functions choose the next step from the answers so far.

A build is good or bad by N of M tries. Broken builds are skipped. A culprit is named only after it has failed, and the good build
before it has passed, a number of times (KernelCI uses 3 + 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.results.model import FAILED, PASSED
from harness.verdicts.values import SKIP

GOOD, BAD = "good", "bad"
# A build is skipped after this many tries without a result (infrastructure).
_INCONCLUSIVE = 3


@dataclass(frozen=True)
class Rule:
    """A build is bad if it fails ``need`` of at most ``of`` tries. A culprit needs ``confirm`` failures and as many passes before it."""

    need: int = 2
    of: int = 3
    confirm: int = 3


@dataclass(frozen=True)
class State:
    """``names`` are the builds, oldest first: the first should be good, the last bad. ``answers`` are (build number, outcome)."""

    names: tuple[str, ...]
    answers: tuple[tuple[int, str], ...] = ()

    def answered(self, which: int, outcome: str) -> State:
        """Add an answer. ``outcome`` is passed, failed or skipped (a broken build); anything else is a try without a result."""
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
    """The first bad build ``which`` and the last good one ``before`` it. The broken builds ``between`` them may also be the culprit."""

    which: int
    before: int
    between: tuple[int, ...]
    sentence: str


@dataclass(frozen=True)
class Stuck:
    """The bisection ends without a culprit."""

    sentence: str


def classify(state: State, which: int, rule: Rule) -> str:
    """``good``, ``bad``, ``skipped``, or "" if the build needs more tries."""
    if state.count(which, SKIP):
        return SKIP
    passes, failures = state.count(which, PASSED), state.count(which, FAILED)
    if failures >= rule.need:
        return BAD
    if passes > rule.of - rule.need:
        return GOOD
    return SKIP if _inconclusive(state, which) >= _INCONCLUSIVE else ""


def next_step(state: State, rule: Rule = Rule()) -> Try | Culprit | Stuck:
    """The next try, or the result."""
    last = len(state.names) - 1
    if last < 1:
        return Stuck("A bisection needs at least two builds.")
    for which, wanted in ((last, BAD), (0, GOOD)):
        found = classify(state, which, rule)
        if found == "":
            return Try(which, f"checking that the {'last' if which else 'first'} build is {wanted}")
        if found != wanted:
            result = {SKIP: "gives no result", GOOD: "passes", BAD: "fails"}[found]
            return Stuck(f"The {'last' if which else 'first'} build, {state.names[which]}, {result}: there is nothing to bisect.")
    classes = [classify(state, which, rule) for which in range(last + 1)]
    # Search between the earliest bad build and the latest good one before it. A good build after a bad one is a second change.
    bad = classes.index(BAD)
    good = max(which for which in range(bad) if classes[which] == GOOD)
    untried = [which for which in range(good + 1, bad) if classes[which] == ""]
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
        if tries >= 2 * rule.confirm or _inconclusive(state, which) >= 2 * _INCONCLUSIVE:
            return Stuck(f"{state.names[which]} {wanted} only {hits} of {tries} times: the case is too flaky to name a culprit.")
        return Try(which, f"confirming {state.names[which]}: {wanted} {hits} of {rule.confirm} required times")
    between = tuple(range(good + 1, bad))
    fails = f"failed {state.count(bad, FAILED)} of {_tries(state, bad)}"
    passes = f"passed {state.count(good, PASSED)} of {_tries(state, good)}"
    sentence = f"{state.names[bad]} is the first bad build: it {fails}; {state.names[good]} before it {passes}."
    if between:
        names = ", ".join(state.names[which] for which in between)
        sentence = (
            f"The culprit is between {state.names[good]} ({passes}) and {state.names[bad]} ({fails}), "
            f"including the latter: {names} gave no result."
        )
    return Culprit(bad, good, between, sentence)


def _tries(state: State, which: int) -> int:
    return state.count(which, PASSED) + state.count(which, FAILED)


def _inconclusive(state: State, which: int) -> int:
    return sum(answer[0] == which and answer[1] not in (PASSED, FAILED, SKIP) for answer in state.answers)


def tried(state: State) -> Sequence[int]:
    """The builds that were tried, in the order of their first try."""
    return list(dict.fromkeys(which for which, _ in state.answers))
