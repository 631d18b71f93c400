# SPDX-License-Identifier: BSD-2-Clause
"""Observations, baselines and verdicts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from harness.results.model import FAILED, PASSED, SKIPPED, Outcome

# The kinds of verdicts. The first four are failures without an excuse.
REGRESSION, STILL_FAILING, NEVER_PASSED, BASELINE_UNTESTED = "regression", "still failing", "never passed", "baseline untested"
FLAKY, KNOWN, KNOWN_GONE = "flaky", "known issue", "known issue gone"
BLOCKED, INFRASTRUCTURE, PAUSED, SKIP = "blocked", "infrastructure", "paused", "skipped"
FIXED, NEW, PASS = "fixed", "new", "passed"
KINDS = (
    REGRESSION, BASELINE_UNTESTED, NEVER_PASSED, KNOWN_GONE, STILL_FAILING, FLAKY, BLOCKED, INFRASTRUCTURE, PAUSED, KNOWN, FIXED, NEW,
    PASS, SKIP,
)  # fmt: skip
"""In the order of reports."""
BAD = frozenset({REGRESSION, STILL_FAILING, NEVER_PASSED, BASELINE_UNTESTED})

# Inputs that may differ between runs of the same version.
INCIDENTAL = frozenset({"python", "machine", "host", "backend", "lab", "shard", "run again because"})


@dataclass(frozen=True)
class Inputs:
    """The inputs of a result, by name: kernel, ramdisk, disks, xen, dom0, qemu, harness, quirks."""

    values: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def revisions(self) -> dict[str, str]:
        """The inputs without incidental ones. A file counts by its content, not by its name."""
        return {name: revision(value) for name, value in sorted(self.values.items()) if name not in INCIDENTAL}

    @cached_property
    def version(self) -> str:
        """A hash that is equal for equal inputs."""
        return hashlib.sha256(repr(list(self.revisions.items())).encode()).hexdigest()[:16]

    def changes(self, later: Inputs) -> tuple[str, ...]:
        """The names of the inputs that differ in ``later``."""
        before, now = self.revisions, later.revisions
        return tuple(name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))

    def words(self, name: str) -> str:
        """An input for a text: ``kernel.XENA (26f2e57c)``."""
        value = self.values.get(name, "none")
        head, mark, digest = value.partition(" sha256:")
        return f"{head} ({digest[:8]})" if mark else value


def revision(value: str) -> str:
    """The hash of ``kernel.XENA sha256:26f2...``; a value without a hash is its own revision."""
    _, mark, digest = value.rpartition("sha256:")
    return digest if mark else value


NO_INPUTS = Inputs()


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of a case in a cell of a run. The order of observations is that of their sequence; clocks may jump."""

    run: str
    case: str
    cell: str
    outcome: Outcome
    """As if there were no known issues: passed or failed instead of known."""
    identity: str = ""
    """Of the death, or empty."""
    inputs: Inputs = NO_INPUTS
    phase: str = ""
    branch: str = ""
    known: str = ""
    """The known issue that covers the case, in one line, or empty."""
    paused: str = ""
    """Where a person had the case, or empty."""

    @property
    def judged(self) -> bool:
        """Whether the result is a verdict on the product."""
        return self.outcome in (PASSED, FAILED) and not self.paused

    @property
    def shown(self) -> Outcome:
        """The outcome as in the run's results."""
        if not self.known:
            return self.outcome
        # A case that passes despite a known issue fails.
        return Outcome.KNOWN if self.outcome == FAILED else FAILED


@dataclass(frozen=True)
class LastGreen:
    """Compare with the last judged result of the same branch."""

    def __str__(self) -> str:
        return "the last judged result"


@dataclass(frozen=True)
class NamedRun:
    """Compare with one run."""

    run: str

    def __str__(self) -> str:
        return f"run {self.run}"


@dataclass(frozen=True)
class Branch:
    """Compare with the last judged result of another branch."""

    name: str

    def __str__(self) -> str:
        return f"branch {self.name}"


@dataclass(frozen=True)
class Unreadable:
    """Compare with nothing: the history cannot be read, so no earlier result is known."""

    def __str__(self) -> str:
        return "the history, which cannot be read"


Baseline = LastGreen | NamedRun | Branch | Unreadable


@dataclass(frozen=True)
class Verdict:
    """The judgement of an observation."""

    kind: str
    reason: str
    since: str = ""
    """The run in which the present state began."""
    baseline: str = ""
    """The run that the result is compared with."""
    reference: str = ""
    """The known issue, in one line."""
    standing: str = ""
    """For a result without a judgement: the verdict of the last failure with the same inputs."""
    different_failure: bool = False
    """The case failed before, but with another death."""

    @property
    def is_news(self) -> bool:
        """Whether a report shows the case first."""
        return self.kind in (REGRESSION, NEVER_PASSED, BASELINE_UNTESTED, KNOWN_GONE) or self.different_failure

    @property
    def is_bad(self) -> bool:
        return self.kind in BAD


__all__ = [
    "BAD",
    "BASELINE_UNTESTED",
    "BLOCKED",
    "FAILED",
    "FIXED",
    "FLAKY",
    "INFRASTRUCTURE",
    "KINDS",
    "KNOWN",
    "KNOWN_GONE",
    "NEVER_PASSED",
    "NEW",
    "NO_INPUTS",
    "PASS",
    "PASSED",
    "PAUSED",
    "REGRESSION",
    "SKIP",
    "SKIPPED",
    "STILL_FAILING",
    "Baseline",
    "Branch",
    "Inputs",
    "LastGreen",
    "NamedRun",
    "Observation",
    "Unreadable",
    "Verdict",
    "revision",
]  # fmt: skip
