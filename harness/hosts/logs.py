# SPDX-License-Identifier: BSD-2-Clause
"""The lines that a case added to the logs of dom0's kernel and of Xen."""

from __future__ import annotations

import re
from dataclasses import dataclass

# [   12.345678] vif vif-3-0 vif3.0: Guest Rx ready
_STAMPED = re.compile(r"^\[ *(\d+\.\d+)\] (.*)$")
# Characters of Xen's log by which its old end is found again.
_END = 2048


@dataclass(frozen=True)
class LogMark:
    """A place in the logs: ``at`` is a time (monotonic s) for dom0's log, whose lines have times, ``xen`` the end of Xen's log."""

    at: float
    xen: str

    @classmethod
    def of(cls, at: float, xen: str) -> LogMark:
        return cls(at, xen[-_END:])


def dom0_since(log: str, uptime: float, seconds: float) -> str:
    """The lines of dom0's kernel from the last ``seconds``, without their times. ``uptime`` is dom0's age (s) when the log was read.

    A restored lab's uptime is that of its checkpoint, so a case's lines are found by their age.
    """
    stamped = (match for match in map(_STAMPED.match, log.splitlines()) if match)
    return "".join(f"{match[2]}\n" for match in stamped if float(match[1]) >= uptime - seconds)


def xen_since(log: str, mark: LogMark) -> str:
    """The part of Xen's log after the mark; all of it if the mark was overwritten (the log is a ring)."""
    at = log.rfind(mark.xen) if mark.xen else -1
    return log[at + len(mark.xen) :] if at >= 0 else log
