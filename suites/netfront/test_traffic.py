# SPDX-License-Identifier: BSD-2-Clause
"""Sizes, datagrams, small writes; another guest; forwarding."""

from __future__ import annotations

import pytest

from harness.guests import datagrams
from harness.guests.link import IPV4, IPV6, Link
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

from .conftest import families
from .test_offloads import SIZE, arrived

# Of an echo and of UDP: what is before the data of one that fits in a frame, less than before a segment's.
SHORTER = 12


@families("link", "netfront/test_traffic::test_echo_sizes")
def test_echo_sizes(link: Link) -> None:
    """D10: echoes of all sizes come back whole, those in many fragments, too."""
    link.guest.sh(link.guest.profile.large_packets_command)
    fits = link.family.mss + SHORTER
    # FreeBSD's ping sends no empty one by IPv6, busybox's no larger one.
    least = 0 if link.family is IPV4 else 1
    sizes = (least, 2, 56, fits - 1, fits, fits + 1, 2 * fits, 4095, 4096, 4097, 8192, 16384, 32768, 65507)
    lost = [size for size in sizes if not link.ping(size)]
    assert not lost, finding(
        test=f"echo requests of up to 65507 bytes by {link.family.name}",
        observed=f"no good answer for {lost}",
        expected="sends and takes fragments of all sizes",
        reference=link.guest.profile.source("netfront"),
    )


@families("link", "netfront/test_traffic::test_datagrams")
def test_datagrams(link: Link) -> None:
    """D10: UDP of sizes around one fragment, and of many, arrives both ways as it was sent."""
    link.guest.sh(link.guest.profile.large_packets_command)
    fits = link.family.mss + SHORTER
    sizes = (1, 2, 3, 11, 64, fits - 1, fits, fits + 1, 2952, 4096, 4097, 8192, 9216, 16384)
    wrong = [
        f"{way}: {done.complaint}"
        for way, done in (("to dom0", datagrams.up(link, sizes)), ("from dom0", datagrams.down(link, sizes)))
        if done.complaint
    ]
    assert not wrong, finding(
        test=f"datagrams of {', '.join(map(str, sizes))} bytes each way by {link.family.name}",
        observed=wrong,
        expected="sends and takes each",
        reference=link.guest.profile.source("netfront"),
    )


def test_small_writes(link: Link) -> None:
    """D9: a stream of tiny segments is taken as it comes."""
    arrived(link.download(30_000, chunk=11), "30 kB in writes of 11 bytes with TCP_NODELAY", link)


@pytest.mark.parametrize(("there", "here"), [(9000, 9000), (9000, 1500)])
def test_large_mtu(link: Link, there: int, here: int, case: CaseContext) -> None:
    """D8: jumbo frames on both ends, or on the guest's alone: nothing hangs."""
    for device in (link.vif, link.host.bridge):
        link.dom0("ip", "link", "set", device, "mtu", str(here), check=False)
    link.guest.profile.set_mtu(link.guest.sh, link.interface, there)
    assert link.wait_up(), f"no link with MTU {there}/{here}"

    with link.capture(case.directory / "both.pcap") as seen:
        up, down = link.upload(SIZE // 2), link.download(SIZE // 2)

    arrived(up, f"data from the guest, MTU {there} there, {here} here", link)
    arrived(down, f"data to the guest, MTU {there} there, {here} here", link)
    case.metrics["largest payload"] = float(frames.largest(frames.sent_by(seen, link.there)))


# new_guest comes first: it asks for a host at rest, and a link for a guest that runs.
@families("link", "netfront/test_traffic::test_between_guests")
def test_between_guests(new_guest: NewGuest, link: Link, case: CaseContext) -> None:
    """D1: a second guest on the same bridge: data arrives each way as it was sent, and nobody threw a segment away.

    What the one leaves to its backend (segmentation, a checksum that is not filled in) reaches the other as it is.
    """
    other = Link(new_guest().boot(), station=3, family=link.family).up()
    assert other.wait_up(), f"the second guest does not reach dom0 over {other.vif}"
    sides = (link, other)

    def thrown_away() -> list[int]:
        return [side.guest.profile.checksum_errors(side.guest.sh) for side in sides]

    before = thrown_away()

    with other.capture(case.directory / "between.pcap") as seen:
        there, back = link.to(other, SIZE // 4), other.to(link, SIZE // 4)

    bad = [now - first for now, first in zip(thrown_away(), before, strict=True)]
    largest = [frames.largest(frames.sent_by(seen, side.there)) for side in sides]
    case.metrics |= {"there": there.seconds, "back": back.seconds, "largest payload": float(max(largest))}
    wrong = [f"{way}: {done.complaint}" for way, done in (("there", there), ("back", back)) if done.complaint]
    wrong += [f"{side.guest.name} threw {n} segments away for their checksums" for side, n in zip(sides, bad, strict=True) if n]
    assert not wrong, finding(
        test=f"{SIZE >> 12} KiB of TCP each way by {link.family.name} between two guests on one bridge",
        observed=wrong,
        expected="takes what another guest sent, whole, also where its checksum is not filled in",
        reference=link.guest.profile.source("netfront"),
    )
    assert min(largest) > 0, "the capture on the second guest's vif holds no data"


@pytest.mark.parametrize(
    ("sides", "backend_tx"),
    [
        pytest.param(IPV4, "off", id="off"),
        pytest.param(IPV4, "on", id="on"),
        pytest.param(IPV6, "off", id="ipv6-off"),
        pytest.param(IPV6, "on", id="ipv6-on"),
    ],
    indirect=["sides"],
)
def test_forwarding(sides: tuple[Link, Link], case: CaseContext, backend_tx: str) -> None:
    """D11 D12: the guest routes between two networks of dom0; what it forwards has to have whole checksums.

    With ``tx on`` dom0 hands the guest packets whose checksum is not filled in yet, and the guest must not pass that on.
    """
    near, far = sides
    far.dom0("ip", "route", "add", near.here, "via", far.there)
    for side in (near, far):
        side.dom0("ethtool", "-K", side.vif, "tx", backend_tx)
    errors = near.checksum_errors() + far.checksum_errors()

    with far.capture(case.directory / "far.pcap", whole=True) as seen:
        done = near.forwarded(far, 64 << 10)

    bad = near.checksum_errors() + far.checksum_errors() - errors
    sent = frames.sent_by(seen, near.here)
    case.metrics |= {"bad checksums": float(bad), "frames": float(len(sent)), "largest payload": float(frames.largest(sent))}
    wrong = [
        word for word in (done.complaint, f"the two ends threw {bad} segments away for their checksums" if bad else "") if word
    ]
    assert not wrong, finding(
        test=f"64 KiB of TCP by {near.family.name} from one network to another through the guest, dom0's vif with tx {backend_tx}",
        observed=wrong,
        expected="forwards every packet with a whole checksum",
        reference=f"{near.guest.profile.source('netfront')}: FreeBSD bug 197344 (csum_blank is ignored), bug 273046 (LRO while forwarding)",
    )
