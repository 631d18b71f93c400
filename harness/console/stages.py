# SPDX-License-Identifier: BSD-2-Clause
"""The stages of a boot: the line that shows that a stage was reached, and how long the next one may take.

Each guest OS has a table of them (:mod:`harness.guests.os`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Reached when ``pattern`` is found. ``literal`` is a byte string without which the pattern cannot match.

    ``budget`` is how many seconds may pass, after this stage, until the next one is reached.
    """

    name: str
    literal: bytes
    pattern: re.Pattern[bytes]
    budget: float


# Bytes of console output, the most frequent first.
_FREQUENT = b" etaoinsrhdlu0123456789cmfpgwybvk:.,-/=xjqz_"


def rarest(literal: bytes) -> bytes:
    """The byte of ``literal`` that output holds least often: a search for it alone is many times faster, and mostly in vain."""
    return max((literal[n : n + 1] for n in range(len(literal))), key=lambda byte: _FREQUENT.find(byte) % (len(_FREQUENT) + 1))


@dataclass(frozen=True)
class StageReached:
    """``at`` is monotonic time in seconds, ``offset`` the stage's place in the console log in bytes."""

    name: str
    at: float
    offset: int


def stage(name: str, literal: bytes, pattern: bytes, budget: float) -> Stage:
    """A stage whose ``pattern`` is compiled with MULTILINE."""
    return Stage(name, literal, re.compile(pattern, re.MULTILINE), budget)


# Seconds from unpausing the domain to the first line of all.
FIRST_LINE = 60.0
