# SPDX-License-Identifier: BSD-2-Clause
"""Helpers that the netfront cases share: links, offloads, and an interface that is detached and attached again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import CannotRun, DeadlineExpired
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.guests.link import IPV4, IPV6, Family, Link, Transfer
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

# Bytes of a usual transfer.
SIZE = 1 << 20
# Bytes by which an ICMP or UDP header is shorter than a TCP header, so that much more data fits into a frame.
SHORTER = 12


# -- parameters ---------------------------------------------------------------------------------------------------------


def ipv4_and_ipv6(fixture: str, former_key: str) -> pytest.MarkDecorator:
    """Parametrize a case over IPv4 and IPv6. ``former_key`` is its history key from the time without this parameter."""
    first = pytest.param(IPV4, id="ipv4", marks=pytest.mark.formerly(former_key))
    return pytest.mark.parametrize(fixture, [first, pytest.param(IPV6, id="ipv6")], indirect=True)


def family_of(request: pytest.FixtureRequest) -> Family:
    """Return the fixture's parameter; IPv4 without one."""
    return getattr(request, "param", IPV4)


# -- links --------------------------------------------------------------------------------------------------------------


def require_link(link: Link, test: str) -> None:
    """Fail with a finding unless dom0 and the guest reach each other over ``link``."""
    assert link.wait_up(), finding(
        test=test,
        observed=f"{link.guest.name} does not reach dom0 over {link.vif} by {link.family.name}",
        expected="dom0 and the guest reach each other",
        reference=link.guest.os.source("netfront"),
    )


def link_up(guest: Guest) -> dict[str, str]:
    """Preparation of a guest: give it an address and wait until dom0 and the guest reach each other."""
    link = Link(guest).up()
    require_link(link, "an address for the guest's interface")
    return {"interface": link.interface}


def routed_between(guest: Guest) -> dict[str, str]:
    """Preparation of a guest: make it the router between dom0 and a network namespace of dom0, with a route in dom0."""
    near, far = Link(guest).up(), Link(guest, 1, far_namespace(guest)).up()
    require_link(near, "an address for the guest's first interface")
    require_link(far, "an address for the guest's second interface, whose other end is in a network namespace")
    enable_forwarding(near, far)
    return {"near": near.interface, "far": far.interface}


def far_namespace(guest: Guest) -> str:
    """The network namespace of dom0 behind a guest that forwards. Runs that share a host have one each."""
    return f"fxhfar{guest.host.slot}"


def enable_forwarding(near: Link, far: Link) -> None:
    """Make the guest a router, and give dom0 the route to the far side."""
    near.guest.sh(near.guest.os.forwarding_command(ipv6=near.family is IPV6))
    near.dom0("ip", "route", "add", far.here, "via", near.there)


def in_family(link: Link, case: CaseContext, family: Family) -> Link:
    """Return the link in ``family``. IPv6 is added to a guest prepared for IPv4: this needs two commands and no checkpoint.

    Skips the case if the guest's or dom0's kernel has no IPv6.
    """
    case.undo.append(link.down)
    if link.family is family:
        return link
    guest = link.guest
    if not (guest.os.has_ipv6(guest.sh) and link.dom0("ls", "/proc/sys/net/ipv6", check=False)):
        pytest.skip("needs IPv6 in the guest's kernel and in dom0's; elsewhere: fxh run netfront -k ipv6 --image IMAGE")
    other = Link(guest, link.index, link.namespace, link.interface, family=family)
    case.undo.append(other.down)
    require_link(other.up(), f"an {family.name} address for the guest's interface")
    return other


Target = TypeVar("Target", bound=Link)


def up_or_skip(link: Target, case: CaseContext) -> Target:
    """Bring a link up until the end of the case. Skips the case if dom0 cannot have such a link."""
    case.undo.append(link.down)
    try:
        link.up()
    except CannotRun as exc:
        pytest.skip(exc.reason)
    return link


def set_mtu(link: Link, mtu: int, case: CaseContext) -> None:
    """Set the MTU of dom0's end of the link, in bytes. The bridge gets its own back at the end of the case."""
    before = link.dom0("cat", f"/sys/class/net/{link.host.bridge}/mtu").strip()
    case.undo.append(lambda: link.dom0("ip", "link", "set", link.host.bridge, "mtu", before, check=False))
    for device in (link.vif, link.host.bridge):
        link.dom0("ip", "link", "set", device, "mtu", str(mtu), check=False)


# -- transfers and offloads ---------------------------------------------------------------------------------------------


def assert_transferred(transfer: Transfer, test: str, link: Link) -> None:
    """Fail unless all bytes arrived as they were sent."""
    assert not transfer.complaint, finding(
        test=test,
        observed=transfer.complaint,
        expected="every byte arrives as it was sent, within seconds",
        reference=link.guest.os.source("netfront"),
    )


def complaints(done: Mapping[str, Transfer]) -> list[str]:
    """The defects of transfers, by their names."""
    return [f"{way}: {transfer.complaint}" for way, transfer in done.items() if transfer.complaint]


def set_offloads(link: Link, **flags: bool) -> None:
    """Switch offloads of the guest's interface on or off, one after the other."""
    ask = link.guest.os
    # Linux refuses TSO while scatter-gather is off.
    strict = ask.independent_offloads
    for name, on in flags.items():
        link.guest.run(ask.offload_command(link.interface, name, on), 90, check=strict)


# -- an interface that goes and comes -----------------------------------------------------------------------------------


def reattach_interface(guest: Guest, keys: dict[str, str], source: str) -> None:
    """Detach the first interface and attach it again, with ``keys`` in the backend's xenstore directory.

    The case fails with reference ``source`` if the frontend does not connect within 30 s.
    """
    guest.host.toolstack.network_detach(guest.domid, 0)
    vif = guest.config.vifs[0]

    def gone() -> None:
        if any(interface.mac == vif.mac for interface in guest.os.interfaces(guest.sh)):
            raise ConditionNotMet("the guest still has the interface")

    # FreeBSD ignores a device that comes back before the old one is removed (sys/xen/xenbus/xenbusb.c, xenbusb_add_device():
    # "already tracking this node"). Seen once in 150 times, with 4 vCPUs.
    guest.deadline(30).wait("the interface to go", gone, 0.3)
    time.sleep(0.5)
    hotplug.attach(guest, "vif/0", keys, lambda: guest.host.toolstack.network_attach(guest.domid, vif))

    def connected() -> None:
        state = guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vif/0/state")
        if state != "4":
            raise ConditionNotMet(f"the frontend is in state {state}")

    try:
        Deadline(30 * guest.scale).wait("the interface to connect", connected, 0.3)
    except DeadlineExpired as exc:
        backend = f" to a backend with {keys}" if keys else ""
        failure = finding(
            test=f"xl network-attach{backend}",
            observed=exc.message,
            expected="the frontend connects (state 4) within 30 s",
            reference=source,
        )
        pytest.fail(failure, pytrace=False)


def link_after_reattach(guest: Guest, source: str) -> Link:
    """Return the link over an interface that was detached and attached again; fail if the guest does not answer."""
    link = Link(guest).up()
    assert link.wait_up(), finding(
        test="xl network-detach, then xl network-attach of the same interface",
        observed=f"the guest does not answer over {link.interface} within 40 s",
        expected="the guest shows the interface again and uses it",
        reference=source,
    )
    return link
