# SPDX-License-Identifier: BSD-2-Clause
"""A guest that moved announces all its addresses, so that its neighbours and the switches find it."""

from __future__ import annotations

import time

from harness.deadline import ConditionNotMet
from harness.errors import CannotRun
from harness.guests import capture, suspend
from harness.guests.guest import Guest
from harness.guests.link import IPV4, IPV6, Link
from harness.guests.vlan import VlanLink
from harness.oracles import announcements
from harness.oracles.announcements import Announcement
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

# Seconds from the connection of the interface to the last announcement.
WITHIN = 3.0


def give_addresses(link: Link, case: CaseContext) -> list[Announcement]:
    """Give the guest a second IPv4 address, two of IPv6 and a VLAN with one, and return all that it has.

    A kernel without IPv6 or VLANs gets the others.
    """
    guest, ask = link.guest, link.guest.os
    mac = guest.config.vifs[link.index].mac
    net = link.index + 77
    more = [IPV4.address.format(net=net, station=4)]
    if ask.has_ipv6(guest.sh):
        more += [IPV6.address.format(net=net, station=station) for station in (2, 4)]
    for address in more:
        family = IPV6 if ":" in address else IPV4
        ask.add_address(guest.sh, link.interface, f"{address}/{family.prefix}")
    found = [Announcement(mac, address) for address in (link.there, *more)]
    tagged = VlanLink(link)
    case.undo.append(tagged.down)
    try:
        tagged.up()
    except CannotRun:
        return found
    return [*found, Announcement(mac, tagged.there, tagged.tag)]


def wait_connected(guest: Guest) -> None:
    """Wait until the frontend of the guest's first interface is connected."""

    def connected() -> None:
        state = guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vif/0/state")
        if state != "4":
            raise ConditionNotMet(f"the frontend is in state {state}")

    guest.deadline(30).wait("the restored interface to connect", connected, 0.2)


def announced(
    link: Link, case: CaseContext, wanted: list[Announcement], name: str
) -> tuple[tuple[Announcement, ...], tuple[str, ...]]:
    """Save and restore the guest. Returns its announcements on the bridge, and a line for each wanted one that is missing."""
    guest, target = link.guest, case.directory / name
    with capture.to_file(guest.host, guest.host.bridge, target, "arp or icmp6 or vlan"):
        suspend.through_a_file(guest)
        wait_connected(guest)
        time.sleep(WITHIN)
    seen = announcements.read(target)
    return seen, announcements.missing(wanted, seen)


def test_saved_guest_announces_itself(link: Link, case: CaseContext) -> None:
    """A restored guest that sends nothing by itself announces each address: of IPv4, of IPv6, and in a VLAN.

    A gratuitous ARP or an unsolicited neighbour advertisement tells switches and neighbours on which port the guest is now.

    Kind of bug: after a resume not all who have to know are notified.

    Source: RFC 5227, 3; RFC 4861, 7.2.6; Linux drivers/net/xen-netfront.c, netback_changed(); sys/dev/xen/netfront/netfront.c
    Catches: no announcement by IPv6 and in a VLAN (FreeBSD 13 and 14, netfront_send_fake_arp()); none by IPv6 (15.1)
    """
    guest = link.guest
    wanted = give_addresses(link, case)
    seen, wrong = announced(link, case, wanted, "bridge.pcap")
    case.metrics |= {"addresses": float(len(wanted)), "announcements": float(len(seen))}
    if wrong:
        # Nothing repeats a lost announcement. So only an address that two restores do not announce counts.
        _, again = announced(link, case, wanted, "bridge-again.pcap")
        wrong = tuple(line for line in wrong if line in again)
    assert not wrong, finding(
        test=f"xl save and xl restore of a guest with the addresses {', '.join(map(str, wanted))}, with a capture on the bridge",
        observed=wrong,
        expected=f"within {WITHIN:.0f} s of its connection the interface announces each address",
        reference=f"{guest.os.source('netfront')}; RFC 5227, 3 (ARP); RFC 4861, 7.2.6 (IPv6)",
    )
