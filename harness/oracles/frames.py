# SPDX-License-Identifier: BSD-2-Clause
"""Reads the TCP and UDP packets of a capture, and counts the frames that it skips.

The module reads headers with struct, because dpkt raises on some malformed frames and hides a frame's length on the wire. The tests
build their frames with dpkt, so that a mistake in one of the two is found.
Sources: draft-ietf-opsawg-pcap (the file), IEEE 802.1Q and 802.1ad, RFC 791, 768, 2675 (jumbograms), 3032 (MPLS), 4302 (AH), 6275
and 8754 (addresses of the checksum), 8200, 9293.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

_TCP, _UDP = 6, 17
_IPV4, _IPV6 = 0x0800, 0x86DD
# A smaller number in this place is the length of an IEEE 802.3 frame.
_ETHERTYPES = 0x600
_VLAN = (0x8100, 0x88A8, 0x9100, 0x9200, 0x9300)
_MPLS = (0x8847, 0x8848)
# IPv6 extension headers: _LONG lists those of (length + 1) * 8 bytes.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _ESP, _AH, _NO_NEXT, _OPTIONS = 0, 43, 44, 50, 51, 59, 60
_LONG = (_HOP_BY_HOP, _ROUTING, _OPTIONS, 135, 139, 140)
_JUMBO, _HOME_ADDRESS = 0xC2, 0xC9
_SOURCE_ROUTES = (131, 137)

# Link types (tcpdump.org/linktypes.html). _COOKED gives the offsets of the ethertype and of the network header.
_ETHERNET, _RAW, _LOOPBACK = 1, (12, 14, 101, 228, 229), (0, 108)
_COOKED = {113: (14, 16), 276: (0, 20)}
# AF_INET and AF_INET6 of FreeBSD, Linux, NetBSD and macOS, in either byte order.
_FAMILIES = {2: _IPV4, 10: _IPV6, 24: _IPV6, 28: _IPV6, 30: _IPV6}

# Byte order and size of a record's header by magic. The second magic has nanoseconds, the third more fields (Kuznetzov's libpcap).
_MAGICS = {
    magic.to_bytes(4, "big" if order == ">" else "little"): (order, size)
    for magic, size in ((0xA1B2C3D4, 16), (0xA1B23C4D, 16), (0xA1B2CD34, 24))
    for order in "<>"
}
_PCAPNG = b"\n\r\r\n"
# Bytes. A longer record is damage: Linux's BIG TCP passes frames of up to 512 KiB.
_LARGEST = 16 << 20


@dataclass(frozen=True)
class Frame:
    """A TCP or UDP packet.

    ``payload`` is in bytes, computed from the packet's length fields. ``good`` is whether the checksum is right, or None if the capture
    lacks bytes of the packet. ``blank`` is whether a wrong checksum covers only the pseudo header. Drivers with checksum offload
    leave the rest to the device.
    """

    source: str
    target: str
    protocol: str
    payload: int
    sequence: int = 0
    good: bool | None = None
    blank: bool = field(default=False, compare=False)
    ports: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Capture:
    """The frames of a capture. ``skipped`` counts the other frames by reason. ``damage`` is why the end of the file was not read."""

    frames: tuple[Frame, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    damage: str = ""

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]

    @property
    def summary(self) -> str:
        """The counts in one line: ``3 TCP or UDP packets; skipped: 2 of ethertype 0x0806, 1 fragment``."""
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{len(self.frames)} TCP or UDP packets; skipped: {skipped or 'none'}" + (f"; {self.damage}" if self.damage else "")


class _Skipped(Exception):
    """The frame is not a TCP or UDP packet that can be judged. The text is the reason."""


def read(path: Path) -> Capture:
    """Read the frames of a pcap file, up to the first damage. Raises only OSError."""
    found, skipped, damage = [], Counter[str](), ""
    with path.open("rb") as file:
        try:
            for kind, data, wire in records(file):
                frame = _frame(data, wire, kind)
                if isinstance(frame, Frame):
                    found.append(frame)
                else:
                    skipped[frame] += 1
        except ValueError as exc:
            damage = str(exc)
    return Capture(tuple(found), dict(skipped), damage)


def records(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Yield the link type, the captured bytes and the length on the wire of each record. Raises ValueError for a damaged file."""
    head = file.read(24)
    if head[:4] == _PCAPNG:
        raise ValueError("a pcapng file, which is not supported; tcpdump -w writes pcap")
    if len(head) < 24 or head[:4] not in _MAGICS:
        raise ValueError("not a pcap file")
    order, size = _MAGICS[head[:4]]
    # The upper half of the field is about the frame check sequence.
    kind = struct.unpack(f"{order}I", head[20:])[0] & 0xFFFF
    number = 0
    while head := file.read(size):
        number += 1
        if len(head) < size:
            raise ValueError(f"the file ends within the header of record {number}")
        captured, wire = struct.unpack_from(f"{order}II", head, 8)
        if captured > _LARGEST:
            raise ValueError(f"record {number} claims {captured} bytes")
        data = file.read(captured)
        if len(data) < captured:
            raise ValueError(f"the file ends within record {number}")
        yield kind, data, max(wire, captured)


# -- one frame --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packet:
    """An IP packet in a frame. ``at`` is the offset of its upper-layer header, ``end`` the offset of its end on the wire.

    ``source`` and ``target`` are the addresses in the header. ``ends`` are the two addresses that the checksum covers.
    """

    protocol: int
    at: int
    end: int
    source: bytes
    target: bytes
    ends: bytes
    sized: bool
    """Whether the length field is set. It can be 0 in a large segment that the driver has yet to cut."""


@dataclass(frozen=True)
class _Bytes:
    """The captured ``data`` of a frame with ``wire`` bytes. A read beyond either raises _Skipped."""

    data: bytes
    wire: int

    def take(self, at: int, size: int) -> bytes:
        if at + size > len(self.data):
            raise _Skipped("cut off by the snap length" if at + size <= self.wire else "truncated on the wire")
        return self.data[at : at + size]

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self.take(at, size), "big")


def _frame(data: bytes, wire: int = 0, kind: int = _ETHERNET) -> Frame | str:
    """Return the packet in the frame ``data`` of link type ``kind`` with ``wire`` bytes, or the reason to skip it."""
    try:
        return _packet(_Bytes(data, max(wire, len(data))), kind)
    except _Skipped as exc:
        return str(exc)


def _packet(raw: _Bytes, kind: int) -> Frame:
    network, at = _network(raw, kind)
    if network == _IPV4:
        packet = _ipv4(raw, at)
    elif network == _IPV6:
        packet = _ipv6(raw, at)
    else:
        raise _Skipped(f"of ethertype {network:#06x}" if network >= _ETHERTYPES else "of IEEE 802.3")
    return _tcp(raw, packet) if packet.protocol == _TCP else _udp(raw, packet)


def _network(raw: _Bytes, kind: int) -> tuple[int, int]:
    """Return the ethertype and the offset of the network header, which follows VLAN tags and MPLS labels."""
    if kind == _ETHERNET:
        network, at = raw.number(12, 2), 14
    elif kind in _COOKED:
        place, at = _COOKED[kind]
        network = raw.number(place, 2)
    elif kind in _RAW:
        return _by_version(raw, 0), 0
    elif kind in _LOOPBACK:
        number = raw.number(0, 4)
        return _FAMILIES.get(number) or _FAMILIES.get(int.from_bytes(number.to_bytes(4, "little"), "big"), 0), 4
    else:
        raise _Skipped(f"of link type {kind}")
    while network in _VLAN:
        network, at = raw.number(at + 2, 2), at + 4
    if network < _ETHERTYPES and raw.data[at : at + 6] == b"\xaa\xaa\x03\0\0\0":
        network, at = raw.number(at + 6, 2), at + 8
    if network in _MPLS:
        while not raw.number(at, 4) & 0x100:
            at += 4
        at += 4
        network = _by_version(raw, at)
    return network, at


def _by_version(raw: _Bytes, at: int) -> int:
    """Return the ethertype for the IP version in the header at ``at``."""
    version = raw.number(at, 1) >> 4
    if version not in (4, 6):
        raise _Skipped("without a known network header")
    return _IPV4 if version == 4 else _IPV6


def _ipv4(raw: _Bytes, at: int) -> _Packet:
    first, length, fragment, protocol = raw.number(at, 1), raw.number(at + 2, 2), raw.number(at + 6, 2), raw.number(at + 9, 1)
    size = (first & 15) * 4
    if first >> 4 != 4 or size < 20 or 0 < length < size:
        raise _Skipped("malformed")
    header = raw.take(at, size)
    if fragment & 0x3FFF:
        raise _Skipped("fragment")
    # The field is 0 if a large segment, which the driver has yet to cut, is too long for it.
    end = at + length if length else raw.wire
    source, target = header[12:16], header[16:20]
    upper = at + size
    while protocol == _AH:
        protocol, upper = raw.number(upper, 1), upper + (raw.number(upper + 1, 1) + 2) * 4
    return _require_tcp_or_udp(_Packet(protocol, upper, end, source, target, source + _routed(header[20:], target), length > 0))


def _routed(options: bytes, target: bytes) -> bytes:
    """Return the final destination of an IPv4 packet: the last address of a source route that is not used up, or ``target``."""
    at = 0
    while at + 2 < len(options) and options[at]:
        size = 1 if options[at] == 1 else options[at + 1]
        if not size:
            break
        if options[at] in _SOURCE_ROUTES and 7 <= size <= len(options) - at and options[at + 2] <= size - 3:
            return options[at + size - 4 : at + size]
        at += size
    return target


def _ipv6(raw: _Bytes, at: int) -> _Packet:
    header = raw.take(at, 40)
    if header[0] >> 4 != 6:
        raise _Skipped("malformed")
    length, protocol = int.from_bytes(header[4:6], "big"), header[6]
    source, target = header[8:24], header[24:40]
    end, upper = at + 40 + length if length else raw.wire, at + 40
    first, last, sized = source, target, length > 0
    while protocol in (*_LONG, _FRAGMENT, _AH):
        following, count = raw.take(upper, 2)
        size = 8 if protocol == _FRAGMENT else (count + 2) * 4 if protocol == _AH else (count + 1) * 8
        if upper + size > end:
            raise _Skipped("malformed")
        content = raw.take(upper, size)
        if protocol == _FRAGMENT and int.from_bytes(content[2:4], "big") & 0xFFF9:
            raise _Skipped("fragment")
        if protocol == _ROUTING and content[3]:
            last = _last_segment(content)
        options = _options(content[2:]) if protocol in (_HOP_BY_HOP, _OPTIONS) else {}
        if protocol == _HOP_BY_HOP and not length and len(options.get(_JUMBO, b"")) == 4:
            end, sized = at + 40 + int.from_bytes(options[_JUMBO], "big"), True
        if protocol == _OPTIONS and len(options.get(_HOME_ADDRESS, b"")) == 16:
            first = options[_HOME_ADDRESS]
        protocol, upper = following, upper + size
    return _require_tcp_or_udp(_Packet(protocol, upper, end, source, target, first + last if last else b"", sized))


def _options(data: bytes) -> dict[int, bytes]:
    """Return the options of an IPv6 extension header by type."""
    found, at = {}, 0
    while at + 1 < len(data):
        if data[at]:
            found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1] if data[at] else 1
    return found


def _last_segment(content: bytes) -> bytes:
    """Return the final destination in a routing header with segments left; b"" for an unknown type."""
    kind, addresses = content[2], content[8:]
    if kind == 0 and len(addresses) >= 16:
        return addresses[len(addresses) // 16 * 16 - 16 :][:16]
    # Type 2 has one address. In a segment routing header the last segment comes first.
    return addresses[:16] if kind in (2, 4) and len(addresses) >= 16 else b""


def _require_tcp_or_udp(packet: _Packet) -> _Packet:
    """Return the packet. Raises _Skipped for another protocol."""
    if packet.protocol not in (_TCP, _UDP):
        names = {_ESP: "encrypted (ESP)", _NO_NEXT: "without an upper-layer header"}
        raise _Skipped(names.get(packet.protocol, f"of IP protocol {packet.protocol}"))
    return packet


def _tcp(raw: _Bytes, packet: _Packet) -> Frame:
    if packet.at + 20 > packet.end:
        raise _Skipped("malformed")
    header = raw.take(packet.at, 20)
    offset = (header[12] >> 4) * 4
    if offset < 20 or packet.at + offset > packet.end:
        raise _Skipped("malformed")
    payload = packet.end - packet.at - offset
    return _with_checksum(raw, packet, packet.end, "tcp", payload, int.from_bytes(header[4:8], "big"))


def _udp(raw: _Bytes, packet: _Packet) -> Frame:
    if packet.at + 8 > packet.end:
        raise _Skipped("malformed")
    length = raw.number(packet.at + 4, 2)
    if not length and (not packet.sized or packet.end - packet.at > 0xFFFF):
        length = packet.end - packet.at
    if length < 8 or packet.at + length > packet.end:
        raise _Skipped("malformed")
    return _with_checksum(raw, packet, packet.at + length, "udp", length - 8)


def _with_checksum(raw: _Bytes, packet: _Packet, end: int, name: str, payload: int, sequence: int = 0) -> Frame:
    good, blank = None, False
    if packet.ends and end <= len(raw.data):
        half = len(packet.ends) // 2
        segment = raw.data[packet.at : end]
        good = checksum_good(packet.ends[:half], packet.ends[half:], packet.protocol, segment)
        blank = not good and _covers_pseudo_header(packet.ends, packet.protocol, segment)
    ports = (raw.number(packet.at, 2), raw.number(packet.at + 2, 2))
    return Frame(_text(packet.source), _text(packet.target), name, payload, sequence, good, blank, ports)


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def checksum_good(source: bytes, target: bytes, protocol: int, segment: bytes) -> bool:
    """Return whether the TCP or UDP checksum in ``segment`` is right. A UDP packet of IPv4 may have no checksum."""
    if protocol == _UDP and segment[6:8] == b"\0\0":
        return len(source) == 4
    # The pseudo headers of RFC 9293, 3.1, and RFC 8200, 8.1 have fields of other sizes in other places, with the same sum.
    covered = source + target + bytes((0, protocol)) + len(segment).to_bytes(4, "big") + segment
    # A ones' complement sum of 16-bit words equals the number that they form, modulo 0xffff (RFC 1071, 2).
    return int.from_bytes(covered + bytes(len(covered) % 2), "big") % 0xFFFF == 0


def _covers_pseudo_header(ends: bytes, protocol: int, segment: bytes) -> bool:
    """Return whether the checksum field holds the sum of the pseudo header, which a device with checksum offload completes."""
    at = 16 if protocol == _TCP else 6
    pseudo = ends + bytes((0, protocol)) + len(segment).to_bytes(4, "big")
    return int.from_bytes(segment[at : at + 2], "big") % 0xFFFF == int.from_bytes(pseudo, "big") % 0xFFFF


# -- many frames ------------------------------------------------------------------------------------------------------


def sent_by(frames: Iterable[Frame], address: str) -> tuple[Frame, ...]:
    """Return the TCP frames from ``address`` that carry data."""
    return tuple(frame for frame in frames if frame.source == address and frame.protocol == "tcp" and frame.payload)


def largest(frames: Iterable[Frame]) -> int:
    """Return the largest payload in bytes; 0 without frames."""
    return max((frame.payload for frame in frames), default=0)


def bad_checksums(frames: Iterable[Frame]) -> int:
    """Return the number of frames with a wrong checksum."""
    return sum(frame.good is False for frame in frames)
