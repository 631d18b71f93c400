# SPDX-License-Identifier: BSD-2-Clause
"""Reads the counters that kernels print, and names what a counter means, so that one rule fits Linux and FreeBSD.

A guest prints some of these texts, so they may contain anything. A parser takes the lines that it knows, up to a limit, and never
raises.
Sources: Linux Documentation/networking/snmp_counter.rst and Documentation/ABI/testing/sysfs-class-net-statistics; FreeBSD
usr.bin/netstat/inet.c and if.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Counts = Mapping[str, int]

# Characters of a text, and counters in it, that are read.
_LONGEST, _MOST = 1 << 17, 2000

# == /proc/net/snmp
_SECTION = re.compile(r"^== ([^\n]{1,200})$", re.MULTILINE)
# Tcp: RtoAlgorithm RtoMin RtoMax      Tcp: 1 200 120000
_PROTOCOL = re.compile(r"([A-Za-z0-9]{1,32}): ([^\n]{1,4000})")
# Ip6InReceives                   	12
_PAIR = re.compile(r"([A-Za-z]\w{0,60})\s+(\d{1,20})")
# vif1.0:    5279      61    0    0    0     0          0         0     6420      70    0    3    0     0       0          0
_DEVICE = re.compile(r"([\w.@-]{1,20}):((?: +\d{1,20}){16})")
# The numbers of /proc/net/dev that count here, by their place.
_DEVICE_NAMES = {1: "rx_packets", 2: "rx_errors", 3: "rx_dropped", 9: "tx_packets", 10: "tx_errors", 11: "tx_dropped"}
# tcp:
_HEADING = re.compile(r"(\w{1,20}):")
# 		12 data packets (3456 bytes) retransmitted
_COUNTED = re.compile(r"\s+(\d{1,20}) ([a-z][^\n]{1,120})")
# dev.xn.0.rxq.0.xn_rx_drops: 0
_SYSCTL = re.compile(r"(dev\.[\w.%]{1,80}): (\d{1,20})")
# Name    Mtu Network       Address              Ipkts Ierrs Idrop     Ibytes    Opkts Oerrs     Obytes  Coll  Drop
# xn0    1500 <Link#2>      00:16:3e:48:e5:d8     1234     0     0     123456     1200     0     120000     0     0
_LINK = re.compile(r"<Link#\d+>.*?((?: +\d{1,20}){9})\s*$")
_INTERFACE = ("Ipkts", "Ierrs", "Idrop", "Ibytes", "Opkts", "Oerrs", "Obytes", "Coll", "Drop")

# What counters mean, on both systems. A counter that another one includes is left out, such as Tcp.InErrs.
BAD_CHECKSUM, RETRANSMITTED, UNASSEMBLED, FULL, UNROUTED = (
    "bad checksum",
    "retransmitted",
    "not reassembled",
    "buffer full",
    "no route",
)
IN, OUT, DROPPED_IN, DROPPED_OUT, ERRORS_IN, ERRORS_OUT = "in", "out", "dropped in", "dropped out", "errors in", "errors out"
_MEANINGS = {
    BAD_CHECKSUM: (
        "Tcp.InCsumErrors", "Udp.InCsumErrors", "Icmp.InCsumErrors", "IpExt.InCsumErrors", "Udp6InCsumErrors", "Icmp6InCsumErrors",
        "tcp: discarded for bad checksum", "udp: with bad checksum", "icmp: message with bad checksum", "ip: bad header checksum",
        "icmp6: bad checksum",
    ),
    RETRANSMITTED: ("Tcp.RetransSegs", "tcp: data packet retransmitted"),
    UNASSEMBLED: ("Ip.ReasmFails", "Ip6ReasmFails", "ip: fragment dropped", "ip: fragment dropped after timeout", "ip6: fragment dropped after timeout"),
    FULL: (
        "Udp.RcvbufErrors", "Udp6RcvbufErrors", "TcpExt.TCPRcvQDrop", "TcpExt.TCPBacklogDrop", "TcpExt.PruneCalled",
        "udp: dropped due to full socket buffer", "tcp: discarded due to full reassembly queue",
    ),
    UNROUTED: ("Ip.OutNoRoutes", "Ip6OutNoRoutes", "ip: output packet discarded due to no route", "ip6: output packet discarded due to no route"),
    IN: ("rx_packets", "Ipkts"),
    OUT: ("tx_packets", "Opkts"),
    DROPPED_IN: ("rx_dropped", "Idrop"),
    DROPPED_OUT: ("tx_dropped", "Drop"),
    ERRORS_IN: ("rx_errors", "Ierrs"),
    ERRORS_OUT: ("tx_errors", "Oerrs"),
}  # fmt: skip
_TELLING = {name: place for place, name in enumerate(name for names in _MEANINGS.values() for name in names)}
# Counters that others include.
_SUMS = ("Tcp.InErrs", "Udp.InErrors", "Icmp.InErrors")
# Names of other counters that a reader wants to see.
_TROUBLE = re.compile(r"err|drop|bad|fail|discard|retrans|lost|overflow|timeout|fixup|no[ _]?(?:buf|route|mem)", re.IGNORECASE)


def sections(text: str) -> dict[str, str]:
    """The parts of a text that follow lines ``== NAME``, by name."""
    parts = _SECTION.split(text[:_LONGEST])
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def linux(text: str, interface: str) -> dict[str, int]:
    """/proc/net/snmp and netstat as ``Tcp.InCsumErrors``, snmp6 as ``Ip6InReceives``, and the interface's line of dev as ``rx_dropped``."""
    return _first(_linux(text[:_LONGEST], interface))


def _linux(text: str, interface: str) -> Iterator[tuple[str, int]]:
    names: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _DEVICE.fullmatch(line.strip()):
            if match[1] == interface:
                numbers = match[2].split()
                yield from ((name, int(numbers[place])) for place, name in _DEVICE_NAMES.items())
        elif match := _PAIR.fullmatch(line.strip()):
            yield match[1], int(match[2])
        elif match := _PROTOCOL.fullmatch(line.strip()):
            words = match[2].split()
            if match[1] not in names:
                names[match[1]] = words
                continue
            for name, value in zip(names.pop(match[1]), words, strict=False):
                if re.fullmatch(r"\d{1,20}", value) and re.fullmatch(r"\w{1,60}", name):
                    yield f"{match[1]}.{name}", int(value)


def freebsd(text: str) -> dict[str, int]:
    """``netstat -s`` as ``tcp: discarded for bad checksum``, ``netstat -I NAME -bdn`` as ``Ipkts``, and numbers of ``sysctl dev``.

    netstat forms plurals by the number, so names are in the singular. Numbers in parentheses are left out.
    """
    return _first(_freebsd(text[:_LONGEST]))


def _freebsd(text: str) -> Iterator[tuple[str, int]]:
    heading = ""
    for line in text.splitlines():
        if match := _HEADING.fullmatch(line):
            heading = match[1]
        elif heading and (match := _COUNTED.fullmatch(line)):
            yield f"{heading}: {_singular(match[2])}", int(match[1])
        elif match := _SYSCTL.fullmatch(line) or _PAIR.fullmatch(line):
            yield match[1], int(match[2])
        elif match := _LINK.search(line):
            yield from zip(_INTERFACE, map(int, match[1].split()), strict=True)


def _singular(text: str) -> str:
    """``12 duplicate acks`` and ``1 duplicate ack`` count the same."""
    bare = re.sub(r" ?\([^)]*\)", "", text).strip()
    return re.sub(r"(?<=[a-z])(?<![us])s\b", "", re.sub(r"ies\b", "y", bare))


def _first(found: Iterator[tuple[str, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, value in found:
        counts.setdefault(name, value)
        if len(counts) >= _MOST:
            break
    return counts


def grown(before: Counts, after: Counts) -> dict[str, int]:
    """By how much each counter grew. One that fell has restarted at 0, so all of it counts."""
    pairs = ((name, value, before.get(name, 0)) for name, value in after.items())
    return {name: value - first if value >= first else value for name, value, first in pairs if value != first}


def total(counts: Counts, *meanings: str) -> int:
    """The sum of the counters with these meanings."""
    return sum(counts.get(name, 0) for meaning in meanings for name in _MEANINGS[meaning])


def listed(counts: Counts, most: int) -> str:
    """The ``most`` counters that tell the most about lost data, as ``Tcp.InCsumErrors 12, rx_packets 30``."""
    chosen = [name for name, value in counts.items() if value and name not in _SUMS and (name in _TELLING or _TROUBLE.search(name))]
    chosen.sort(key=lambda name: _TELLING.get(name, len(_TELLING)))
    more = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(f"{name} {counts[name]}" for name in chosen[:most]) + more
