# SPDX-License-Identifier: BSD-2-Clause
"""A run in one sentence: new results first, then known ones, then cases without a judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.errors import ExitCode
from harness.results.model import FAILED, HARNESS, KNOWN, PASSED, CaseResult, RunResult
from harness.verdicts import values
from harness.verdicts.values import Verdict

_WORDS = (
    (values.REGRESSION, "regression", "regressions"),
    (values.BASELINE_UNTESTED, "failure without a baseline", "failures without a baseline"),
    (values.NEVER_PASSED, "case that never passed", "cases that never passed"),
    (values.KNOWN_GONE, "known issue gone", "known issues gone"),
    (values.STILL_FAILING, "still failing", "still failing"),
    (values.FLAKY, "flaky", "flaky"),
    (values.BLOCKED, "blocked", "blocked"),
    (values.KNOWN, "known issue", "known issues"),
    (values.FIXED, "fixed", "fixed"),
)


def sentence(run: RunResult, judged: Sequence[tuple[CaseResult, Verdict]], worse: int = 0) -> str:
    """``1 regression, 2 still failing; 14 of 17 judged cases passed; 1 case could not be judged (infrastructure).``

    ``worse`` is the number of metrics that drifted for the worse.
    """
    kinds = Counter(verdict.kind for _, verdict in judged)
    tally = [f"{kinds[kind]} {one if kinds[kind] == 1 else many}" for kind, one, many in _WORDS if kinds[kind]]
    other = sum(verdict.different_failure for _, verdict in judged)
    if other:
        tally.append(f"{other} with a different failure than before")
    outcomes = Counter(case.outcome for case, verdict in judged if verdict.kind != values.PAUSED)
    passed = outcomes[PASSED]
    total = passed + outcomes[FAILED] + outcomes[KNOWN]
    if not total:
        parts = ["No case was judged", *tally]
    elif passed == total:
        parts = [f"All {total} judged cases passed" if total > 1 else "The one judged case passed", *tally]
    else:
        parts = [", ".join(tally)] if tally else []
        parts.append(f"{passed} of {total} judged cases passed")
    lost = sum(verdict.kind == values.INFRASTRUCTURE for _, verdict in judged)
    harness_bugs = run.count(HARNESS)
    if lost:
        bugs = f", {harness_bugs} of them because of a bug of the harness" if harness_bugs else ""
        parts.append(f"{lost} case{'s' * (lost != 1)} could not be judged (infrastructure{bugs})")
    if paused := kinds[values.PAUSED]:
        parts.append(f"{paused} case{'s' * (paused != 1)} had a pause for a person and {'are' if paused != 1 else 'is'} not judged")
    standing = sum(bool(verdict.standing) for _, verdict in judged)
    if standing:
        parts.append(f"{standing} earlier failure{'s' * (standing != 1)} with the same inputs still stand{'s' * (standing == 1)}")
    if worse:
        parts.append(f"{worse} metric{'s' * (worse != 1)} drifted for the worse")
    if run.exit_code == ExitCode.INTERRUPTED:
        parts.append("the run was interrupted")
    if not run.ended:
        parts.append("the run did not finish")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
