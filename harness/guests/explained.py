# SPDX-License-Identifier: BSD-2-Clause
"""The explanation of lost data: what the counters of a link or of the disks show, in the form of a finding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from harness.deadline import Deadline
from harness.safetext import plain

# Characters of a line, and lines of one kind.
_WIDTH, _LINES = 400, 4


@dataclass(frozen=True)
class Explained:
    """``cause`` is one sentence, or "" if no rule fires.

    ``counted`` and ``captured`` are the observations. ``failed`` is whether data does not arrive; the finding then needs the
    counters even without a cause. ``complaint`` is that of the failed transfer, or "".
    """

    cause: str = ""
    counted: tuple[str, ...] = ()
    captured: tuple[str, ...] = ()
    failed: bool = False
    complaint: str = ""

    @property
    def rows(self) -> tuple[str, ...]:
        """Lines to append to a finding; empty without an explanation and without a failed transfer."""
        return self.all_rows if self.cause or self.failed else ()

    @property
    def all_rows(self) -> tuple[str, ...]:
        """All observations as lines, for the evidence."""
        found = [f"cause:     {self.cause or 'not known: no counter that changed shows where the data is lost'}"]
        found += [f"counted:   {line}" for line in self.counted[:_LINES]]
        found += [f"captured:  {line}" for line in self.captured[:_LINES]]
        return tuple(one_line(line) for line in found)


def one_line(text: str) -> str:
    """Output of a guest or of dom0 as one printable line of limited length."""
    line = " ".join(plain(text).split(" ")).replace("\n", " ")
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


class Explainer(Protocol):
    """Compares counters with their earlier values, and explains the difference."""

    explained: Explained | None
    """Set when a transfer failed."""

    @property
    def subject(self) -> str:
        """The device whose counters it compares. Several explainers may have the same."""
        ...

    def explain(self, deadline: Deadline) -> Explained:
        """Read the counters now. Never raises a HarnessError; the text of an unreadable part gives the reason."""
        ...


def rows(explained: Iterable[Explained], reason: str) -> tuple[str, ...]:
    """The lines of several explanations for the finding ``reason``, without repetitions.

    They begin with a transfer that failed if the finding is about something later, such as the death of the guest.
    """
    found = list(explained)
    hidden = [f"observed:  earlier: {one.complaint}" for one in found if one.complaint and one.complaint not in reason]
    return tuple(dict.fromkeys([*map(one_line, hidden), *(row for one in found for row in one.rows)]))
