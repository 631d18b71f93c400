# SPDX-License-Identifier: BSD-2-Clause
"""What verdicts are made from, and what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from harness.results.model import FAILED, PASSED, SKIPPED
from harness.results.model import KNOWN as KNOWN_OUTCOME

# Kinds of verdicts. These four are of a case that failed without an excuse.
REGRESSION, STILL_FAILING, NEVER_PASSED, BASELINE_UNTESTED = "regression", "still failing", "never passed", "baseline untested"
FLAKY, KNOWN, KNOWN_GONE = "flaky", "known issue", "known issue gone"
BLOCKED, INFRASTRUCTURE, SKIP = "blocked", "infrastructure", "skipped"
FIXED, NEW, PASS = "fixed", "new", "passed"
KINDS = (
    REGRESSION, BASELINE_UNTESTED, NEVER_PASSED, KNOWN_GONE, STILL_FAILING, FLAKY, BLOCKED, INFRASTRUCTURE, KNOWN, FIXED, NEW,
    PASS, SKIP,
)  # fmt: skip
"""All of them, in the order in which a reader wants to see them."""
BAD = frozenset({REGRESSION, STILL_FAILING, NEVER_PASSED, BASELINE_UNTESTED})

# These differ between runs without making what was tested another version.
INCIDENTAL = frozenset({"python", "machine", "host", "backend", "lab", "shard", "run again because"})


@dataclass(frozen=True)
class Inputs:
    """Everything that was tested together, by name: kernel, ramdisk, disks, xen, dom0, qemu, harness, quirks."""

    values: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def revisions(self) -> dict[str, str]:
        """Without what is incidental, and files by their content rather than their names."""
        return {name: revision(value) for name, value in sorted(self.values.items()) if name not in INCIDENTAL}

    @cached_property
    def version(self) -> str:
        """The same for two runs exactly when the same was tested."""
        return hashlib.sha256(repr(list(self.revisions.items())).encode()).hexdigest()[:16]

    def changes(self, later: Inputs) -> tuple[str, ...]:
        """The names of the inputs in which ``later`` differs."""
        mine, theirs = self.revisions, later.revisions
        return tuple(name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name))

    def words(self, name: str) -> str:
        """An input as people say it: ``kernel.XENA (26f2e57c)``."""
        value = self.values.get(name, "none")
        head, mark, digest = value.partition(" sha256:")
        return f"{head} ({digest[:8]})" if mark else value


def revision(value: str) -> str:
    """``kernel.XENA sha256:26f2...`` is its hash; what has none is itself."""
    _, mark, digest = value.rpartition("sha256:")
    return digest if mark else value


NO_INPUTS = Inputs()


@dataclass(frozen=True, slots=True)
class Observation:
    """How one case ended in one cell of one run. ``run`` is the run's name; order is the order of a sequence, never a clock."""

    run: str
    case: str
    cell: str
    outcome: str
    identity: str = ""
    inputs: Inputs = NO_INPUTS
    phase: str = ""
    branch: str = ""
    known: str = ""
    """The known issue (suites/known_issues.toml) that a failure showed, or that a pass should have shown."""

    @property
    def judged(self) -> bool:
        """Whether anything was learned about the product."""
        return self.outcome in (PASSED, FAILED)

    @property
    def shown(self) -> str:
        """The outcome as results have it."""
        return KNOWN_OUTCOME if self.known and self.outcome == FAILED else self.outcome


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


Baseline = LastGreen | NamedRun | Branch


@dataclass(frozen=True)
class Verdict:
    """``kind`` and why. ``since`` is the run in which the present state began; ``baseline`` the run it is compared with.

    ``standing``: nothing was learned this time, but the last word on these very inputs is that verdict. ``otherwise``: it
    failed before, too, but dies of something else now, which is news.
    """

    kind: str
    reason: str
    since: str = ""
    baseline: str = ""
    reference: str = ""
    standing: str = ""
    otherwise: bool = False

    @property
    def is_news(self) -> bool:
        """Whether a report shows it first."""
        return self.kind in (REGRESSION, NEVER_PASSED, BASELINE_UNTESTED, KNOWN_GONE) or self.otherwise

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
    "Verdict",
    "revision",
]  # fmt: skip
