# SPDX-License-Identifier: BSD-2-Clause
"""Checks of the values in ``fxh.toml``, in the environment and on the command line. Each key declares one where it is defined."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from harness.errors import UsageError

Check = Callable[[Any], str]
"""Returns the hint for an invalid value, or "" for a valid one. A list is checked word by word."""

YEAR = 366 * 24 * 3600
"""Seconds. The longest time: the system calls that wait refuse much longer ones."""
MOST_MEMORY = 1 << 24
"""MiB. A larger number was meant in another unit."""


def text(value: str) -> str:
    """Any text without control characters, which no name, path or address needs."""
    return "" if value.isprintable() else "remove the control characters and line ends"


def argument(value: str) -> str:
    """A word of a command: a script in it may have several lines, but execve(2) ends it at a NUL."""
    return "remove the NUL characters" if "\0" in value else ""


def between(least: int, most: int) -> Check:
    """A number from ``least`` to ``most``."""
    return lambda value: "" if least <= value <= most else f"use a number from {least} to {most}"


def zero_or(check: Check) -> Check:
    """0 for a default that is not a number, else as ``check``."""
    return lambda value: value and check(value) and f"{check(value)}, or 0 for the default"


def positive(most: int) -> Check:
    """A number above 0, up to ``most``."""
    # NaN is neither smaller nor larger than any number.
    return lambda value: "" if math.isfinite(value) and 0 < value <= most else f"use a number above 0, {most} at most"


def one_of(*words: str) -> Check:
    return lambda value: "" if value in words else f"valid values: {', '.join(words)}"


def matching(pattern: str, hint: str) -> Check:
    """Text that ``pattern`` matches as a whole."""
    return lambda value: text(value) or ("" if re.fullmatch(pattern, value) else hint)


def parsed_by(parse: Callable[[str], object]) -> Check:
    """Text for which ``parse`` raises no UsageError."""

    def check(value: str) -> str:
        try:
            parse(value)
        except UsageError as exc:
            return exc.hint
        return text(value)

    return check
