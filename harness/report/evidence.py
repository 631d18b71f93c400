# SPDX-License-Identifier: BSD-2-Clause
"""Parts of a failed case's evidence: its finding, the console around a death, backtrace and domain configuration."""

from __future__ import annotations

import re
from pathlib import Path

from harness.results.model import CaseResult

# Length to which a domain's configuration and a backtrace are cut, in characters.
_LONGEST = 4000
# Labels of harness.oracles.finding, and of harness.guests.explained:
# observed:  xbd2 has 33554432 bytes (8 times as many)     (pytest indents the lines of an assertion from the second on)
_LABELLED = re.compile(r" {0,2}(test|observed|expected|reference|cause|counted|captured): +(.*)")
# The first line that harness.plugin.lost_data appends to a finding.
_CAUSE = "\ncause: "


def finding_rows(reason: str) -> tuple[tuple[str, str], ...]:
    """(label, text) of a reason's lines. Labels are those of a finding and of its cause, or empty for another line."""
    matches = ((line, _LABELLED.fullmatch(line)) for line in reason.splitlines())
    return tuple((match[1], match[2]) if match else ("", line) for line, match in matches)


def without_cause(reason: str) -> tuple[str, str]:
    """The finding, and the lines on its cause, which a report shows even if it cuts the finding."""
    finding, mark, cause = reason.partition(_CAUSE)
    return finding, f"{mark}{cause}".lstrip("\n")


def around_death(case: CaseResult, count: int) -> str:
    """``count`` lines of the console, from two lines before the death; the last lines without a known death."""
    lines = case.excerpt.splitlines()
    message = case.boots[-1].death.split(" / ")[0] if case.boots else ""
    hits = [n for n, line in enumerate(lines) if message and message in line]
    start = max(0, hits[0] - 2) if hits else max(0, len(lines) - count)
    return "\n".join(lines[start : start + count])


def domain_config(directory: Path, case: CaseResult) -> str:
    """The configuration of the case's last domain, or "". ``directory`` is the case's own."""
    names = [name for name in case.files if name.endswith(".cfg") and "/" not in name]
    domain = case.boots[-1].domain if case.boots else ""
    chosen = next((name for name in names if name == f"{domain}.cfg"), names[-1] if names else "")
    return _text(directory / chosen) if chosen else ""


def backtrace(directory: Path) -> str:
    """The backtraces of the guest and of Xen with source files and lines (harness.plugin.backtraces), or "".

    ``directory`` is the case's own.
    """
    guest, xen = _text(directory / "backtrace.txt"), _text(directory / "xen-backtrace.txt")
    return "\n".join(filter(None, (guest, f"Xen:\n{xen}" if xen else "")))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")[:_LONGEST]
    except OSError:
        return ""
