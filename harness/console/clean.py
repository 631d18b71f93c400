# SPDX-License-Identifier: BSD-2-Clause
"""Removes a collector's prefix, escape sequences and erased characters from console bytes.

A collector (syslog, conserver, ts, tio, xenconsoled --timestamp, Xen's own log) prefixes every line in one format. The format is
detected once per stream. The cleaned text keeps a map to the offsets of the raw log.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from dataclasses import dataclass

from harness.safetext import ESCAPE

# -- prefixes ---------------------------------------------------------------------------------------------------------

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )"
_TIME = r"\d\d?:\d\d:\d\d(?:[.,:]\d{1,9})?(?: ?[AP]M)?"
_ZONE = r"(?:Z| ?[+-]\d\d:?\d\d| (?:UTC|GMT|[CEW]ES?T|[ACEMP][SD]T|BST|IST|MSK|[HJKS]ST|A[CEKW][SD]T|NZ[SD]T))?"
# The first format that matches the beginning of a line counts.
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
# The separator after a stamp; an empty line may have none:
# "04:05:06: text"   "04:05:06 | text"   "04:05:06<tab>text"
_SEPARATOR = re.compile(rb"(?: ?[:|>,;-]{1,2})?[ \t]?")
_EMPTY = rb"(?=\r*(?:\n|\Z))"
# [   12.345678]   Linux itself writes such stamps (printk.time), so they belong to a collector only in output of other kernels.
_PRINTK = re.compile(rb"\[ *\d{1,8}\.\d{6}\]")
_FREEBSD = re.compile(
    rb"The FreeBSD Project|---<<BOOT>>---|KDB: |BTX loader|Trying to mount root|Fatal trap \d|/frame 0x|mountroot> |\bdb> "
    rb"|cpuid = \d|Enter full pathname of shell|Uptime: \d|ERROR: ABORTING BOOT|GEOM|xenbusb|FreeBSD/"
)
# Beginnings of lines of kernels and loaders.
_KERNEL = re.compile(
    rb"Copyright \(c\) |---<<BOOT>>|KDB: |panic: |Fatal (?:trap|double)|Trying to mount root|FreeBSD|BTX |cpuid = |CPU: |Uptime: "
    rb"|(?:\[ *\d+\.\d+\] )?(?:Linux version|Kernel panic|BUG: |Oops: |Command line: )"
)
_DOMAIN = re.compile(rb"\(d\d+\)")
# The parts of a prefix, in any order.
_PARTS = (
    # <14>     <134>1           (syslog's priority; the 1 is RFC 5424's version)
    re.compile(rb"<\d{1,3}>(?:1(?= ))?"),
    # (d3)                      (a domain's console in Xen's log)
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
# Words that are equal on each line: (format, number of lines that are required after a stamp, and without a stamp). 0: never.
_TAGS = (
    # box xl 123 - - text       (syslog, RFC 5424)
    (re.compile(rb"[\w.:-]+ [\w./()-]+ (?:\d+|-) (?:[\w-]+|-) (?:-|\[[^\]\r\n]*\]) "), 3, 0),
    # stdout F text             00O text            (logs of containers and of CI jobs)
    (re.compile(rb"std(?:out|err) [FP] |\d\d[OE][ +]"), 3, 0),
    # box xl[123]: text         (syslog)
    (re.compile(rb"[\w.:-]+ [\w./()-]+(?:\[\d+\])?: "), 3, 12),
    # xl[123]: text             guest1: text              guest1  | text
    (re.compile(rb"[\w./()-]{1,40}(?:\[\d+\])?(?:: | *\| |> )"), 8, 12),
    # [guest1] text
    (re.compile(rb"\[[A-Za-z][\w./-]{0,40}\]:? "), 8, 12),
    # box text                  (only a host's name)
    (re.compile(rb"[A-Za-z][\w.-]{0,40} "), 8, 0),
)
# The share of the lines, without empty ones, that must have the prefix, and the words of a tag.
_SHARE, _TAG_SHARE = 0.75, 0.9
# Search at most this many lines and bytes for a prefix.
LINES, SAMPLE = 20, 1 << 14


def prefix(sample: bytes, lines: int = LINES) -> re.Pattern[bytes] | None:
    """A pattern for the prefix of the lines of ``sample``, a stream's first bytes; None if there is no prefix.

    The pattern matches at the beginning of a line. A stamp needs two lines, words need more.
    """
    # In Xen's own log, Xen's lines have their stamp after "(XEN) ", between the lines of a domain.
    *whole, last = (line.lstrip(b"\r") for line in sample.split(b"\n"))
    rows = [row for row in whole if row.strip() and not row.startswith(b"(XEN) ")][:lines]
    linux = not _FREEBSD.search(sample)
    # An incomplete line may lack a part of its prefix.
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
        found = Counter(match[0] for row, at in fit if row[at:].strip() and (match := _SEPARATOR.match(row, at)))
        separator = found.most_common(1)[0][0] if found else b" "
        form += rb"(?:%s)(?:%s|%s)" % (part.pattern, re.escape(separator), _EMPTY)
        rows = [row[at:].removeprefix(separator) for row, at in fit]
    tag = _tag(rows, bool(parts))
    return re.compile(form + tag) if form or tag else None


def _shape(row: bytes, linux: bool) -> tuple[re.Pattern[bytes], ...]:
    """The parts of a prefix at the beginning of a line. It does not include the stamp of a Linux kernel."""
    found: list[re.Pattern[bytes]] = []
    at = 0
    while len(found) < 4:
        if linux and _PRINTK.match(row, at):
            break
        match = next((match for part in _PARTS if (match := part.match(row, at))), None)
        if match is None:
            break
        found.append(match.re)
        separator = _SEPARATOR.match(row, match.end())
        at = separator.end() if separator else match.end()
    return tuple(found)


def _tag(rows: list[bytes], stamped: bool) -> bytes:
    """A pattern for the words at the beginning of nearly all ``rows``; b"" if there are none."""
    rows = [row for row in rows if row.strip()]
    for form, behind, alone in _TAGS:
        words = Counter(match[0] for row in rows if (match := form.match(row)))
        if not words or not (stamped or alone):
            continue
        word, count = words.most_common(1)[0]
        # Without a stamp, it could be a driver's name. It counts only if it also precedes other lines of a kernel.
        if not stamped and not any(_KERNEL.match(row.removeprefix(word)) for row in rows if row.startswith(word)):
            continue
        if count >= max(behind if stamped else alone, _TAG_SHARE * len(rows)):
            return b"(?:%s)?" % re.escape(word) if stamped else re.escape(word)
    return b""


# -- cleaning ---------------------------------------------------------------------------------------------------------

# Every alternative begins with a fixed byte, so that a search is fast.
# ESC [ 11 ; 01 H   moves the cursor and so begins another line, unless the cursor is already there.
# A firmware moves the cursor for each character. ESC [ 2 J   clears the screen and begins a line.
_MOVES = rb"\x1b(?P<moves>\[(?:(?P<row>\d{0,5})(?:;(?P<column>\d{0,5}))?[Hf]|2J))"
# An incomplete escape sequence at the end of the data.
_CUT_ESCAPE = rb"\x1b(?:\[[0-?]*[ -/]*|\]P[0-9A-Fa-f]{0,6}|(?:\](?![PR])|[P^_X])[^\x07\x1b\r\n]{0,256}\x1b?|[ -/]*)?\Z"
# "|BS/BS-BS" is the progress indicator of a loader; "xBS BS" is an erased character.
_NOISE = b"|".join((_MOVES, _CUT_ESCAPE, ESCAPE.encode(), rb"(?P<erases>\x08)", rb"\x00"))


@dataclass(frozen=True)
class Cleaned:
    """The cleaned ``text`` of a piece of a log, with a map between its offsets and those of the raw piece."""

    text: bytes
    _places: tuple[int, ...] = ()
    _raws: tuple[int, ...] = ()

    def raw(self, place: int) -> int:
        """The raw offset of the byte at ``place`` in the text."""
        n = bisect.bisect_right(self._places, place) - 1
        return place if n < 0 else self._raws[n] + place - self._places[n]

    def place(self, raw: int) -> int:
        """The offset in the text of the byte at ``raw``, or of the next byte that was kept."""
        n = bisect.bisect_right(self._raws, raw) - 1
        return min(len(self.text), raw if n < 0 else self._places[n] + raw - self._raws[n])


class Cleaner:
    """Removes a prefix, if there is one, and everything that controls a terminal."""

    def __init__(self, prefix: re.Pattern[bytes] | None = None) -> None:
        self.prefix = prefix
        self._noise = re.compile(_NOISE)
        if prefix is not None:
            self._first = re.compile(rb"\r*(?:%s)" % prefix.pattern)
            self._stamp = re.compile(rb"\n(?P<stamp>\r*(?:%s))" % prefix.pattern)
            self._both = re.compile(self._stamp.pattern + b"|" + _NOISE)

    def clean(self, data: bytes) -> Cleaned:
        """Clean ``data``, which must begin at a line's beginning. An incomplete escape sequence at its end is removed."""
        noisy = b"\x1b" in data or b"\x08" in data or b"\0" in data
        if self.prefix is None and not noisy:
            return Cleaned(data)
        pieces: list[bytes] = []
        places: list[int] = []
        raws: list[int] = []
        at = length = 0
        # The last position of the cursor, and its offset in the text.
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
        """The text of :meth:`clean` without the map."""
        return self.clean(data).text


def cleaned(data: bytes) -> bytes:
    """Clean ``data`` with the prefix that is found in it, for data without a known stream."""
    if data.startswith(b"\x1b"):
        found = prefix(Cleaner().text(data[:SAMPLE]), 64)
    else:
        found = prefix(data[:SAMPLE], 64)
    return Cleaner(found).text(data)
