# SPDX-License-Identifier: BSD-2-Clause
"""The stages of a boot: the line that marks each stage, and the time budget for the next one.

Each guest OS has a table of them (:mod:`harness.guests.os`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage, marked by a line that matches ``pattern``. The pattern cannot match without the bytes ``literal``.

    ``budget`` is the longest time (s) from this stage to the next one.
    """

    name: str
    literal: bytes
    pattern: re.Pattern[bytes]
    budget: float


# Bytes in the order of their frequency in console output, the most frequent first.
_FREQUENT = b" etaoinsrhdlu0123456789cmfpgwybvk:.,-/=xjqz_"


def rarest(literal: bytes) -> bytes:
    """The least frequent byte of ``literal``. A search for this byte is fast and rules out most output."""
    return max((literal[n : n + 1] for n in range(len(literal))), key=lambda byte: _FREQUENT.find(byte) % (len(_FREQUENT) + 1))


@dataclass(frozen=True)
class StageReached:
    """A stage that the boot reached ``at`` a time (monotonic s); ``offset`` is that of its line in the log (bytes)."""

    name: str
    at: float
    offset: int


def stage(name: str, literal: bytes, pattern: bytes, budget: float) -> Stage:
    """A stage whose ``pattern`` is compiled with MULTILINE."""
    return Stage(name, literal, re.compile(pattern, re.MULTILINE), budget)


# The longest time (s) from unpausing the domain to its first output.
FIRST_LINE = 60.0
