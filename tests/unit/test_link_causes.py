# SPDX-License-Identifier: BSD-2-Clause
"""The rules that name the cause of lost data on a link, and the parsers of the counters, on texts from a lab."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.oracles import counters, frames, link_causes, short_capture
from harness.oracles.frames import Capture, Frame
from harness.oracles.link_causes import RULES, End, LinkSeen, cause, end, read_dom0
from harness.oracles.short_capture import Direction
from harness.xen.netback import Ring, rings

DATA = Path(__file__).parent / "data" / "counters"
HERE, THERE = "198.18.77.1", "198.18.77.2"

# A transfer of 1 MiB that arrived: both sides count frames and nothing else.
GOOD = LinkSeen(
    End("dom0", "vif5.0", {"rx_packets": 60, "tx_packets": 40, "Tcp.InSegs": 58}, up=True),
    End("guest", "eth0", {"rx_packets": 40, "tx_packets": 60, "Tcp.OutSegs": 58, "Tcp.RetransSegs": 1}, up=True),
    rings=(Ring(0, "TX", 256, 300, 300, 300), Ring(0, "RX", 256, 512, 300, 300)),
    rings_later=(Ring(0, "TX", 256, 310, 310, 310), Ring(0, "RX", 256, 512, 310, 310)),
    sent=Direction(30, 12, 30, 30, 1460, 0, 0),
    received=Direction(30, 12, 30, 30, 1460, 0, 0),
)


def seen(dom0: dict[str, int] | None = None, guest: dict[str, int] | None = None, **more: object) -> LinkSeen:
    """GOOD with other counters on top, and other fields."""
    ends = {
        "dom0": replace(GOOD.dom0, grown={**(GOOD.dom0.grown or {}), **(dom0 or {})}),
        "guest": replace(GOOD.guest, grown={**(GOOD.guest.grown or {}), **(guest or {})}),
    }
    return replace(GOOD, **{**ends, **more})  # type: ignore[arg-type]


STUCK = Ring(1, "TX", 256, 120, 100, 100)
EMPTY = Ring(0, "RX", 256, 300, 300, 300)
GOOD_FRAMES = Direction(30, 12, 0, 0, 1460, 0, 0)
# For each rule: what makes it fire, its words, and a near miss at which it is silent.
FIRES = {
    "guest interface down": (replace(GOOD, guest=replace(GOOD.guest, up=False)), "the guest's interface eth0 is down", replace(GOOD, guest=replace(GOOD.guest, up=None))),
    "vif down": (replace(GOOD, dom0=replace(GOOD.dom0, up=False)), "dom0's vif5.0 is down", replace(GOOD, dom0=replace(GOOD.dom0, up=None))),
    "vif off the bridge": (seen(bridged=False), "dom0's vif5.0 is not a port of the bridge, so dom0 gets nothing from it", GOOD),
    "dom0 discards for the checksum": (
        seen({"Tcp.InCsumErrors": 10}), "dom0 discarded 10 packets for a wrong checksum: the guest sends packets without a full checksum (30 of 30 captured)",
        seen({"Tcp.InCsumErrors": 1}, {"Tcp.InCsumErrors": 9}),
    ),
    "guest discards for the checksum": (
        seen(guest={"tcp: discarded for bad checksum": 7}, received=Direction(9, 3, 4, 1, 1460, 0, 0)),
        "the guest discarded 7 packets for a wrong checksum: 3 of 9 captured packets of dom0 are damaged before vif5.0 hands them over",
        GOOD,
    ),
    "dom0's queue drops": (seen(queue_dropped=12), "dom0's queue of vif5.0 dropped 12 frames for the guest", GOOD),
    "netback deaf": (
        seen(rings=(STUCK,), rings_later=(STUCK,)), "netback does not take 20 requests of the guest from queue 1",
        seen(rings=(STUCK,), rings_later=(replace(STUCK, consumed=110),)),
    ),
    "no receive buffers": (
        seen({"tx_dropped": 5}, rings_later=(EMPTY,)),
        "the guest offers no buffer for received frames in queue 0, and vif5.0 dropped 5 frames for it", seen(rings_later=(EMPTY,)),
    ),
    "sent and not received": (
        seen({"rx_packets": 0}), "the guest counts 60 sent frames, and dom0's vif5.0 received none: they stay in the ring",
        seen({"rx_packets": 0}, {"tx_packets": 0}),
    ),
    "received and not delivered": (
        seen(guest={"rx_packets": 0}), "dom0's vif5.0 sent 40 frames, and the guest's eth0 counts none of them", seen(guest={"rx_packets": 1}),
    ),
    "guest interface drops": (
        seen(guest={"Idrop": 40, "Ierrs": 3}), "the guest's eth0 counts 40 dropped and 3 broken frames of those it received", seen(guest={"Idrop": 2}),
    ),
    "vif drops": (seen({"rx_dropped": 8}), "dom0's vif5.0 counts 8 dropped frames of those it received", seen({"tx_dropped": 1})),
    "no route": (seen({"Ip.OutNoRoutes": 4}), "dom0 has no route for 4 packets", GOOD),
    "not reassembled": (seen(guest={"ip: fragment dropped after timeout": 2}), "guest could not reassemble 2 packets", GOOD),
    "buffer full": (seen({"Udp.RcvbufErrors": 6}), "dom0 dropped 6 packets because a buffer was full", GOOD),
    "retransmissions": (
        seen({"Tcp.RetransSegs": 5}, {"Tcp.RetransSegs": 9}), "dom0 retransmitted 5 and guest retransmitted 9 segments, and no counter shows where they are lost",
        seen({"Tcp.RetransSegs": 2}),
    ),
    "silent guest": (
        seen({"rx_packets": 0}, {"tx_packets": 0}), "the guest sent no frame on eth0", seen({"rx_packets": 1}, {"tx_packets": 0}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_fires_and_is_silent(rule: link_causes.Rule) -> None:
    situation, words, near_miss = FIRES[rule.name]
    assert rule.says(situation) == words
    assert cause(situation) == words, "an earlier rule hides it"
    assert rule.says(near_miss) == ""
    assert rule.says(GOOD) == ""


def test_a_good_link_has_no_cause() -> None:
    assert cause(GOOD) == ""
    assert cause(LinkSeen(End("dom0", "vif1.0", why="no answer"))) == "", "nothing was read"


def test_weak_rules_need_a_link_that_moves_nothing() -> None:
    retransmitted = seen({"Tcp.RetransSegs": 50})
    assert cause(retransmitted)
    assert cause(retransmitted, works=True) == ""
    assert cause(seen(queue_dropped=3), works=True)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (None, ""),
        (Direction(5, 2, 3, 1, 1460, 0, 0), ": 2 of 5 captured packets of the guest are damaged on vif5.0"),
        (GOOD_FRAMES, ", which are right on vif5.0: they are damaged after it"),
    ],
)
def test_the_capture_tells_where_checksums_went_wrong(sent: Direction | None, words: str) -> None:
    assert cause(seen({"Udp.InCsumErrors": 3}, sent=sent)) == f"dom0 discarded 3 packets for a wrong checksum{words}"


@pytest.mark.parametrize(
    ("received", "words"),
    [
        (None, ""),
        (GOOD.received, ": dom0 left checksums to the guest (30 of 30 captured), which does not accept them"),
        (GOOD_FRAMES, ", which are right on vif5.0: they are damaged in netback, the ring or the guest"),
    ],
)
def test_the_capture_tells_what_the_guest_did_not_accept(received: Direction | None, words: str) -> None:
    assert (
        cause(seen(guest={"Tcp.InCsumErrors": 3}, received=received))
        == f"the guest discarded 3 packets for a wrong checksum{words}"
    )


# -- recorded counters ------------------------------------------------------------------------------------------------------

FILES = {
    "unfinished-checksums": "dom0 discarded 10 packets for a wrong checksum: the guest sends packets without a full checksum (6 of 6 captured)",
    "dropped-frames": "dom0's queue of vif5.0 dropped 27 frames for the guest",
    "no-network": "the guest's interface eth0 is down",
    "freebsd-corrupted-packets": "the guest discarded 11 packets for a wrong checksum: 5 of 6 captured packets of dom0 are damaged before vif5.0 "
    "hands them over",
    "corrupted-packets": "the guest discarded 20 packets for a wrong checksum: 6 of 11 captured packets of dom0 are damaged before vif5.0 hands "
    "them over",
}


def recorded(name: str) -> LinkSeen:
    """The file that the explainer of a link wrote about a planted regression on a lab: the control guest, Xen 4.20, Linux 6.12 in dom0."""
    parts = counters.sections((DATA / f"{name}.txt").read_text())
    text = "\n== ".join([parts["dom0"], f"ethtool -S\n{parts['ethtool -S']}", f"tc -s qdisc\n{parts['tc -s qdisc']}"])
    read = counters.freebsd if name.startswith("freebsd") else lambda text: counters.linux(text, "eth0")
    before, now = (read(parts[title]) for title in ("guest before", "now"))
    found = read_dom0(parts.get("dom0 before", ""), text, "vif5.0")
    capture, sides = DATA / f"{name}.pcap", {}
    if capture.exists():
        seen_frames = frames.read(capture)
        sides = {"sent": short_capture.direction(seen_frames, THERE), "received": short_capture.direction(seen_frames, HERE)}
    return replace(found, guest=end("guest", "eth0", before, now), rings=rings(parts["netback vif5.0"]), **sides)


@pytest.mark.parametrize("name", FILES)
def test_a_recorded_regression_has_its_cause(name: str) -> None:
    found = recorded(name)
    assert cause(found) == FILES[name]
    assert found.dom0.up is True
    assert len(found.rings) == 2


def test_a_recorded_good_transfer_has_no_cause() -> None:
    """The counters of a case that failed for another reason, with all its data transferred."""
    assert cause(recorded("good")) == ""


# -- parsers --------------------------------------------------------------------------------------------------------------------

# netstat -ss and netstat -n -I xn0 -bd of FreeBSD 14.2, shortened (usr.bin/netstat/inet.c, if.c).
NETSTAT = """\
tcp:
\t92 packets sent
\t\t31 data packets (28324 bytes)
\t\t1 data packet (1448 bytes) retransmitted
\t58 packets received
\t\t12 discarded for bad checksums
udp:
\t3 datagrams received
\t1 with bad checksum
ip:
\t66 total packets received
\t2 fragments dropped (dup or out of space)
\t1 output packet discarded due to no route
ip6:
\t1 fragment dropped after timeout
Name    Mtu Network       Address              Ipkts Ierrs Idrop     Ibytes    Opkts Oerrs     Obytes  Coll  Drop
xn0    1500 <Link#2>      00:16:3e:48:e5:d8      123     4     5       9000      456     0      80000     0     7
xn0       - 198.18.77.0/2 198.18.77.2             61     -     -       5000       92     -      60000     -     -
dev.xn.0.xenstore_path: device/vif/0
dev.xn.0.%parent: xenbusb_front0
interface_up 1
"""


def test_counters_of_freebsd() -> None:
    counts = counters.freebsd(NETSTAT)
    assert counts["tcp: data packet retransmitted"] == 1
    assert counts["interface_up"] == 1
    assert (counts["Ipkts"], counts["Idrop"], counts["Opkts"], counts["Drop"]) == (123, 5, 456, 7)
    totals = {meaning: counters.total(counts, meaning) for meaning in counters._MEANINGS}
    assert totals == {
        "bad checksum": 13, "retransmitted": 1, "not reassembled": 3, "buffer full": 0, "no route": 1, "in": 123, "out": 456,
        "dropped in": 5, "dropped out": 7, "errors in": 4, "errors out": 0,
    }  # fmt: skip


def test_one_and_many_are_one_counter() -> None:
    before, after = (
        counters.freebsd("tcp:\n\t1 packet sent\n\t\t1 duplicate ack\n"),
        counters.freebsd("tcp:\n\t7 packets sent\n\t\t3 duplicate acks\n"),
    )
    assert counters.grown(before, after) == {"tcp: packet sent": 6, "tcp: duplicate ack": 2}


def test_a_counter_that_fell_has_restarted() -> None:
    assert counters.grown({"a": 10, "b": 5}, {"a": 3, "b": 5, "c": 2}) == {"a": 3, "c": 2}


def test_the_list_begins_with_the_telling_counters() -> None:
    counts = {"Tcp.InSegs": 9, "TcpExt.TCPTimeouts": 4, "rx_packets": 7, "Tcp.InCsumErrors": 2, "Tcp.InErrs": 2}
    assert counters.listed(counts, 8) == "Tcp.InCsumErrors 2, rx_packets 7, TcpExt.TCPTimeouts 4"
    assert counters.listed(counts, 1) == "Tcp.InCsumErrors 2 and 2 more"


@pytest.mark.parametrize(
    "text", ["", "Tcp: A\nTcp: 1 2 3\n", "Tcp: A B\nTcp: x y\n", "Tcp:\nTcp: 1\n", "eth0: 1 2\n", "A: " + "x" * 9999, "\0\x1b"]
)
def test_broken_counters_give_what_they_have(text: str) -> None:
    for counts in (counters.linux(text, "eth0"), counters.freebsd(text)):
        assert len(counts) <= 1
        assert all(isinstance(value, int) for value in counts.values())


@pytest.mark.parametrize("index", [0, 4294967295, 99999999999999999999])
def test_a_guest_can_write_any_index_into_a_ring(index: int) -> None:
    text = f"Queue 0\nTX: nr_ents 256\nreq prod {index} (0) cons 21 (0) event 22 (1)\nrsp prod 21 (base) pvt 21 (0) event 22 (1)\n"
    (ring,) = rings(text)
    assert 0 <= ring.waiting < 1 << 32


def stream(*spans: tuple[int, int], ports: tuple[int, int] = (1, 2)) -> list[Frame]:
    return [Frame(THERE, HERE, "tcp", size, begin % (1 << 32), True, ports=ports) for begin, size in spans]


@pytest.mark.parametrize(
    ("frames_seen", "wanted"),
    [
        (stream((0, 10), (10, 10), (20, 5)), (0, 0)),
        (stream((0, 10), (20, 10)), (10, 0)),
        (stream((0, 10), (20, 10), (10, 10)), (0, 0)),
        (stream((0, 10), (10, 10), (0, 10), (0, 20)), (0, 2)),
        (stream((2**32 - 10, 10), (2**32, 10), (2**32 + 30, 5)), (20, 0)),
        (stream((0, 10)) + stream((5000, 10), ports=(3, 4)), (0, 0)),
        ([], (0, 0)),
    ],
    ids=["whole", "hole", "out of order", "repeated", "wraps", "two connections", "none"],
)
def test_holes_and_repetitions(frames_seen: list[Frame], wanted: tuple[int, int]) -> None:
    assert short_capture.gaps(frames_seen) == wanted


def test_a_direction_in_words() -> None:
    found = short_capture.direction([*stream((0, 10), (30, 10)), Frame(HERE, THERE, "tcp", 0)], THERE)
    assert str(found) == "2 packets, 2 with data, largest payload 10, 20 bytes missing in between"
    assert short_capture.others(Capture(skipped={"fragment": 2}, damage="the file ends")) == "2 fragment, the file ends"
