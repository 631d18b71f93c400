# SPDX-License-Identifier: BSD-2-Clause
"""Frames of captures: the tests build them with dpkt, and harness/oracles/frames.py reads them without it."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import dpkt
import pytest
from dpkt.ethernet import Ethernet, MPLSlabel, VLANtag8021Q
from dpkt.ip6 import IP6, IP6AHHeader, IP6DstOptsHeader, IP6FragmentHeader, IP6HopOptsHeader, IP6OptsHeader, IP6RoutingHeader
from hypothesis import given
from hypothesis import strategies as st

from harness.oracles import frames
from harness.oracles.frames import Capture, Frame

HERE, THERE = "198.18.77.1", "198.18.77.2"
HERE6, THERE6 = "2001:2:0:77::1", "2001:2:0:77::2"
OTHER6 = socket.inet_pton(socket.AF_INET6, "2001:2:0:77::3")
ENDS = {4: (socket.inet_aton(THERE), socket.inet_aton(HERE))}
ENDS[6] = socket.inet_pton(socket.AF_INET6, THERE6), socket.inet_pton(socket.AF_INET6, HERE6)
TCP, UDP = dpkt.ip.IP_PROTO_TCP, dpkt.ip.IP_PROTO_UDP
VLAN, QINQ, MPLS = 0x8100, 0x88A8, 0x8847


def summed(upper: dpkt.Packet, protocol: int, source: bytes, target: bytes) -> bytes:
    """Return a TCP or UDP header with its data and the right checksum."""
    upper.sum = 0
    data = bytes(upper)
    upper.sum = dpkt.in_cksum(source + target + struct.pack(">II", len(data), protocol) + data) or 0xFFFF
    return bytes(upper)


def tcp(payload: bytes, family: int = 4, sequence: int = 1, ends: tuple[bytes, bytes] | None = None, options: bytes = b"") -> bytes:
    upper = dpkt.tcp.TCP(sport=1, dport=2, seq=sequence, off=5 + len(options) // 4, opts=options, data=payload)
    return summed(upper, TCP, *(ends or ENDS[family]))


def udp(payload: bytes, family: int = 4, ends: tuple[bytes, bytes] | None = None) -> bytes:
    return summed(dpkt.udp.UDP(sport=1, dport=2, ulen=8 + len(payload), data=payload), UDP, *(ends or ENDS[family]))


def ip4(upper: bytes, protocol: int = TCP, length: int = -1, mf: int = 0, offset: int = 0, options: bytes = b"") -> bytes:
    header = dpkt.ip.IP(
        src=ENDS[4][0], dst=ENDS[4][1], p=protocol, hl=5 + len(options) // 4, opts=options, mf=mf, offset=offset // 8
    )
    header.len = 20 + len(options) + len(upper) if length < 0 else length
    header.sum = dpkt.in_cksum(header.pack_hdr() + options)
    return bytes(header.pack_hdr()) + options + upper


def ip6(upper: bytes, protocol: int = TCP, chain: tuple[tuple[int, dpkt.Packet], ...] = (), length: int = -1) -> bytes:
    """Return an IPv6 packet. ``chain`` lists extension headers with their numbers; the function sets the ``nxt`` of each."""
    numbers = [number for number, _ in chain] + [protocol]
    for header, following in zip((header for _, header in chain), numbers[1:], strict=True):
        header.nxt = following
    rest = b"".join(bytes(header) for _, header in chain) + upper
    header = IP6(src=ENDS[6][0], dst=ENDS[6][1], nxt=numbers[0], plen=len(rest) if length < 0 else length)
    return header.pack_hdr() + rest


def ether(packet: bytes, tags: tuple[int, ...] = (), labels: int = 0) -> bytes:
    """Return an Ethernet frame with VLAN ``tags`` (ethertypes, the outer one first) and that many MPLS ``labels``."""
    network = MPLS if labels else 0x86DD if packet[0] >> 4 == 6 else 0x0800
    kinds = [*tags, network]
    stack = b"".join(VLANtag8021Q(id=5, type=kind).pack_hdr() for kind in kinds[1:])
    stack += b"".join(MPLSlabel(val=16 + n, ttl=9, s=n == labels - 1).pack_hdr() for n in range(labels))
    return Ethernet(type=kinds[0]).pack_hdr() + stack + packet


def pcap(*packets: bytes, snaplen: int = 1 << 18, nano: bool = False, linktype: int = 1) -> bytes:
    magic = dpkt.pcap.TCPDUMP_MAGIC_NANO if nano else dpkt.pcap.TCPDUMP_MAGIC
    file = bytes(dpkt.pcap.LEFileHdr(magic=magic, snaplen=snaplen, linktype=linktype))
    for n, data in enumerate(packets):
        file += bytes(dpkt.pcap.LEPktHdr(tv_sec=n, caplen=min(len(data), snaplen), len=len(data))) + data[:snaplen]
    return file


def read(data: bytes, directory: Path) -> Capture:
    (directory / "a.pcap").write_bytes(data)
    return frames.read(directory / "a.pcap")


def one(data: bytes, directory: Path, **how: int) -> Frame | str:
    """Return the only frame of a capture, or the reason why it was skipped."""
    found = read(pcap(data, **how), directory)
    assert len(found) + sum(found.skipped.values()) == 1, found
    assert not found.damage
    return found[0] if found.frames else next(iter(found.skipped))


def test_frames(tmp_path: Path) -> None:
    arp = Ethernet(type=0x0806).pack_hdr() + bytes(28)
    bad = bytearray(ether(ip4(tcp(b"bad", sequence=90_000))))
    bad[-1] ^= 0x55
    back = ether(ip4(tcp(b"", ends=ENDS[4][::-1])).replace(ENDS[4][0] + ENDS[4][1], ENDS[4][1] + ENDS[4][0]))
    packets = (arp, ether(ip4(tcp(b"x" * 1448))), ether(ip4(tcp(b"y" * 9000, sequence=1449))), ether(ip4(tcp(b"x" * 1448))), back, bytes(bad))  # fmt: skip
    found = read(pcap(*packets), tmp_path)
    sent = frames.sent_by(found, THERE)
    assert (len(found), len(sent), frames.largest(sent), found[3].source) == (5, 4, 9000, HERE)
    assert [frame.good for frame in sent] == [True, True, True, False]
    assert frames.bad_checksums(sent) == 1
    assert found.summary == "5 TCP or UDP packets; skipped: 1 of ethertype 0x0806"


# -- any frame that dpkt builds ---------------------------------------------------------------------------------------


def extension(number: int, size: int) -> tuple[int, dpkt.Packet]:
    """Return an extension header of ``size`` units of eight bytes; a fragment header always has one."""
    rest = bytes((1, 4, 0, 0, 0, 0)) + bytes((1, 6, 0, 0, 0, 0, 0, 0)) * (size - 1)
    match number:
        case 44:
            return number, IP6FragmentHeader(id=9)
        case 51:
            return number, IP6AHHeader(len=size * 2, spi=1, seq=2, data=bytes(size * 8 - 4))
        case 43:
            return number, IP6RoutingHeader(len=(size - 1) // 2 * 2, type=0, segs_left=0, data=bytes((size - 1) // 2 * 16))
        case 0:
            return number, IP6HopOptsHeader(len=size - 1, data=rest)
    return number, IP6DstOptsHeader(len=size - 1, data=rest)


CHAINS = st.lists(st.tuples(st.sampled_from([0, 43, 44, 51, 60]), st.integers(1, 5)), max_size=4)
TAGS = st.lists(st.sampled_from([VLAN, QINQ, 0x9100]), max_size=4)


@given(
    st.sampled_from([4, 6]), st.sampled_from([TCP, UDP]), st.binary(max_size=300), st.integers(0, 2**32 - 1), TAGS, st.integers(0, 3),
    CHAINS, st.integers(0, 10), st.integers(0, 40), st.integers(0, 2000), st.booleans(), st.booleans(), st.integers(0, 8),
)  # fmt: skip
def test_every_frame_is_read_as_it_was_built(
    tmp_path_factory: pytest.TempPathFactory, family: int, protocol: int, payload: bytes, sequence: int, tags: list[int], labels: int,
    chain: list[tuple[int, int]], options: int, padding: int, cut: int, spoiled: bool, nano: bool, bit: int,
) -> None:  # fmt: skip
    upper = tcp(payload, family, sequence, options=b"\1" * (options * 4)) if protocol == TCP else udp(payload, family)
    if family == 4:
        packet = ip4(upper, protocol, options=b"\1" * (options * 4))
    else:
        packet = ip6(upper, protocol, tuple(extension(*item) for item in chain))
    frame = bytearray(ether(packet, tuple(tags), labels))
    begin = len(frame) - len(upper)
    if spoiled:
        # Flip a bit of the source port.
        frame[begin + bit // 8] ^= 1 << bit % 8
    # A short frame is padded, and a capture can hold less than the frame.
    whole = bytes(frame) + b"\xee" * padding
    found = read(pcap(whole, snaplen=max(1, len(whole) - cut), nano=nano), tmp_path_factory.getbasetemp())
    assert len(found) + sum(found.skipped.values()) == 1
    captured = min(len(whole) - cut, len(whole)) if cut < len(whole) else 1
    if captured < begin + (20 if protocol == TCP else 6):
        assert found.skipped == {"cut off by the snap length": 1}
        return
    ends = (THERE, HERE) if family == 4 else (THERE6, HERE6)
    good = not spoiled if captured >= len(frame) else None
    name, number = ("tcp", sequence) if protocol == TCP else ("udp", 0)
    assert found.frames == (Frame(*ends, name, len(payload), number, good),)


@given(st.binary(max_size=300), st.sampled_from([0, 1, 12, 101, 108, 113, 228, 229, 276, 147]), st.integers(0, 300))
def test_frames_of_noise(tmp_path_factory: pytest.TempPathFactory, data: bytes, linktype: int, snaplen: int) -> None:
    found = read(pcap(data, linktype=linktype, snaplen=snaplen), tmp_path_factory.getbasetemp())
    assert (len(found) + sum(found.skipped.values()), found.damage) == (1, "")


@given(st.randoms(use_true_random=False), st.sampled_from([4, 6]), CHAINS, TAGS, st.integers(0, 2))
def test_damaged_frames(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random, family: int, chain: list[tuple[int, int]], tags: list[int], labels: int
) -> None:  # fmt: skip
    """Real frames with changed bytes reach deeper than noise."""
    packet = ip4(tcp(b"data")) if family == 4 else ip6(udp(b"data", 6), UDP, tuple(extension(*item) for item in chain))
    frame = bytearray(ether(packet, tuple(tags), labels))
    for _ in range(chance.randint(1, 4)):
        frame[chance.randrange(12, len(frame))] = chance.randrange(256)
    data = bytes(frame[: chance.randint(0, len(frame))])
    found = read(pcap(data), tmp_path_factory.getbasetemp())
    assert (len(found) + sum(found.skipped.values()), found.damage) == (1, "")


@given(st.binary(max_size=200), st.integers(0, 400))
def test_files_of_noise(tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int) -> None:
    whole = pcap(ether(ip4(tcp(b"a" * 50))), ether(ip4(udp(b"b" * 50), UDP)))
    for file in (data, whole[:length], whole[:24] + data, whole[:40] + data):
        read(file, tmp_path_factory.getbasetemp())


# -- special rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ip4(udp(b"q" * 3000)[1480:2960], UDP, mf=1, offset=1480), "fragment"),
        (ip4(udp(b"q" * 3000)[:1480], UDP, mf=1), "fragment"),
        (ip4(udp(b"q" * 3000)[2960:], UDP, offset=2960), "fragment"),
        (ip6(tcp(b"d", 6), TCP, ((44, IP6FragmentHeader(id=9, m_flag=1)), extension(60, 1))), "fragment"),
        (ip6(b"d" * 16, 60, ((44, IP6FragmentHeader(id=9, frag_off=4)),)), "fragment"),
        (ip6(bytes(24), 50), "encrypted (ESP)"),
        (ip4(bytes(24), 50), "encrypted (ESP)"),
        (ip6(b"", 59, (extension(60, 1),)), "without an upper-layer header"),
        (ip4(bytes(8), 1), "of IP protocol 1"),
        (ip4(ip4(tcp(b"")), 4), "of IP protocol 4"),
        (ip4(tcp(b"x"), length=19), "malformed"),
        (ip4(tcp(b"x")[:19]), "malformed"),
        (ip4(tcp(b"x")[:12] + b"\x40" + tcp(b"x")[13:]), "malformed"),
        (ip4(tcp(b"x")[:12] + b"\xf0" + tcp(b"x")[13:]), "malformed"),
        (b"\x44" + ip4(tcp(b"x"))[1:], "malformed"),
        (ip4(udp(b"x" * 9)[:4] + b"\0\7" + udp(b"x" * 9)[6:], UDP), "malformed"),
        (ip4(udp(b"x" * 9)[:4] + b"\0\x20" + udp(b"x" * 9)[6:], UDP), "malformed"),
        (ip6(tcp(b"x", 6), TCP, ((60, IP6OptsHeader(len=9, data=bytes(6))),)), "malformed"),
    ],
)  # fmt: skip
def test_packets_that_are_skipped(packet: bytes, reason: str, tmp_path: Path) -> None:
    assert one(ether(packet), tmp_path) == reason


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Ethernet(type=MPLS).pack_hdr() + MPLSlabel(val=16, s=1).pack_hdr(), "truncated on the wire"),
        (Ethernet(type=MPLS).pack_hdr() + MPLSlabel(val=16, s=0).pack_hdr(), "truncated on the wire"),
        (Ethernet(type=MPLS).pack_hdr() + MPLSlabel(val=16, s=1).pack_hdr() + bytes(60), "without a known network header"),
        (Ethernet(type=VLAN).pack_hdr(), "truncated on the wire"),
        (Ethernet(type=VLAN).pack_hdr() + VLANtag8021Q(id=1, type=0x0806).pack_hdr() + bytes(28), "of ethertype 0x0806"),
        (Ethernet(type=46).pack_hdr() + b"\x42\x42\3" + bytes(43), "of IEEE 802.3"),
        (b"\2" * 9, "truncated on the wire"),
        (b"", "truncated on the wire"),
    ],
)
def test_frames_that_are_skipped(frame: bytes, reason: str, tmp_path: Path) -> None:
    assert one(frame, tmp_path) == reason


def test_a_packet_in_802_3_snap(tmp_path: Path) -> None:
    packet = ip4(tcp(b"snap"))
    frame = Ethernet(type=8 + len(packet)).pack_hdr() + b"\xaa\xaa\3\0\0\0\x08\0" + packet
    assert one(frame, tmp_path) == Frame(THERE, HERE, "tcp", 4, 1, True)


@pytest.mark.parametrize(
    ("linktype", "before"),
    [
        (0, b"\2\0\0\0"), (0, b"\0\0\0\2"), (108, b"\0\0\0\2"), (12, b""), (101, b""), (228, b""),
        (113, bytes(14) + b"\x08\0"), (276, b"\x08\0" + bytes(18)), (147, None),
    ],
)  # fmt: skip
def test_link_types(linktype: int, before: bytes | None, tmp_path: Path) -> None:
    found = one((before or b"") + ip4(tcp(b"x" * 7)), tmp_path, linktype=linktype)
    assert found == (Frame(THERE, HERE, "tcp", 7, 1, True) if before is not None else "of link type 147")


@pytest.mark.parametrize("size", [70_000, 3_000])
@pytest.mark.parametrize("snaplen", [96, 256, 1 << 20])
@pytest.mark.parametrize("tags", [(), (QINQ, VLAN)])
def test_large_segments_with_length_0(size: int, snaplen: int, tags: tuple[int, ...], tmp_path: Path) -> None:
    good = True if snaplen > size else None
    for packet, ends in ((ip4(tcp(b"z" * size), length=0), (THERE, HERE)), (ip6(tcp(b"z" * size, 6), length=0), (THERE6, HERE6))):
        found = one(ether(packet, tags), tmp_path, snaplen=snaplen)
        assert found == (Frame(*ends, "tcp", size, 1, good))


def test_jumbograms(tmp_path: Path) -> None:
    """RFC 2675: the length is in an option. Linux's BIG TCP hands over large segments in this form."""
    upper = tcp(b"z" * 70_000, 6)
    option = IP6HopOptsHeader(len=0, data=b"\xc2\4" + struct.pack(">I", 8 + len(upper)))
    packet = ip6(upper, TCP, ((0, option),), length=0)
    assert one(ether(packet) + b"trailer", tmp_path) == Frame(THERE6, HERE6, "tcp", 70_000, 1, True)
    assert one(ether(packet), tmp_path, snaplen=200) == Frame(THERE6, HERE6, "tcp", 70_000, 1, None)
    datagram = dpkt.udp.UDP(sport=1, dport=2, ulen=0, data=b"z" * 70_000)
    upper = summed(datagram, UDP, *ENDS[6])
    option = IP6HopOptsHeader(len=0, data=b"\xc2\4" + struct.pack(">I", 8 + len(upper)))
    assert one(ether(ip6(upper, UDP, ((0, option),), length=0)), tmp_path) == Frame(THERE6, HERE6, "udp", 70_000, 0, True)


def test_the_checksum_covers_the_final_destination(tmp_path: Path) -> None:
    source, target = ENDS[6]
    upper = tcp(b"data", 6, ends=(source, OTHER6))
    for kind, segments in ((0, bytes(16) + OTHER6), (2, OTHER6), (4, OTHER6 + bytes(16))):
        header = IP6RoutingHeader(len=len(segments) // 8, type=kind, segs_left=1, data=segments)
        assert one(ether(ip6(upper, TCP, ((43, header),))), tmp_path) == Frame(THERE6, HERE6, "tcp", 4, 1, True)
    unknown = IP6RoutingHeader(len=2, type=77, segs_left=1, data=OTHER6)
    assert one(ether(ip6(upper, TCP, ((43, unknown),))), tmp_path) == Frame(THERE6, HERE6, "tcp", 4, 1, None)
    home = IP6DstOptsHeader(len=2, data=bytes((1, 2, 0, 0)) + b"\xc9\x10" + OTHER6)
    assert one(ether(ip6(tcp(b"data", 6, ends=(OTHER6, target)), TCP, ((60, home),))), tmp_path) == Frame(
        THERE6, HERE6, "tcp", 4, 1, True
    )
    other = socket.inet_aton("198.18.77.9")
    route = b"\x83\x0b\4" + bytes(4) + other + b"\0"
    upper = tcp(b"data", ends=(ENDS[4][0], other))
    assert one(ether(ip4(upper, options=route)), tmp_path) == Frame(THERE, HERE, "tcp", 4, 1, True)
    used = b"\x83\x0b\x0c" + bytes(4) + other + b"\0"
    assert one(ether(ip4(tcp(b"data"), options=used)), tmp_path) == Frame(THERE, HERE, "tcp", 4, 1, True)


def test_udp_without_a_checksum(tmp_path: Path) -> None:
    """IPv4 allows it; IPv6 does not (RFC 8200, 8.1)."""
    unsummed = udp(b"abc")[:6] + bytes(2) + b"abc"
    assert one(ether(ip4(unsummed, UDP)), tmp_path) == Frame(THERE, HERE, "udp", 3, 0, True)
    assert one(ether(ip6(unsummed, UDP)), tmp_path) == Frame(THERE6, HERE6, "udp", 3, 0, False)


def test_a_datagram_shorter_than_its_packet(tmp_path: Path) -> None:
    """The rest belongs to UDP options (RFC 9868), and the checksum does not cover it."""
    assert one(ether(ip4(udp(b"abc") + b"options", UDP)), tmp_path) == Frame(THERE, HERE, "udp", 3, 0, True)


def test_an_authenticated_packet(tmp_path: Path) -> None:
    header = IP6AHHeader(nxt=TCP, len=4, spi=1, seq=2, data=bytes(12))
    assert one(ether(ip4(bytes(header) + tcp(b"data"), 51)), tmp_path) == Frame(THERE, HERE, "tcp", 4, 1, True)


def test_a_packet_longer_than_its_frame(tmp_path: Path) -> None:
    assert one(ether(ip4(tcp(b"x" * 100))[:80]), tmp_path) == Frame(THERE, HERE, "tcp", 100, 1, None)


@pytest.mark.parametrize(
    ("data", "count", "damage"),
    [
        (b"", 0, "not a pcap file"),
        (b"\n\r\r\n" + bytes(24), 0, "a pcapng file, which is not supported; tcpdump -w writes pcap"),
        (pcap(ether(ip4(tcp(b"")))) + bytes(5), 1, "the file ends within the header of record 2"),
        (pcap(ether(ip4(tcp(b"")))) + struct.pack("<4I", 0, 0, 100, 100), 1, "the file ends within record 2"),
        (pcap(ether(ip4(tcp(b"")))) + struct.pack("<4I", 0, 0, 1 << 30, 1 << 30), 1, "record 2 claims 1073741824 bytes"),
    ],
)
def test_damaged_files(data: bytes, count: int, damage: str, tmp_path: Path) -> None:
    found = read(data, tmp_path)
    assert (len(found), found.damage) == (count, damage)
    assert not damage or found.summary.endswith(damage)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "more"), [(0xA1B2C3D4, 0), (0xA1B23C4D, 0), (0xA1B2CD34, 8)])
def test_kinds_of_pcap(order: str, magic: int, more: int, tmp_path: Path) -> None:
    data = ether(ip4(tcp(b"x" * 9)))
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 1 | 0x14000000)
    record = struct.pack(f"{order}4I", 1, 2, len(data), len(data)) + bytes(more)
    assert read(head + (record + data) * 2, tmp_path).frames == (Frame(THERE, HERE, "tcp", 9, 1, True),) * 2
