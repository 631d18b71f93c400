# SPDX-License-Identifier: BSD-2-Clause
"""The verdict on one result, from the results before it. A pure function.

The rules follow osstest's sg-report-flight. Only a pass of the same version excuses a failure. A result without a judgement does
not clear an earlier failure. A failed build counts as infrastructure (harness.errors.BuildError), so it is not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from harness.results.model import FAILED, HARNESS, PASSED, SKIPPED
from harness.verdicts import values
from harness.verdicts.values import Baseline, Branch, LastGreen, NamedRun, Observation, Unreadable, Verdict

# Number of earlier results that are searched for the same version. An older failure with inputs that never change excuses nothing.
WINDOW = 50
# After this many failures in a row, following passes with the same inputs, an unrecorded change is likely.
_MANY_FAILURES = 3


def judge(
    now: Observation,
    past: Sequence[Observation],
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
    blocked_by: str = "",
) -> Verdict:
    """The verdict on ``now``.

    ``past`` is oldest first; observations of other cases and cells are ignored. ``blocked_by`` is the case of the same run whose
    failure prevented this one, or empty.
    """
    earlier = [seen for seen in past if seen.case == now.case and seen.cell == now.cell]
    if now.outcome == SKIPPED:
        return Verdict(values.SKIP, "not run in this cell")
    if now.paused:
        return Verdict(values.PAUSED, f"not judged: a person had the case ({now.paused})")
    if blocked_by or not now.judged:
        return _not_judged(now, earlier, baseline, blocked_by)
    if now.outcome == PASSED:
        return _passed(now, earlier, baseline)
    if now.known:
        return Verdict(values.KNOWN, f"known: {now.known}", since=_since(now, earlier), reference=now.known)
    return _failed(now, earlier, baseline)


def _not_judged(now: Observation, earlier: list[Observation], baseline: Baseline, blocked_by: str) -> Verdict:
    if blocked_by:
        kind, reason = values.BLOCKED, f"the guest died during setup, as in {blocked_by}, which reports the failure"
    elif now.outcome == HARNESS:
        kind, reason = values.INFRASTRUCTURE, "not judged: a bug of the harness"
    else:
        kind, reason = values.INFRASTRUCTURE, "not judged: infrastructure failed"
    same = [n for n, seen in enumerate(earlier) if seen.judged and seen.inputs.version == now.inputs.version]
    standing = ""
    if same and earlier[same[-1]].outcome == FAILED:
        before = judge(earlier[same[-1]], earlier[: same[-1]], baseline=baseline)
        if before.is_bad:
            standing = before.kind
            reason += f"; the failure with the same inputs in {earlier[same[-1]].run} ({before.kind}) still stands"
    return Verdict(kind, reason, standing=standing)


def _passed(now: Observation, earlier: list[Observation], baseline: Baseline) -> Verdict:
    if now.known:
        reason = f"passed, although a known issue expects a failure ({now.known}); remove its entry"
        return Verdict(values.KNOWN_GONE, reason, reference=now.known)
    if isinstance(baseline, Unreadable):
        return Verdict(values.PASS, f"passed; not compared with {baseline}")
    judged = [seen for seen in earlier if seen.judged]
    if not judged:
        return Verdict(values.NEW, "first result of this case in this cell")
    same = _same_version(now, judged)
    failures = [seen for seen in same if seen.outcome == FAILED]
    if failures:
        reason = f"passed now, but failed {len(failures)} of {len(same) + 1} times with the same inputs, last in {failures[-1].run}"
        return Verdict(values.FLAKY, reason)
    own = _on_branch(now, judged)
    if own and own[-1].outcome == FAILED:
        streak = _streak(own)
        words = _changed(own[-1], now)
        before = f"the last {len(streak)} runs, since {streak[-1].run}" if len(streak) > 1 else streak[-1].run
        reason = f"failed in {before}; passes now{words}"
        return Verdict(values.FIXED, reason, since=now.run, baseline=own[-1].run)
    if not own:
        return Verdict(values.NEW, f"first result on this branch; {judged[-1].branch or 'another branch'} has earlier ones")
    count = len(_streak(own))
    before = f"{count} runs" if count > 1 else "run"
    return Verdict(values.PASS, f"passed, as in the {before} before", baseline=own[-1].run)


def _failed(now: Observation, earlier: list[Observation], baseline: Baseline) -> Verdict:
    judged = [seen for seen in earlier if seen.judged]
    same = _same_version(now, judged)
    passes = [seen for seen in same if seen.outcome == PASSED]
    if passes:
        return _flaky(now, judged, same, passes)
    against = _baseline_results(now, judged, baseline)
    if not against:
        return _without_baseline(now, judged, baseline)
    tally = f"failed in all {len(same) + 1} runs with these inputs" if same else "failed in the first run with these inputs"
    if against[-1].outcome == PASSED:
        streak = _streak(against)
        of_branch = f" of {baseline}" if isinstance(baseline, Branch) else ""
        reason = f"passed in the last {len(streak)} runs{of_branch}, up to {streak[0].run}"
        if len(streak) == 1:
            reason = f"passed in run {streak[0].run}{of_branch}"
        reason += f"; {tally}{_changed(against[-1], now)}{_flaky_note(against[-1], judged)}"
        return Verdict(values.REGRESSION, reason, since=_since(now, earlier), baseline=against[-1].run)
    streak = _streak(against)
    first, last = streak[-1], streak[0]
    other = bool(now.identity) and bool(last.identity) and all(seen.identity != now.identity for seen in streak)
    note = f"; different failure than before: {now.identity} (was {last.identity})" if other else ""
    green = next((seen for seen in reversed(against) if seen.outcome == PASSED), None)
    if green is None and not any(seen.outcome == PASSED for seen in judged):
        reason = f"failed in all {len(streak) + 1} runs since {first.run}"
        return Verdict(values.NEVER_PASSED, reason + note, since=first.run, different_failure=other)
    reason = f"failing since {first.run} ({_runs(len(streak) + 1)})"
    reason += f", last passed in {green.run}{_changed(green, first, 'inputs changed between these runs')}" if green else ""
    return Verdict(values.STILL_FAILING, reason + note, since=first.run, baseline=last.run, different_failure=other)


def _flaky(now: Observation, judged: list[Observation], same: list[Observation], passes: list[Observation]) -> Verdict:
    total = len(same) + 1
    reason = f"failed {total - len(passes)} of {total} times with the same inputs, last passed in {passes[-1].run}"
    streak = _streak([*_on_branch(now, judged), now])
    if len(streak) >= _MANY_FAILURES:
        reason += f"; {len(streak)} times in a row now, so an unrecorded input may have changed"
    return Verdict(values.FLAKY, reason, since=streak[-1].run)


def _without_baseline(now: Observation, judged: list[Observation], baseline: Baseline) -> Verdict:
    """The verdict on a failure if the baseline has no judged result."""
    passes = [seen for seen in judged if seen.outcome == PASSED]
    if isinstance(baseline, Unreadable):
        return Verdict(values.BASELINE_UNTESTED, f"failed; not compared with {baseline}", since=now.run)
    if not judged:
        if isinstance(baseline, LastGreen):
            return Verdict(values.NEVER_PASSED, "failed in its first run; there is no earlier result", since=now.run)
        return Verdict(
            values.BASELINE_UNTESTED, f"neither {baseline} nor another run has a judged result of this case", since=now.run
        )
    elsewhere = f"the case last passed in {passes[-1].run}" if passes else f"the case failed in all {len(judged)} other runs"
    against = f"branch {now.branch or 'of this run'}" if isinstance(baseline, LastGreen) else str(baseline)
    return Verdict(values.BASELINE_UNTESTED, f"{against} has no judged result of this case; {elsewhere}", since=now.run)


def _baseline_results(now: Observation, judged: list[Observation], baseline: Baseline) -> list[Observation]:
    """The results of ``baseline``, oldest first."""
    match baseline:
        case NamedRun(run):
            return [seen for seen in judged if seen.run == run]
        case Branch(name):
            return [seen for seen in judged if seen.branch == name]
        case LastGreen():
            return _on_branch(now, judged)
        case Unreadable():
            return []


def _on_branch(now: Observation, judged: list[Observation]) -> list[Observation]:
    return [seen for seen in judged if seen.branch == now.branch]


def _same_version(now: Observation, judged: list[Observation]) -> list[Observation]:
    return [seen for seen in judged[-WINDOW:] if seen.inputs.version == now.inputs.version]


def _streak(line: list[Observation]) -> list[Observation]:
    """The last results with the same outcome, newest first."""
    return list(takewhile(lambda seen: seen.outcome == line[-1].outcome, reversed(line)))


def _since(now: Observation, earlier: list[Observation]) -> str:
    line = [*_on_branch(now, [seen for seen in earlier if seen.judged]), now]
    return _streak(line)[-1].run


def _changed(then: Observation, now: Observation, what: str = "changed inputs") -> str:
    names = then.inputs.changes(now.inputs)
    if not names:
        return ""
    shown = [f"{name} {then.inputs.words(name)} -> {now.inputs.words(name)}" for name in names[:4]]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"; {what}: {', '.join(shown)}{more}"


def _flaky_note(green: Observation, judged: list[Observation]) -> str:
    """A note if the case was flaky with the baseline's inputs. That does not excuse the failure."""
    same = [seen for seen in judged[-WINDOW:] if seen.inputs.version == green.inputs.version]
    failures = sum(seen.outcome == FAILED for seen in same)
    return f"; it also failed {failures} of {len(same)} times with the baseline's inputs, so run it again" if failures else ""


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
