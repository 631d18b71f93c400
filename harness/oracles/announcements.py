# SPDX-License-Identifier: BSD-2-Clause
"""Finds the announcements of addresses in a capture: a guest that moved tells its neighbours and the switches where it is now.

Sources: RFC 826 and RFC 5227, 3 (gratuitous ARP), RFC 4861, 7.2.6 (unsolicited neighbour advertisements), IEEE 802.1Q.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.oracles import frames

_ARP, _IPV6, _VLAN = 0x0806, 0x86DD, 0x8100
_ICMPV6, _ADVERTISEMENT, _SOLICITED = 58, 136, 0x40


@dataclass(frozen=True)
class Announcement:
    """``mac`` announced that it has ``address``, in the VLAN ``vlan`` or, with 0, without a tag."""

    mac: str
    address: str
    vlan: int = 0

    def __str__(self) -> str:
        return f"{self.address} in VLAN {self.vlan}" if self.vlan else self.address


def read(path: Path) -> tuple[Announcement, ...]:
    """The announcements in a pcap file of Ethernet frames. Raises ValueError for a damaged file, and OSError."""
    with path.open("rb") as file:
        found = [_announcement(data) for _, data, _ in frames.records(file)]
    return tuple(one for one in found if one is not None)


def missing(wanted: Iterable[Announcement], seen: Iterable[Announcement]) -> tuple[str, ...]:
    """A line for each announcement that was not seen."""
    there = set(seen)
    return tuple(f"no announcement of {one} by {one.mac}" for one in wanted if one not in there)


def _announcement(data: bytes) -> Announcement | None:
    """The announcement in an Ethernet frame; None if it is not a complete announcement."""
    kind, at, vlan = int.from_bytes(data[12:14], "big"), 14, 0
    if kind == _VLAN:
        vlan, kind, at = int.from_bytes(data[14:16], "big") & 0xFFF, int.from_bytes(data[16:18], "big"), 18
    mac, rest = data[6:12].hex(":"), data[at:]
    if kind == _ARP and len(rest) >= 28:
        sender, target = rest[14:18], rest[24:28]
        return Announcement(mac, socket.inet_ntop(socket.AF_INET, sender), vlan) if sender == target else None
    # A neighbour advertisement has no extension header, because its hop limit must be 255 and it is not fragmented.
    if kind == _IPV6 and len(rest) >= 64 and rest[6] == _ICMPV6 and rest[40] == _ADVERTISEMENT and not rest[44] & _SOLICITED:
        return Announcement(mac, socket.inet_ntop(socket.AF_INET6, rest[48:64]), vlan)
    return None
