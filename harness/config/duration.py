# SPDX-License-Identifier: BSD-2-Clause
"""Durations as users write them."""

from __future__ import annotations

import re

from harness.errors import UsageError

# 10m   90s   1h   600
_DURATION = re.compile(r"([0-9]{1,6})([smh]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> int:
    """The seconds of a duration such as ``10m``, ``90s`` or ``1h``; 0 for "". Raises UsageError."""
    match = _DURATION.fullmatch(text)
    if text and (match is None or not int(match[1])):
        raise UsageError(f"{text}: not a duration", hint="write 90s, 10m or 1h")
    return int(match[1]) * _UNITS[match[2]] if match else 0
