# SPDX-License-Identifier: BSD-2-Clause
"""Tracebacks without the position markers of PEP 657, on Python versions where these can end a run.

To place the markers, the traceback module parses the source line into a syntax tree, and pytest parses source to show a failure.
Before Python 3.11.8 and 3.12.2, two threads that do this at the same time fail with SystemError (cpython gh-106905). When a lab
dies, paramiko and qemu.qmp format tracebacks in threads, for a log without readers, while pytest shows the failure of the case.
This ended the whole run.
"""

from __future__ import annotations

import sys
import traceback


def affected(version: tuple[int, ...]) -> bool:
    """Whether this Python version, for example (3, 11, 2), has the bug."""
    return (3, 11) <= version < (3, 11, 8) or (3, 12) <= version < (3, 12, 2)


def apply() -> None:
    """Switch the markers off in this process, if its Python has the bug."""
    if affected(sys.version_info[:3]):
        traceback._extract_caret_anchors_from_line_segment = lambda segment: None  # type: ignore[attr-defined]
