# SPDX-License-Identifier: BSD-2-Clause
"""A guest and an emulated network card on one bridge: dom0 finishes the guest's frames before the card gets them."""

from __future__ import annotations

import pytest

from harness.guests import datagrams
from harness.guests.link import Link
from harness.guests.tap import EmulatedLink, TapLink
from harness.oracles import frames
from harness.oracles.finding import finding, precondition
from harness.oracles.frames import Frame
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

from .support import SHORTER, SIZE, complaints, require_link, up_or_skip

# Bytes.
MTU = 1500
# A model that FreeBSD (em), Linux (e1000) and QEMU have had for twenty years.
CARD = "e1000"


@pytest.fixture
def tap(link: Link, case: CaseContext) -> TapLink:
    """A link to a TAP device on the bridge. Skips the case if dom0 has no TAP devices."""
    return up_or_skip(TapLink(link), case)


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_tap(tap: TapLink, mtu: int, case: CaseContext) -> None:
    """TCP and datagrams by IPv4 pass between the guest and a TAP device. Segments from the guest fit, and each checksum is right.

    dom0 has to copy the guest's pages into frames for a program, divide large segments, and complete checksums.

    Kind of bug: work that a guest leaves to its backend, at a device that cannot do it.

    Source: Linux drivers/net/tun.c, tun_net_xmit(); drivers/net/xen-netback/netback.c; QEMU net/tap-linux.c
    Catches: the NULL dereference in skb_copy_ubufs() that stopped dom0 (xcp-ng/xcp issue 528)
    """
    guest = tap.guest
    tap.set_mtu(mtu)
    guest.os.set_mtu(guest.sh, tap.interface, mtu)
    require_link(tap, f"a TAP device on dom0's bridge, MTU {mtu}")
    guest.sh(guest.os.large_packets_command)
    segment = tap.family.mss + mtu - MTU
    full = segment + SHORTER
    sizes = (1, full, full + 1, 4097, 9216, 16384)
    bad = tap.checksum_errors() + guest.os.checksum_errors(guest.sh)

    with tap.capture(case.directory / "tap.pcap") as seen:
        done = {"TCP to the card": tap.upload(SIZE // 2), "TCP from the card": tap.download(SIZE // 2)}
    done |= {"datagrams to the card": datagrams.up(tap, sizes), "datagrams from the card": datagrams.down(tap, sizes)}

    bad = tap.checksum_errors() + guest.os.checksum_errors(guest.sh) - bad
    case.metrics |= {"bad checksums": float(bad)}
    test = f"{SIZE >> 11} KiB of TCP and datagrams of {', '.join(map(str, sizes))} bytes to and from a TAP device, MTU {mtu}"
    wrong = [f"the two ends threw {bad} segments away for their checksums"] if bad else []
    assert_finished(tap, seen, segment, case, test, [*complaints(done), *wrong])


# new_guest must come first, because it resets the host, and link needs a running guest.
@pytest.mark.needs(os="freebsd", types=("hvm",))
def test_guest_without_pv_nic(new_guest: NewGuest, link: Link, case: CaseContext) -> None:
    """A guest with a PV interface and one that drives QEMU's emulated card exchange TCP by IPv4.

    Kind of bug: work that a guest leaves to its backend, at a device that cannot do it.

    Source: sys/x86/xen/hvm.c, xen_hvm_disable_emulated_devices(); QEMU hw/net/e1000.c
    Catches: the NULL dereference in skb_copy_ubufs() that stopped dom0 (xcp-ng/xcp issue 528)
    """
    other = EmulatedLink(
        new_guest(emulated_nic=CARD, variables=(("hw.xen.disable_pv_nics", "1"),)).boot(), station=3, family=link.family
    )
    require_link(other.up(), f"an address for a guest with an emulated {CARD}")

    with other.capture(case.directory / "card.pcap") as seen:
        done = {"TCP to the card": link.to(other, SIZE // 4), "TCP from the card": other.to(link, SIZE // 4)}

    case.metrics |= {way: transfer.seconds for way, transfer in done.items()}
    test = f"{SIZE >> 12} KiB of TCP in each direction between {link.interface} and an emulated {CARD}, {other.interface}"
    wrong = [f"with hw.xen.disable_pv_nics=1 the guest uses {other.interface}"] if other.interface.startswith("xn") else []
    assert_finished(link, seen, link.family.mss, case, test, [*complaints(done), *wrong])


def assert_finished(link: Link, seen: list[Frame], segment: int, case: CaseContext, test: str, wrong: list[str]) -> None:
    """Fail if ``wrong`` names a defect, or if the card got a TCP segment of the guest with more than ``segment`` bytes, or none."""
    largest = frames.largest(frames.sent_by(seen, link.there))
    case.metrics["largest payload"] = float(largest)
    if largest > segment:
        wrong = [*wrong, f"the card got a TCP segment of {largest} bytes, and {segment} fit into its MTU"]
    assert not wrong, finding(
        test=test,
        observed=wrong,
        expected="everything arrives as it was sent, in frames that fit and with right checksums",
        reference=f"{link.guest.os.source('netfront')}; Linux drivers/net/tun.c; xcp-ng/xcp issue 528",
    )
    precondition(largest > 0, "the capture holds no data from the guest")
