# SPDX-License-Identifier: BSD-2-Clause
"""Classify the exception of a case, and derive the exit code of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from harness.console.deaths import Death
from harness.errors import ExitCode, GuestDied, HarnessError
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED, CaseResult, KnownIssueMatch, Outcome

# Kinds of death of a guest that says nothing about it.
_SILENT = ("hang", "eof")


@dataclass(frozen=True)
class PhaseResult:
    """How setup, call or teardown of a case ended. ``reason`` is the text for the reader; ``death`` is set if a guest died."""

    outcome: Outcome
    reason: str
    death: Death | None = None
    known_issue: KnownIssueMatch | None = None

    @property
    def bad(self) -> bool:
        """Whether the phase neither passed nor was skipped."""
        return self.outcome not in (SKIPPED, PASSED)

    @property
    def silent(self) -> bool:
        """Whether a guest died without a message that gives the cause."""
        return self.death is not None and self.death.kind in _SILENT


# Characters of a reason, and of a line of it.
_LONGEST, _LINE = 20_000, 2_000


def classify(error: BaseException) -> PhaseResult:
    """The result of a phase that raised ``error``. Only a dead guest and a failed assertion count as failures of the product.

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


def _classified(error: BaseException) -> PhaseResult:
    if isinstance(error, pytest.skip.Exception):
        return PhaseResult(SKIPPED, str(error.msg or error))
    if isinstance(error, GuestDied):
        return PhaseResult(FAILED, error.message, error.death)
    if isinstance(error, HarnessError):
        outcome = {
            ExitCode.PRODUCT: FAILED,
            ExitCode.INFRASTRUCTURE: INFRASTRUCTURE,
            ExitCode.USAGE: INFRASTRUCTURE,
        }.get(error.exit_code, HARNESS)
        return PhaseResult(outcome, str(error))
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return PhaseResult(FAILED, str(error))
    return PhaseResult(HARNESS, f"{type(error).__name__}: {error}")


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
