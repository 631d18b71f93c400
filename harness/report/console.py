# SPDX-License-Identifier: BSD-2-Clause
"""The end of a console log as lines with times, the death marked, and the lines of other logs in between."""

from __future__ import annotations

import bisect
import math
import re
from dataclasses import dataclass
from pathlib import Path

from harness.console.text import decode
from harness.results.model import Boot
from harness.safetext import plain

# How much of a log's end the page shows, and how much of its index is read for that (bytes).
TAIL, _INDEX_TAIL = 24_000, 512_000
# Lines of a log without time stamps.
_UNTIMED = 40
# (XEN) [   12.345678] d1v0 Triple fault      Not matched: (XEN) [00000012deadbeef], of console_timestamps=raw
_XEN_LINE = re.compile(r"^\(XEN\) \[ *(\d+\.\d+)\] (.*)$")
# [   12.345678] vif vif-3-0 vif3.0: Guest Rx ready      [   12.345678] /local/domain/3/device/vif/0/state = "4"
_UPTIME_LINE = re.compile(r"^\[ *(\d+\.\d+)\] (.*)$")


@dataclass(frozen=True)
class Line:
    """A line of the guest's console or of another log, or an action of the case."""

    at: float | None
    """Seconds since the domain was unpaused, if known."""
    text: str
    kind: str = "guest"
    """``guest``, ``xen``, ``dom0``, ``xenstore``, ``qemu``, ``action`` or ``death``."""


def lines(log: Path, boot: Boot | None, *, tail: int = TAIL) -> list[Line]:
    """The last ``tail`` bytes of ``log``, as lines. Raises OSError if the file cannot be read."""
    size = log.stat().st_size
    start = max(0, size - tail)
    with log.open("rb") as stream:
        stream.seek(start)
        data = stream.read(tail)
    if start:
        cut = data.find(b"\n") + 1
        start, data = start + cut, data[cut:]
    offsets, times = _index(Path(f"{log}.idx"))
    zero = boot.unpaused if boot is not None else None
    found, position = [], start
    for raw in data.split(b"\n"):
        found.append(Line(_time(position, offsets, times, zero), plain(decode(raw + b"\n")).rstrip("\n")))
        position += len(raw) + 1
    while found and not found[-1].text.strip():
        found.pop()
    return _mark_death(found, boot)


def merge(guest: list[Line], others: list[Line]) -> list[Line]:
    """All lines by time. A guest's line without a time stays after its predecessor. Drops other lines before the guest's first."""
    keyed, last = [], float("-inf")
    for n, line in enumerate(guest):
        last = line.at if line.at is not None else last
        keyed.append((last, 0, n, line))
    first = next((at for at, *_ in keyed if at > float("-inf")), float("inf"))
    keyed += [(line.at, 1, n, line) for n, line in enumerate(others) if line.at is not None and line.at >= first]
    return [line for *_, line in sorted(keyed, key=lambda item: item[:3])]


def xen_lines(text: str, clock: float | None, unpaused: float | None) -> list[Line]:
    """The hypervisor's log with times since the domain was unpaused.

    ``clock`` is the time (monotonic s) of the log's last line with a time stamp. The result is empty without it.
    """
    stamped = [match for match in map(_XEN_LINE.match, text.splitlines()) if match]
    if clock is None or unpaused is None or not stamped:
        return []
    shift = clock - float(stamped[-1][1]) - unpaused
    return [Line(float(match[1]) + shift, plain(match[2]), "xen") for match in stamped]


def uptime_lines(text: str, clock: float | None, uptime: float | None, unpaused: float | None, kind: str) -> list[Line]:
    """A log with dom0's uptime in front of each line, with times since the domain was unpaused.

    ``clock`` (monotonic s) and ``uptime`` (s since dom0 booted) were read at the same time. The result is empty without them.
    """
    if clock is None or uptime is None or unpaused is None:
        return []
    shift = clock - uptime - unpaused
    stamped = (match for match in map(_UPTIME_LINE.match, text.splitlines()) if match)
    return [Line(float(match[1]) + shift, plain(match[2]), kind) for match in stamped]


def untimed_lines(text: str, kind: str) -> list[Line]:
    """The last lines of a log without time stamps."""
    return [Line(None, plain(line), kind) for line in text.splitlines()[-_UNTIMED:] if line.strip()]


def _index(path: Path) -> tuple[list[int], list[float]]:
    """Offsets (bytes) and times (monotonic s) from the end of the index; empty if there is no index."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _INDEX_TAIL))
            rows = stream.read().decode("ascii", "replace").splitlines()
    except OSError:
        return [], []
    offsets, times = [], []
    for row in rows:
        # 2064 12521.153653
        match = re.fullmatch(r"(\d+) (\d+\.\d+)", row)
        if match:
            offsets.append(int(match[1]))
            times.append(float(match[2]))
    return offsets, times


def _time(position: int, offsets: list[int], times: list[float], zero: float | None) -> float | None:
    where = bisect.bisect_right(offsets, position) - 1
    return times[where] - zero if where >= 0 and zero is not None else None


def _mark_death(found: list[Line], boot: Boot | None) -> list[Line]:
    if boot is None or boot.died is None:
        return found
    message = boot.death.split(" / ")[0]
    hits = [n for n, line in enumerate(found) if message and message in line.text]
    if hits:
        where = hits[0]
    elif math.isinf(boot.died):  # the time is unknown, or another guest died
        return found
    else:
        late = [n for n, line in enumerate(found) if line.at is not None and line.at > boot.died]
        where = late[0] - 1 if late else len(found) - 1
    return [Line(line.at, line.text, "death" if n == where else line.kind) for n, line in enumerate(found)]
