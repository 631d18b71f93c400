# SPDX-License-Identifier: BSD-2-Clause
"""Packets of all sizes, datagrams, small writes, large MTUs, a second guest, and forwarding."""

from __future__ import annotations

import pytest

from harness.guests import datagrams
from harness.guests.link import IPV4, IPV6, Link
from harness.oracles import frames
from harness.oracles.finding import finding, precondition
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

from .support import SHORTER, SIZE, assert_transferred, complaints, ipv4_and_ipv6, require_link, set_mtu


@ipv4_and_ipv6("link", "netfront/test_traffic::test_echo_sizes")
def test_echo_sizes(link: Link) -> None:
    """Echo requests of all sizes are answered with the same data, also those of many fragments.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    Catches: an interface that is down (planted)
    """
    link.guest.sh(link.guest.os.large_packets_command)
    fits = link.family.mss + SHORTER
    # FreeBSD's ping sends no empty packet by IPv6; busybox's ping sends none above 65507 bytes.
    least = 0 if link.family is IPV4 else 1
    sizes = (least, 2, 56, fits - 1, fits, fits + 1, 2 * fits, 4095, 4096, 4097, 8192, 16384, 32768, 65507)
    lost = [size for size in sizes if not link.ping(size)]
    assert not lost, finding(
        test=f"echo requests with {', '.join(map(str, sizes))} bytes of data by {link.family.name}",
        observed=f"no good answer to those of {', '.join(map(str, lost))} bytes",
        expected="the guest receives and sends packets and fragments of all sizes",
        reference=link.guest.os.source("netfront"),
    )


@ipv4_and_ipv6("link", "netfront/test_traffic::test_datagrams")
def test_datagrams(link: Link) -> None:
    """UDP datagrams of one and of many fragments arrive in both directions as they were sent.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    Catches: corrupted datagrams, a guest without IPv6, a low limit of the datagram size (planted)
    """
    link.guest.sh(link.guest.os.large_packets_command)
    fits = link.family.mss + SHORTER
    sizes = (1, 2, 3, 11, 64, fits - 1, fits, fits + 1, 2952, 4096, 4097, 8192, 9216, 16384)
    wrong = complaints({"to dom0": datagrams.up(link, sizes), "from dom0": datagrams.down(link, sizes)})
    assert not wrong, finding(
        test=f"datagrams of {', '.join(map(str, sizes))} bytes in each direction by {link.family.name}",
        observed=wrong,
        expected="every datagram arrives as it was sent",
        reference=link.guest.os.source("netfront"),
    )


def test_small_writes(link: Link) -> None:
    """A stream of 11-byte segments to the guest arrives complete.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    """
    assert_transferred(link.download(30_000, chunk=11), "30 kB to the guest in writes of 11 bytes with TCP_NODELAY", link)


@pytest.mark.parametrize(("there", "here"), [(9000, 9000), (9000, 1500)])
def test_large_mtu(link: Link, there: int, here: int, case: CaseContext) -> None:
    """With an MTU of 9000 at both ends, or at the guest's end only, data arrives in both directions.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    """
    set_mtu(link, here, case)
    link.guest.os.set_mtu(link.guest.sh, link.interface, there)
    mtus = f"MTU {there} in the guest and {here} in dom0"
    require_link(link, mtus)

    with link.capture(case.directory / "both.pcap") as seen:
        up, down = link.upload(SIZE // 2), link.download(SIZE // 2)

    assert_transferred(up, f"{SIZE // 2} bytes from the guest, {mtus}", link)
    assert_transferred(down, f"{SIZE // 2} bytes to the guest, {mtus}", link)
    case.metrics["largest payload"] = float(frames.largest(frames.sent_by(seen, link.there)))


# new_guest must come first, because it resets the host, and link needs a running guest.
@ipv4_and_ipv6("link", "netfront/test_traffic::test_between_guests")
def test_between_guests(new_guest: NewGuest, link: Link, case: CaseContext) -> None:
    """Between two guests on one bridge data arrives in both directions, and neither drops a segment for its checksum.

    Work that one guest leaves to its backend (segmentation, a checksum that is not filled in) reaches the other guest undone.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    Catches: corrupted frames on the bridge (planted)
    """
    other = Link(new_guest().boot(), station=3, family=link.family).up()
    require_link(other, "an address for the second guest's interface")
    sides = (link, other)

    def checksum_errors() -> list[int]:
        return [side.guest.os.checksum_errors(side.guest.sh) for side in sides]

    before = checksum_errors()

    with other.capture(case.directory / "between.pcap") as seen:
        there, back = link.to(other, SIZE // 4), other.to(link, SIZE // 4)

    bad = [now - first for now, first in zip(checksum_errors(), before, strict=True)]
    largest = [frames.largest(frames.sent_by(seen, side.there)) for side in sides]
    case.metrics |= {"there": there.seconds, "back": back.seconds, "largest payload": float(max(largest))}
    wrong = complaints({"to the second guest": there, "from the second guest": back})
    wrong += [f"{side.guest.name} threw {n} segments away for their checksums" for side, n in zip(sides, bad, strict=True) if n]
    assert not wrong, finding(
        test=f"{SIZE >> 12} KiB of TCP in each direction by {link.family.name} between two guests on one bridge",
        observed=wrong,
        expected="each guest accepts every segment of the other, also one whose checksum is not filled in",
        reference=link.guest.os.source("netfront"),
    )
    precondition(min(largest) > 0, "the capture on the second guest's vif holds no data of one direction")


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
    """A guest that routes between two networks forwards every packet with a full checksum.

    With ``tx on`` dom0 gives the guest packets without a full checksum; the guest has to complete it.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    Catches: csum_blank ignored (FreeBSD bug 197344); LRO while forwarding (FreeBSD bug 273046)
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
    wrong = [done.complaint] if done.complaint else []
    if bad:
        wrong.append(f"the two ends threw {bad} segments away for their checksums")
    assert not wrong, finding(
        test=f"64 KiB of TCP by {near.family.name} from one network to another through the guest; tx is {backend_tx} on dom0's vifs",
        observed=wrong,
        expected="the guest forwards every packet with a full checksum",
        reference=f"{near.guest.os.source('netfront')}: FreeBSD bug 197344 (csum_blank is ignored), bug 273046 (LRO while forwarding)",
    )
