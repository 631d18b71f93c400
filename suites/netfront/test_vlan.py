# SPDX-License-Identifier: BSD-2-Clause
"""A VLAN on a guest's interface: its MTU, its tags, and data through it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.guests.link import IPV4, IPV6, Family, Link
from harness.guests.vlan import VlanLink
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .support import SIZE, complaints, require_link, set_offloads, up_or_skip

# Bytes of an Ethernet frame without its header, and of data in an echo request that fills it.
MTU, FULL = 1500, 1472

Tagged = Callable[[Family], VlanLink]


@pytest.fixture
def tagged(link: Link, case: CaseContext) -> Tagged:
    """``tagged(family)``: a link over a VLAN between dom0 and the guest. Skips the case if guest or dom0 have no VLANs."""

    def make(family: Family) -> VlanLink:
        return up_or_skip(VlanLink(link, family), case)

    return make


def test_vlan_mtu(tagged: Tagged) -> None:
    """A VLAN has the MTU of its interface, 1500, and an unfragmented packet of that size passes in both directions.

    Other paravirtual interfaces carry the four bytes of the tag in addition, as Ethernet does (IEEE 802.3ac).

    Kind of bug: the driver does not declare what its device can carry, so a layer above takes less.

    Source: sys/net/if_vlan.c, vlan_config(); Linux drivers/net/xen-netback (it accepts frames of up to 64 KiB)
    Catches: netfront does not set IFCAP_VLAN_MTU, so the VLAN's MTU is 1496 (known issue)
    """
    link = tagged(IPV4)
    guest, ask = link.guest, link.guest.os
    require_link(link, f"an address in VLAN {link.tag}")

    mtu = next(interface.mtu for interface in ask.interfaces(guest.sh) if interface.name == link.interface)
    sent = guest.run(ask.ping_command(link.here, 5, FULL, whole=True), check=False)
    came = link.dom0("ping", "-M", "do", "-c", "1", "-W", "5", "-s", str(FULL), link.there, check=False)

    wrong = []
    if mtu != MTU:
        wrong.append(f"{link.interface} has MTU {mtu}, and its parent {link.parent} has {MTU}")
    if sent.status:
        wrong.append(f"no answer to {FULL} bytes of data with DF from the guest: {' '.join(sent.text.split())}")
    if "1 received" not in came:
        wrong.append(f"no answer to {FULL} bytes of data with DF to the guest")
    assert not wrong, finding(
        test=f"VLAN {link.tag} on {link.parent} and on dom0's bridge, echo requests with {FULL} bytes of data in both directions",
        observed=wrong,
        expected=f"the VLAN has MTU {MTU}, and both requests are answered",
        reference="sys/dev/xen/netfront/netfront.c, create_netdev() (if_capabilities); sys/net/if_vlan.c, vlan_config() (ifv_mtufudge)",
    )


@pytest.mark.parametrize("family", [IPV4, IPV6], ids=lambda family: family.name)
def test_vlan_data(tagged: Tagged, link: Link, family: Family, case: CaseContext) -> None:
    """TCP through a VLAN arrives as it was sent, tagged in both directions, with the interface's offloads on and off.

    Kind of bug: an offload of the interface that is wrong below a VLAN header (checksums at the wrong place, large segments).

    Source: sys/net/if_vlan.c, vlan_capabilities(); sys/dev/xen/netfront/netfront.c
    """
    over, ask = tagged(family), link.guest.os
    require_link(over, f"an address in VLAN {over.tag}")
    flags = ask.offloads(link.guest.sh, link.interface)
    wrong = []
    for name, on in (("offloads on", True), ("offloads off", False)):
        set_offloads(link, **dict.fromkeys(flags, on))
        errors = over.checksum_errors()
        with over.capture(case.directory / f"{name.replace(' ', '-')}.pcap") as seen:
            up, down = over.upload(SIZE // 4), over.download(SIZE // 4)
        wrong += [f"{name}: {line}" for line in complaints({"to dom0": up, "from dom0": down})]
        # The capture takes tagged frames only.
        if not all(frames.sent_by(seen, address) for address in (over.here, over.there)):
            wrong.append(f"{name}: not all frames with data have the tag {over.tag}")
        if bad := over.checksum_errors() - errors:
            wrong.append(f"{name}: dom0 threw {bad} segments away for their checksums")
    assert not wrong, finding(
        test=f"{SIZE >> 12} KiB of TCP by {family.name} in each direction through VLAN {over.tag} on {link.interface}, "
        f"with and without {', '.join(flags)}",
        observed=wrong,
        expected="every byte arrives as it was sent, in tagged frames",
        reference=f"{link.guest.os.source('netfront')}; sys/net/if_vlan.c, vlan_capabilities()",
    )
