# SPDX-License-Identifier: BSD-2-Clause
"""The verdict on one result, from the results before it: a pure function.

In the spirit of osstest's sg-report-flight: a failure is excused only by the same version passing elsewhere, and what an earlier
failure hides is not forgotten. A build is no case: one that fails within a case counts as infrastructure (harness.errors.BuildError),
of which nothing is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from harness.results.model import FAILED, HARNESS, PASSED, SKIPPED
from harness.verdicts import values
from harness.verdicts.values import Baseline, Branch, LastGreen, NamedRun, Observation, Verdict

# How far back the same version's results are looked at: a year-old hiccup on inputs that never change excuses nothing.
WINDOW = 50
# Failures in a row, after passes with the very same inputs, from which on chance is a poor explanation.
_TOO_MANY = 3


def judge(
    now: Observation,
    past: Sequence[Observation],
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
    blocked_by: str = "",
) -> Verdict:
    """The verdict on ``now``. ``past`` is oldest first; what is of another case or cell in it does not count.

    ``blocked_by`` names the earlier failure of the same run that kept this case from acting, or is empty.
    """
    mine = [seen for seen in past if seen.case == now.case and seen.cell == now.cell]
    if now.outcome == SKIPPED:
        return Verdict(values.SKIP, "not run here")
    if blocked_by or not now.judged:
        return _nothing_learned(now, mine, baseline, blocked_by)
    if now.outcome == PASSED:
        return _passed(now, mine)
    if now.known:
        return Verdict(values.KNOWN, f"known: {now.known}", since=_since(now, mine), reference=now.known)
    return _failed(now, mine, baseline)


def _nothing_learned(now: Observation, mine: list[Observation], baseline: Baseline, blocked_by: str) -> Verdict:
    if blocked_by:
        kind, reason = values.BLOCKED, f"it could not act: {blocked_by} failed before it"
    elif now.outcome == HARNESS:
        kind, reason = values.INFRASTRUCTURE, "nothing was learned: a bug of the harness"
    else:
        kind, reason = values.INFRASTRUCTURE, "nothing was learned: infrastructure"
    same = [n for n, seen in enumerate(mine) if seen.judged and seen.inputs.version == now.inputs.version]
    standing = ""
    if same and mine[same[-1]].outcome == FAILED:
        before = judge(mine[same[-1]], mine[: same[-1]], baseline=baseline)
        if before.is_bad:
            standing = before.kind
            reason += f"; with the same inputs it failed in {mine[same[-1]].run} ({before.kind}), which still stands"
    return Verdict(kind, reason, standing=standing)


def _passed(now: Observation, mine: list[Observation]) -> Verdict:
    if now.known:
        reason = f"it passes: take its entry out of the known issues, which says: {now.known}"
        return Verdict(values.KNOWN_GONE, reason, reference=now.known)
    judged = [seen for seen in mine if seen.judged]
    if not judged:
        return Verdict(values.NEW, "first result of this case here")
    same = _same_version(now, judged)
    failures = [seen for seen in same if seen.outcome == FAILED]
    if failures:
        reason = f"passed now, but failed {len(failures)} of {len(same) + 1} times with the same inputs, last in {failures[-1].run}"
        return Verdict(values.FLAKY, reason)
    own = _own_line(now, judged)
    if own and own[-1].outcome == FAILED:
        streak = _streak(own)
        words = _changed(own[-1], now)
        reason = f"failed in the last {_runs(len(streak))} (since {streak[-1].run}), passes now{words}"
        return Verdict(values.FIXED, reason, since=now.run, baseline=own[-1].run)
    if not own:
        return Verdict(values.NEW, f"first result on this branch; known from {judged[-1].branch or 'another branch'}")
    return Verdict(values.PASS, f"passed, as in the {_runs(len(_streak(own)))} before", baseline=own[-1].run)


def _failed(now: Observation, mine: list[Observation], baseline: Baseline) -> Verdict:
    judged = [seen for seen in mine if seen.judged]
    same = _same_version(now, judged)
    passes = [seen for seen in same if seen.outcome == PASSED]
    if passes:
        return _flaky(now, judged, same, passes)
    against = _baseline_line(now, judged, baseline)
    if not against:
        return _without_baseline(now, judged, baseline)
    tally = f"failed {len(same) + 1} of {len(same) + 1} with these inputs"
    if against[-1].outcome == PASSED:
        streak = _streak(against)
        reason = f"passed in the last {_runs(len(streak))} of {baseline}, up to {streak[0].run}"
        if isinstance(baseline, LastGreen):
            reason = f"passed in the last {_runs(len(streak))}, up to {streak[0].run}"
        elif isinstance(baseline, NamedRun):
            reason = f"passed in {baseline}"
        reason += f"; {tally}{_changed(against[-1], now)}{_used_to_flake(against[-1], judged)}"
        return Verdict(values.REGRESSION, reason, since=_since(now, mine), baseline=against[-1].run)
    streak = _streak(against)
    first, last = streak[-1], streak[0]
    other = bool(now.identity) and bool(last.identity) and all(seen.identity != now.identity for seen in streak)
    note = f"; it dies otherwise than before: {now.identity}, was {last.identity}" if other else ""
    green = next((seen for seen in reversed(against) if seen.outcome == PASSED), None)
    if green is None and not any(seen.outcome == PASSED for seen in judged):
        reason = f"failed in all of {_runs(len(streak) + 1)} since {first.run}"
        return Verdict(values.NEVER_PASSED, reason + note, since=first.run, otherwise=other)
    reason = f"failing since {first.run} ({_runs(len(streak) + 1)})"
    reason += f", last passed in {green.run}{_changed(green, first, 'then')}" if green else ""
    return Verdict(values.STILL_FAILING, reason + note, since=first.run, baseline=last.run, otherwise=other)


def _flaky(now: Observation, judged: list[Observation], same: list[Observation], passes: list[Observation]) -> Verdict:
    total = len(same) + 1
    reason = f"failed {total - len(passes)} of {total} times with the same inputs, passed last in {passes[-1].run}"
    streak = _streak([*_own_line(now, judged), now])
    if len(streak) >= _TOO_MANY:
        reason += f"; {len(streak)} times in a row now, so something that is not recorded may have changed"
    return Verdict(values.FLAKY, reason, since=streak[-1].run)


def _without_baseline(now: Observation, judged: list[Observation], baseline: Baseline) -> Verdict:
    """There is nothing to compare with."""
    passes = [seen for seen in judged if seen.outcome == PASSED]
    if not judged:
        if isinstance(baseline, LastGreen):
            return Verdict(values.NEVER_PASSED, "failed at its first run ever; there is nothing to compare with", since=now.run)
        return Verdict(values.BASELINE_UNTESTED, f"{baseline} has no judged result of it, and no other run", since=now.run)
    elsewhere = f"it passed last in {passes[-1].run}" if passes else f"no run of {len(judged)} ever passed it"
    against = f"branch {now.branch or 'of this run'}" if isinstance(baseline, LastGreen) else str(baseline)
    return Verdict(values.BASELINE_UNTESTED, f"{against} has no judged result of it to compare with; {elsewhere}", since=now.run)


def _baseline_line(now: Observation, judged: list[Observation], baseline: Baseline) -> list[Observation]:
    """The results that ``baseline`` means, oldest first."""
    match baseline:
        case NamedRun(run):
            return [seen for seen in judged if seen.run == run]
        case Branch(name):
            return [seen for seen in judged if seen.branch == name]
        case LastGreen():
            return _own_line(now, judged)


def _own_line(now: Observation, judged: list[Observation]) -> list[Observation]:
    return [seen for seen in judged if seen.branch == now.branch]


def _same_version(now: Observation, judged: list[Observation]) -> list[Observation]:
    return [seen for seen in judged[-WINDOW:] if seen.inputs.version == now.inputs.version]


def _streak(line: list[Observation]) -> list[Observation]:
    """The last results that are alike, newest first."""
    return list(takewhile(lambda seen: seen.outcome == line[-1].outcome, reversed(line)))


def _since(now: Observation, mine: list[Observation]) -> str:
    line = [*_own_line(now, [seen for seen in mine if seen.judged]), now]
    return _streak(line)[-1].run


def _changed(then: Observation, now: Observation, word: str = "now") -> str:
    names = then.inputs.changes(now.inputs)
    if not names:
        return ""
    shown = [f"{name} {then.inputs.words(name)} -> {now.inputs.words(name)}" for name in names[:4]]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"; changed {word}: {', '.join(shown)}{more}"


def _used_to_flake(green: Observation, judged: list[Observation]) -> str:
    """A case that was flaky with the baseline's inputs may be so still: say it, but excuse nothing."""
    same = [seen for seen in judged[-WINDOW:] if seen.inputs.version == green.inputs.version]
    failures = sum(seen.outcome == FAILED for seen in same)
    return f"; note that it failed {failures} of {len(same)} with the inputs it passed with, so run it again" if failures else ""


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
