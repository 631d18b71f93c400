# SPDX-License-Identifier: BSD-2-Clause
"""A guest and an emulated network card on one bridge: dom0 finishes the guest's frames before the card gets them."""

from __future__ import annotations

import pytest

from harness.errors import CannotRun
from harness.guests import datagrams
from harness.guests.link import Link, Transfer
from harness.guests.tap import EmulatedLink, TapLink
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

from .support import SIZE, require_link

# Bytes of the headers of IPv4 and TCP without options.
HEADERS = 40
# A model that FreeBSD (em), Linux (e1000) and QEMU have had for twenty years.
CARD = "e1000"
NO_DATA = "the capture holds no data from the guest, so this case cannot judge"


@pytest.fixture
def tap(link: Link, case: CaseContext) -> TapLink:
    """A link to a TAP device on the bridge. Skips the case if dom0 has no TAP devices."""
    made = TapLink(link)
    case.undo.append(made.down)
    try:
        return made.up()
    except CannotRun as exc:
        pytest.skip(exc.reason)


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
    guest.profile.set_mtu(guest.sh, tap.interface, mtu)
    require_link(tap, f"a TAP device on dom0's bridge, MTU {mtu}")
    guest.sh(guest.profile.large_packets_command)
    full = mtu - HEADERS + 12
    sizes = (1, full, full + 1, 4097, 9216, 16384)
    bad = tap.checksum_errors() + guest.profile.checksum_errors(guest.sh)

    with tap.capture(case.directory / "tap.pcap") as seen:
        done = {"TCP to the card": tap.upload(SIZE // 2), "TCP from the card": tap.download(SIZE // 2)}
    done |= {"datagrams to the card": datagrams.up(tap, sizes), "datagrams from the card": datagrams.down(tap, sizes)}

    bad = tap.checksum_errors() + guest.profile.checksum_errors(guest.sh) - bad
    largest = frames.largest(frames.sent_by(seen, tap.there))
    case.metrics |= {"largest payload": float(largest), "bad checksums": float(bad)}
    wrong = complaints(done)
    if bad:
        wrong.append(f"the two ends threw {bad} segments away for their checksums")
    if largest > mtu - HEADERS:
        wrong.append(f"the card got a TCP segment of {largest} bytes, and {mtu - HEADERS} fit into its MTU")
    assert not wrong, finding(
        test=f"{SIZE >> 11} KiB of TCP and datagrams of {', '.join(map(str, sizes))} bytes to and from a TAP device, MTU {mtu}",
        observed=wrong,
        expected="everything arrives as it was sent, in frames that fit and with right checksums",
        reference=f"{guest.profile.source('netfront')}; Linux drivers/net/tun.c; xcp-ng/xcp issue 528",
    )
    assert largest > 0, NO_DATA


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

    wrong = complaints(done)
    if other.interface.startswith("xn"):
        wrong.append(f"with hw.xen.disable_pv_nics=1 the guest uses {other.interface}")
    largest = frames.largest(frames.sent_by(seen, link.there))
    if largest > 1500 - HEADERS:
        wrong.append(f"the card got a TCP segment of {largest} bytes")
    case.metrics |= {way: transfer.seconds for way, transfer in done.items()} | {"largest payload": float(largest)}
    assert not wrong, finding(
        test=f"{SIZE >> 12} KiB of TCP in each direction between {link.interface} and an emulated {CARD}, {other.interface}",
        observed=wrong,
        expected="everything arrives as it was sent, in frames that fit",
        reference=f"{link.guest.profile.source('netfront')}; Linux drivers/net/tun.c; xcp-ng/xcp issue 528",
    )
    assert largest > 0, NO_DATA


def complaints(done: dict[str, Transfer]) -> list[str]:
    """The defects of transfers, by their names."""
    return [f"{way}: {transfer.complaint}" for way, transfer in done.items() if transfer.complaint]
