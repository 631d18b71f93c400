# SPDX-License-Identifier: BSD-2-Clause
"""Classify the exception of a case, and derive the exit code of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from harness.console.deaths import Death
from harness.errors import ExitCode, GuestDied, HarnessError
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED, CaseResult, KnownIssueMatch, Outcome


@dataclass(frozen=True)
class Finding:
    """``outcome`` as in the results; ``reason`` for the reader; ``death`` if a guest died."""

    outcome: Outcome
    reason: str
    death: Death | None = None
    known_issue: KnownIssueMatch | None = None


# Characters of a reason, and of a line of it.
_LONGEST, _LINE = 20_000, 2_000


def classify(error: BaseException) -> Finding:
    """An exception as a finding. Only a dead guest and a failed assertion count as failures of the product.

    A long reason is cut: a guest may print megabytes without a newline, and mail, page and history have the whole reason.
    """
    found = _classified(error)
    return replace(found, reason=shortened(found.reason))


def shortened(text: str) -> str:
    """``text`` without the ends of long lines, and without its middle if it is still long."""
    lines = [
        line if len(line) <= _LINE else f"{line[:_LINE]}... and {len(line) - _LINE} more characters" for line in text.split("\n")
    ]
    text = "\n".join(lines)
    left_out = len(text) - _LONGEST
    if left_out <= 0:
        return text
    return f"{text[: _LONGEST // 2]}\n... {left_out} characters are left out ...\n{text[-_LONGEST // 2 :]}"


def _classified(error: BaseException) -> Finding:
    if isinstance(error, pytest.skip.Exception):
        return Finding(SKIPPED, str(error.msg or error))
    if isinstance(error, GuestDied):
        return Finding(FAILED, error.message, error.death)
    if isinstance(error, HarnessError):
        outcome = {
            ExitCode.PRODUCT: FAILED,
            ExitCode.INFRASTRUCTURE: INFRASTRUCTURE,
            ExitCode.USAGE: INFRASTRUCTURE,
        }.get(error.exit_code, HARNESS)
        return Finding(outcome, str(error))
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return Finding(FAILED, str(error))
    return Finding(HARNESS, f"{type(error).__name__}: {error}")


def exit_code(cases: tuple[CaseResult, ...]) -> int:
    """The exit code of a run. A product failure outweighs a harness error, which outweighs an infrastructure failure.

    A case that was paused for a person is not judged: it counts as run, but not as failed.
    """
    outcomes = {case.outcome if not case.paused else PASSED for case in cases}
    if FAILED in outcomes:
        return ExitCode.PRODUCT
    if HARNESS in outcomes:
        return ExitCode.HARNESS
    if INFRASTRUCTURE in outcomes:
        return ExitCode.INFRASTRUCTURE
    return ExitCode.OK if outcomes & {PASSED, KNOWN} else ExitCode.NOTHING_SELECTED
