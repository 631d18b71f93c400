"""What was on a wire: a capture in, frames and counts out. Packets are taken apart by dpkt."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dpkt

_IPV6_HEADER = 40


@dataclass(frozen=True)
class Frame:
    """A TCP or UDP packet. ``payload`` in bytes; ``good`` is None where the capture does not hold all of it."""

    source: str
    target: str
    protocol: str
    payload: int
    sequence: int = 0
    good: bool | None = None


def read(path: Path) -> tuple[Frame, ...]:
    """The frames of a pcap file; what is no TCP or UDP is left out, and of IPv6 the fragments. A file that was cut short ends early."""
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
    if isinstance(packet, dpkt.ip.IP):
        protocol, header, length, whole = packet.p, packet.hl * 4, packet.len, not packet.mf and not packet.offset
    elif isinstance(packet, dpkt.ip6.IP6):
        protocol, header, length, whole = packet.nxt, _IPV6_HEADER, packet.plen and _IPV6_HEADER + packet.plen, True
    else:
        return None
    if protocol not in (dpkt.ip.IP_PROTO_TCP, dpkt.ip.IP_PROTO_UDP):
        return None
    # A frame of a whole GSO segment may be longer than 65535 bytes, and then says 0.
    length = length or len(data) - 14
    raw = data[14 + header : 14 + length]
    tcp = protocol == dpkt.ip.IP_PROTO_TCP
    if len(raw) < (20 if tcp else 8):
        return None
    offset = (raw[12] >> 4) * 4 if tcp else 8
    whole = whole and len(raw) == length - header
    return Frame(
        _text(packet.src), _text(packet.dst), "tcp" if tcp else "udp", length - header - offset,
        int.from_bytes(raw[4:8], "big") if tcp else 0,
        checksum_good(packet.src, packet.dst, protocol, raw) if whole else None,
    )  # fmt: skip


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def checksum_good(source: bytes, target: bytes, protocol: int, segment: bytes) -> bool:
    """Whether the TCP or UDP checksum in ``segment`` is right; a UDP packet of IPv4 may have none."""
    if protocol == dpkt.ip.IP_PROTO_UDP and segment[6:8] == b"\0\0":
        return len(source) == 4
    # RFC 9293, 3.1, and RFC 8200, 8.1: the fields have other sizes and places, and the same sum.
    pseudo = source + target + bytes((0, protocol)) + len(segment).to_bytes(4, "big")
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
