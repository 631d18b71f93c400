# SPDX-License-Identifier: BSD-2-Clause
"""Lines that a boot prints and an earlier boot of the same cell did not, or the other way round.

Numbers, addresses, dates and random names are normalised, and the order of lines is ignored, so two boots of one kernel do not differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.console.text import decode
from harness.safetext import plain

# FreeBSD/amd64 (fbsd) (xc0)     login:          control login:
_LOGIN = re.compile(r"^(?:\S+ )?login: ?", re.MULTILINE)
_VARIABLE = re.compile(
    "|".join(
        (
            r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b",  # 00:16:3e:33:98:82
            r"\b(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}\b(?:%\w+)?",  # fe80::216:3eff:fe33:9882%xn0
            r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b[ ,]",  # Mon Nov 30 22:41:16 UTC 2026
            r"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b",
            r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",  # a UUID
            r"0x[0-9a-f]+",
            r"\b[0-9a-f]{12,64}\b",
            r"\bfxh-[\w-]+",
            r"[0-9]+(?:\.[0-9]+)*",
        )
    ),
    re.IGNORECASE,
)
# [    1.234567] Linux     <118>rc
_STAMP = re.compile(r"^(?:<\d+>)?(?:\[ *\d+\.\d+\] ?)?")
# rc's progress, for example of fsck and of entropy:  ..  ...
_NOISE = re.compile(r"^[\W\d_#]*$")


@dataclass(frozen=True)
class Difference:
    """Lines as they were printed, escaped, in the order of the console that has them."""

    appeared: tuple[str, ...]
    disappeared: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.appeared or self.disappeared)

    def left_out(self, most: int) -> int:
        """How many lines are missing if only the first ``most`` of each kind are shown."""
        return max(0, len(self.appeared) - most) + max(0, len(self.disappeared) - most)


# Characters of a line that are shown.
_LINE = 240
LONGEST = 1 << 20
"""Bytes of a console that are compared. A boot prints some 10 kB."""


def compare(before: bytes, now: bytes) -> Difference:
    """Compare two consoles up to their first login prompt.

    If only one of them reached the prompt, the lines that the other did not get to are left out.
    """
    old, new = lines(before), lines(now)
    ended = [bool(_LOGIN.search(decode(data))) for data in (before, now)]
    appeared = tuple(text for key, text in new.items() if key not in old)
    disappeared = tuple(text for key, text in old.items() if key not in new)
    return Difference(() if ended == [False, True] else appeared, () if ended == [True, False] else disappeared)


def lines(data: bytes) -> dict[str, str]:
    """The lines of a boot by their normalised form, each with its first occurrence."""
    text = decode(data)
    login = _LOGIN.search(text)
    found: dict[str, str] = {}
    for line in plain(text[: login.start()] if login else text).splitlines():
        key = normalise(line)
        if key and not _NOISE.match(key):
            shown = line.strip()
            found.setdefault(key, shown if len(shown) <= _LINE else f"{shown[: _LINE - 1]}…")
    return found


def normalise(line: str) -> str:
    """``line`` without the parts that differ between two boots of one kernel."""
    return " ".join(_VARIABLE.sub("#", _STAMP.sub("", line.strip())).split())
