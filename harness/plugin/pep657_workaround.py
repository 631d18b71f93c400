# SPDX-License-Identifier: BSD-2-Clause
"""Tracebacks without the marks below a line, on Pythons where they can end a run.

For those marks (PEP 657) the traceback module makes a syntax tree of the line, and pytest makes one to show a failure. Before
Python 3.11.8 and 3.12.2 two threads that do so at the same time fail with SystemError (cpython gh-106905). When a lab dies
paramiko and qemu.qmp format tracebacks in threads, for a log that nobody reads, while pytest shows the failure of the case:
that ended the whole run.
"""

from __future__ import annotations

import sys
import traceback


def affected(version: tuple[int, ...]) -> bool:
    """Whether this Python, for example (3, 11, 2), has that defect."""
    return (3, 11) <= version < (3, 11, 8) or (3, 12) <= version < (3, 12, 2)


def off() -> None:
    """From here on, in this process."""
    if affected(sys.version_info[:3]):
        traceback._extract_caret_anchors_from_line_segment = lambda segment: None  # type: ignore[attr-defined]
