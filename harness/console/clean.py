# SPDX-License-Identifier: BSD-2-Clause
"""Console bytes without what is no part of a line: a collector's prefix, escape sequences, erased characters.

A collector (syslog, conserver, ts, tio, xenconsoled --timestamp, Xen's own log) puts a prefix of one form on every line. It is
found once per stream; then every rule about lines applies again. Offsets stay those of the raw log.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from dataclasses import dataclass

from harness.console.text import ESCAPE

# -- prefixes ---------------------------------------------------------------------------------------------------------

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )"
_TIME = r"\d\d?:\d\d:\d\d(?:[.,:]\d{1,9})?(?: ?[AP]M)?"
_ZONE = r"(?:Z| ?[+-]\d\d:?\d\d| (?:UTC|GMT|[CEW]ES?T|[ACEMP][SD]T|BST|IST|MSK|[HJKS]ST|A[CEKW][SD]T|NZ[SD]T))?"
# A sample above each form. The first form that fits a line's beginning is taken.
_STAMPS = (
    # 2024-02-03T04:05:06.789Z     2024-02-03 04:05:06,123     2024/02/03 04:05:06     2024-02-03 04:05:06+0000 (xenconsoled)
    rf"\d{{4}}[-/.]\d\d[-/.]\d\d[T _]{_TIME}{_ZONE}",
    # 20240203T040506Z
    r"\d{8}[T _-]\d{6}Z?",
    # 03/02/2024 04:05:06     3.2.24, 04:05:06
    rf"\d\d?[-/.]\d\d?[-/.]\d{{2,4}},? {_TIME}{_ZONE}",
    # Feb  3 04:05:06.100001     Feb 03 2024 04:05:06     Sat Feb  3 04:05:06 UTC 2024 (date, conserver)
    rf"{_DAY}?{_MONTH} {{1,2}}\d{{1,2}}(?:,? \d{{4}})?,? {_TIME}{_ZONE}(?: \d{{4}}(?!\d))?",
    # Sat, 03 Feb 2024 04:05:06 +0000     03/Feb/2024:04:05:06 +0000
    rf"{_DAY}?\d{{1,2}}[ /-]{_MONTH}[ /-]\d{{2,4}}[ :]{_TIME}{_ZONE}",
    # 04:05:06.789     4:05:06 PM
    rf"{_TIME}{_ZONE}",
    # 1706933106.789     1706933106789
    r"1\d{9}(?:[.,]\d{1,9}|\d{3}|\d{6})?",
    # 12.345678     +12.345s     (since the start)
    r" *\+?\d{1,8}\.\d{2,9}(?: ?s)?",
)
# What may follow a stamp: "04:05:06: text"   "04:05:06 | text"   "04:05:06<tab>text"; nothing where the line is empty.
_BETWEEN = re.compile(rb"(?: ?[:|>,;-]{1,2})?[ \t]?")
_EMPTY = rb"(?=\r*(?:\n|\Z))"
# [   12.345678]   A Linux kernel stamps its lines so itself (printk.time): a collector's only on lines that Linux does not print.
_PRINTK = re.compile(rb"\[ *\d{1,8}\.\d{6}\]")
_FREEBSD = re.compile(
    rb"The FreeBSD Project|---<<BOOT>>---|KDB: |BTX loader|Trying to mount root|Fatal trap \d|/frame 0x|mountroot> |\bdb> "
    rb"|cpuid = \d|Enter full pathname of shell|Uptime: \d|ERROR: ABORTING BOOT|GEOM|xenbusb|FreeBSD/"
)
# How lines of kernels and loaders begin.
_KERNEL = re.compile(
    rb"Copyright \(c\) |---<<BOOT>>|KDB: |panic: |Fatal (?:trap|double)|Trying to mount root|FreeBSD|BTX |cpuid = |CPU: |Uptime: "
    rb"|(?:\[ *\d+\.\d+\] )?(?:Linux version|Kernel panic|BUG: |Oops: |Command line: )"
)
_DOMAIN = re.compile(rb"\(d\d+\)")
# Parts of a prefix, in any order.
_PARTS = (
    # <14>     <134>1           (syslog's priority; the 1 is RFC 5424's version)
    re.compile(rb"<\d{1,3}>(?:1(?= ))?"),
    # (d3)                      (Xen's log of a domain's console)
    _DOMAIN,
    _PRINTK,
    # [0.123456 0.000321]       (grabserial: since the start, since the line before)
    re.compile(rb"\[ *\d+\.\d+ +\d+\.\d+\]"),
    # [0000002345abcdef]        (Xen, console_timestamps=raw)
    re.compile(rb"\[[0-9a-f]{16}\]"),
    # "     7<tab>text"         (cat -n)
    re.compile(rb" *\d{1,9}(?=\t)"),
    *(re.compile(rf"(?:\[ ?{form} ?\]|\({form}\)|<{form}>|{form}(?=[ \t:|>,;-]|\r*(?:\n|\Z)))".encode()) for form in _STAMPS),
)
# Words that are the same on each line: (form, so many lines have them behind a stamp, without one). 0: not without one.
_TAGS = (
    # box xl 123 - - text       (RFC 5424)
    (re.compile(rb"[\w.:-]+ [\w./()-]+ (?:\d+|-) (?:[\w-]+|-) (?:-|\[[^\]\r\n]*\]) "), 3, 0),
    # stdout F text             00O text            (logs of containers and of CI jobs)
    (re.compile(rb"std(?:out|err) [FP] |\d\d[OE][ +]"), 3, 0),
    # box xl[123]: text         (syslog)
    (re.compile(rb"[\w.:-]+ [\w./()-]+(?:\[\d+\])?: "), 3, 12),
    # xl[123]: text             guest1: text              guest1  | text
    (re.compile(rb"[\w./()-]{1,40}(?:\[\d+\])?(?:: | *\| |> )"), 8, 12),
    # [guest1] text
    (re.compile(rb"\[[A-Za-z][\w./-]{0,40}\]:? "), 8, 12),
    # box text                  (a host's name alone)
    (re.compile(rb"[A-Za-z][\w.-]{0,40} "), 8, 0),
)
# Lines that have the form, of all that are not empty.
_SHARE, _TAG_SHARE = 0.75, 0.9
# A prefix is sought in so many lines and bytes at most.
LINES, SAMPLE = 20, 1 << 14


def prefix(sample: bytes, lines: int = LINES) -> re.Pattern[bytes] | None:
    """The prefix that a collector put on the lines of ``sample``, a stream's first bytes; None when there is none.

    The pattern matches at the beginning of a line. Two lines are enough for a stamp, more are needed for words.
    """
    # A line of Xen's own log has its stamp behind "(XEN) ", between those of a domain.
    *whole, last = (line.lstrip(b"\r") for line in sample.split(b"\n"))
    rows = [row for row in whole if row.strip() and not row.startswith(b"(XEN) ")][:lines]
    linux = not _FREEBSD.search(sample)
    # A line that has no end yet may lack a part of its prefix.
    if len(rows) < lines and _shape(last, linux):
        rows.append(last)
    if not rows:
        return None
    counts = Counter(shape[: n + 1] for shape in (_shape(row, linux) for row in rows) for n in range(len(shape)))
    enough = max(2, _SHARE * len(rows))
    parts = max((shape for shape, count in counts.items() if count >= enough), key=len, default=())
    if not parts and counts[(_DOMAIN,)] >= _SHARE * len(rows):
        parts = (_DOMAIN,)
    form = b""
    for part in parts:
        fit = [(row, match.end()) for row in rows if (match := part.match(row))]
        follow = Counter(match[0] for row, at in fit if row[at:].strip() and (match := _BETWEEN.match(row, at)))
        between = follow.most_common(1)[0][0] if follow else b" "
        form += rb"(?:%s)(?:%s|%s)" % (part.pattern, re.escape(between), _EMPTY)
        rows = [row[at:].removeprefix(between) for row, at in fit]
    tag = _tag(rows, bool(parts))
    return re.compile(form + tag) if form or tag else None


def _shape(row: bytes, linux: bool) -> tuple[re.Pattern[bytes], ...]:
    """The parts that a line begins with; a Linux kernel's own stamp is none."""
    found: list[re.Pattern[bytes]] = []
    at = 0
    while len(found) < 4:
        if linux and _PRINTK.match(row, at):
            break
        match = next((match for part in _PARTS if (match := part.match(row, at))), None)
        if match is None:
            break
        found.append(match.re)
        between = _BETWEEN.match(row, match.end())
        at = between.end() if between else match.end()
    return tuple(found)


def _tag(rows: list[bytes], stamped: bool) -> bytes:
    """The words that nearly all of ``rows`` begin with, as a pattern."""
    rows = [row for row in rows if row.strip()]
    for form, behind, alone in _TAGS:
        words = Counter(match[0] for row in rows if (match := form.match(row)))
        if not words or not (stamped or alone):
            continue
        word, count = words.most_common(1)[0]
        # Without a stamp it could be a driver's name: a kernel's own lines stand behind it, too.
        if not stamped and not any(_KERNEL.match(row.removeprefix(word)) for row in rows if row.startswith(word)):
            continue
        if count >= max(behind if stamped else alone, _TAG_SHARE * len(rows)):
            return b"(?:%s)?" % re.escape(word) if stamped else re.escape(word)
    return b""


# -- cleaning ---------------------------------------------------------------------------------------------------------

# Each begins with one byte, so that a search is quick.
# ESC [ 11 ; 01 H   moves the cursor: what follows is another line, unless the cursor was there (a firmware moves it for each
# character). A screen that is cleared begins a line, too.
_MOVES = rb"\x1b(?P<moves>\[(?:(?P<row>\d{0,5})(?:;(?P<column>\d{0,5}))?[Hf]|2J))"
# An escape sequence whose end is still to come.
_CUT_ESCAPE = rb"\x1b(?:\[[0-?]*[ -/]*|\]P[0-9A-Fa-f]{0,6}|(?:\](?![PR])|[P^_X])[^\x07\x1b\r\n]{0,256}\x1b?|[ -/]*)?\Z"
# "|BS/BS-BS" turns while a loader reads; "xBS BS" is an erased character.
_NOISE = b"|".join((_MOVES, _CUT_ESCAPE, ESCAPE.encode(), rb"(?P<erases>\x08)", rb"\x00"))


@dataclass(frozen=True)
class Cleaned:
    """``text`` is what remains of a piece of a log. :meth:`raw` gives the place of a byte of it in that piece."""

    text: bytes
    _places: tuple[int, ...] = ()
    _raws: tuple[int, ...] = ()

    def raw(self, place: int) -> int:
        """Where the byte ``place`` of the text was before cleaning, in bytes."""
        n = bisect.bisect_right(self._places, place) - 1
        return place if n < 0 else self._raws[n] + place - self._places[n]

    def place(self, raw: int) -> int:
        """Where in the text the byte ``raw`` of the piece is, or what follows it."""
        n = bisect.bisect_right(self._raws, raw) - 1
        return min(len(self.text), raw if n < 0 else self._places[n] + raw - self._raws[n])


class Cleaner:
    """Removes a prefix, which may be None, and what a terminal would obey."""

    def __init__(self, prefix: re.Pattern[bytes] | None = None) -> None:
        self.prefix = prefix
        self._noise = re.compile(_NOISE)
        if prefix is not None:
            self._first = re.compile(rb"\r*(?:%s)" % prefix.pattern)
            self._stamp = re.compile(rb"\n(?P<stamp>\r*(?:%s))" % prefix.pattern)
            self._both = re.compile(self._stamp.pattern + b"|" + _NOISE)

    def clean(self, data: bytes) -> Cleaned:
        """``data`` begins with a line. An escape sequence that its end cuts off is removed, too."""
        noisy = b"\x1b" in data or b"\x08" in data or b"\0" in data
        if self.prefix is None and not noisy:
            return Cleaned(data)
        pieces: list[bytes] = []
        places: list[int] = []
        raws: list[int] = []
        at = length = 0
        # Where the cursor was put last, and where in the text that was.
        cursor, moved = (0, 0), -1
        if self.prefix is not None and (first := self._first.match(data)):
            at = first.end()
            places.append(0)
            raws.append(at)
        noise = self._noise if self.prefix is None else self._both if noisy else self._stamp
        for match in noise.finditer(data, at):
            found = match.lastgroup
            piece = data[at : match.start() + (found == "stamp")]
            if found == "erases" and piece[-1:] not in (b"\r", b"\n"):
                piece = piece[:-1]
            pieces.append(piece)
            length += len(piece)
            if found == "moves":
                to = int(match["row"] or 1), int(match["column"] or 1)
                if moved < 0 or to != (cursor[0], cursor[1] + length - moved):
                    pieces.append(b"\n")
                    length += 1
                cursor, moved = to, length
            at = match.end()
            places.append(length)
            raws.append(at)
        pieces.append(data[at:])
        return Cleaned(b"".join(pieces), tuple(places), tuple(raws))

    def text(self, data: bytes) -> bytes:
        """The text of :meth:`clean`."""
        return self.clean(data).text


def cleaned(data: bytes) -> bytes:
    """``data`` without the prefix that is found in itself, and without escapes: for a piece whose stream is not known."""
    if data.startswith(b"\x1b"):
        found = prefix(Cleaner().text(data[:SAMPLE]), 64)
    else:
        found = prefix(data[:SAMPLE], 64)
    return Cleaner(found).text(data)
