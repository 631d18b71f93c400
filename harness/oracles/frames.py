"""What was on a wire: a capture in, frames and counts out. Packets are taken apart by dpkt."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dpkt


@dataclass(frozen=True)
class Frame:
    """An IPv4 TCP or UDP packet. ``payload`` in bytes; ``good`` is None where the capture does not hold all of it."""

    source: str
    target: str
    protocol: str
    payload: int
    sequence: int = 0
    good: bool | None = None


def read(path: Path) -> tuple[Frame, ...]:
    """The frames of a pcap file; what is no IPv4 TCP or UDP is left out. A file that was cut short ends early."""
    found = []
    with path.open("rb") as file:
        try:
            for _, data in dpkt.pcap.Reader(file):
                frame = _frame(data)
                if frame is not None:
                    found.append(frame)
        except (ValueError, dpkt.NeedData):
            pass
    return tuple(found)


def _frame(data: bytes) -> Frame | None:
    try:
        packet = dpkt.ethernet.Ethernet(data).data
    except dpkt.UnpackError:
        return None
    if not isinstance(packet, dpkt.ip.IP) or packet.p not in (dpkt.ip.IP_PROTO_TCP, dpkt.ip.IP_PROTO_UDP):
        return None
    # A frame of a whole GSO segment may be longer than 65535 bytes, and then says 0.
    length = packet.len or len(data) - 14
    header = packet.hl * 4
    raw = data[14 + header : 14 + length]
    tcp = packet.p == dpkt.ip.IP_PROTO_TCP
    if len(raw) < (20 if tcp else 8):
        return None
    offset = (raw[12] >> 4) * 4 if tcp else 8
    whole = len(raw) == length - header
    return Frame(
        socket.inet_ntoa(packet.src), socket.inet_ntoa(packet.dst), "tcp" if tcp else "udp", length - header - offset,
        int.from_bytes(raw[4:8], "big") if tcp else 0,
        checksum_good(packet.src, packet.dst, packet.p, raw) if whole and not packet.mf and not packet.offset else None,
    )  # fmt: skip


def checksum_good(source: bytes, target: bytes, protocol: int, segment: bytes) -> bool:
    """Whether the TCP or UDP checksum in ``segment`` is right; a UDP packet may have none."""
    if protocol == dpkt.ip.IP_PROTO_UDP and segment[6:8] == b"\0\0":
        return True
    pseudo = source + target + bytes((0, protocol)) + len(segment).to_bytes(2, "big")
    return bool(dpkt.in_cksum(pseudo + segment) == 0)


def sent_by(frames: Iterable[Frame], address: str) -> tuple[Frame, ...]:
    """TCP frames from ``address`` that carry data."""
    return tuple(frame for frame in frames if frame.source == address and frame.protocol == "tcp" and frame.payload)


def largest(frames: Iterable[Frame]) -> int:
    return max((frame.payload for frame in frames), default=0)


def bad_checksums(frames: Iterable[Frame]) -> int:
    return sum(frame.good is False for frame in frames)


def repeated(frames: Iterable[Frame]) -> int:
    """Frames whose first byte had been sent before."""
    seen: set[tuple[str, str, int]] = set()
    count = 0
    for frame in frames:
        key = (frame.source, frame.target, frame.sequence)
        count += key in seen
        seen.add(key)
    return count
