# SPDX-License-Identifier: BSD-2-Clause
"""Describes a short capture of one link: the sizes, the checksums and the holes of both directions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from harness.oracles.frames import Capture, Frame, bad_checksums, largest


@dataclass(frozen=True)
class Direction:
    """The TCP and UDP packets from one address. ``bad`` have a wrong checksum; the sender left ``blank`` of them to the device (see Frame)."""

    packets: int
    data: int
    bad: int
    blank: int
    largest: int
    missing: int
    repeated: int

    def __str__(self) -> str:
        parts = [f"{self.packets} packets, {self.data} with data"]
        if self.bad > self.blank:
            parts.append(f"{self.bad - self.blank} damaged")
        if self.blank:
            parts.append(f"{self.blank} whose checksum is left to the device")
        if self.data:
            parts.append(f"largest payload {self.largest}")
        if self.missing:
            parts.append(f"{self.missing} bytes missing in between")
        if self.repeated:
            parts.append(f"{self.repeated} repeated")
        return ", ".join(parts)


def direction(frames: Iterable[Frame], source: str) -> Direction:
    """The packets of a capture that come from ``source``."""
    own = [frame for frame in frames if frame.source == source]
    blank = sum(frame.blank for frame in own)
    return Direction(len(own), sum(frame.payload > 0 for frame in own), bad_checksums(own), blank, largest(own), *gaps(own))


def others(capture: Capture) -> str:
    """``3 of ethertype 0x0806, 1 fragment``: what else the capture has, and its damage."""
    skipped = [f"{count} {reason}" for reason, count in sorted(capture.skipped.items())]
    return ", ".join([*skipped, *([capture.damage] if capture.damage else [])])


def gaps(frames: Iterable[Frame]) -> tuple[int, int]:
    """Return the missing bytes between the first and the last byte of each TCP connection, and the frames that repeat sent bytes."""
    streams: dict[tuple[str, str, tuple[int, int]], list[Frame]] = {}
    for frame in frames:
        if frame.protocol == "tcp" and frame.payload:
            streams.setdefault((frame.source, frame.target, frame.ports), []).append(frame)
    missing = repeated = 0
    for stream in streams.values():
        # Sequence numbers wrap at 2^32 (RFC 9293), and a stream here is short: count from the first one.
        start = stream[0].sequence - (1 << 31)
        spans = [((frame.sequence - start) % (1 << 32), frame.payload) for frame in stream]
        # The bytes seen so far, as disjoint spans.
        covered: list[tuple[int, int]] = []
        for begin, size in spans:
            repeated += any(first <= begin and begin + size <= last for first, last in covered)
            covered = _joined([*covered, (begin, begin + size)])
        missing += sum(begin - end for (_, end), (begin, _) in itertools.pairwise(covered))
    return missing, repeated


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in disjoint spans, in order."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found
