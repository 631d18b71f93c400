# SPDX-License-Identifier: BSD-2-Clause
"""A guest with an address, and dom0 at the other end."""

from __future__ import annotations

import time

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.guests.link import IPV4, IPV6, Family, Link
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

# The network namespace of dom0 behind a guest in the middle.
FAR = "fxhfar"


def families(fixture: str, was: str) -> pytest.MarkDecorator:
    """For a case over IPv4, with the key ``was`` when it was there alone, and over IPv6."""
    first = pytest.param(IPV4, id="ipv4", marks=pytest.mark.formerly(was))
    return pytest.mark.parametrize(fixture, [first, pytest.param(IPV6, id="ipv6")], indirect=True)


def family_of(request: pytest.FixtureRequest) -> Family:
    return getattr(request, "param", IPV4)


def linked(guest: Guest) -> dict[str, str]:
    """A preparation: dom0 and the guest have reached each other."""
    found = Link(guest).up()
    assert found.wait_up(), f"{guest.name} does not reach dom0 over {found.vif}"
    return {"interface": found.interface}


def on_top(link: Link, case: CaseContext, family: Family) -> Link:
    """The same link in that family: a guest that was prepared for it would be a checkpoint more, for two commands."""
    case.undo.append(link.down)
    if link.family is family:
        return link
    guest = link.guest
    if not (guest.profile.has_ipv6(guest.sh) and link.dom0("ls", "/proc/sys/net/ipv6", check=False)):
        pytest.skip("needs IPv6 in the guest's kernel and in dom0's; elsewhere: fxh run netfront -k ipv6 --image IMAGE")
    other = Link(guest, link.index, link.namespace, link.interface, family=family)
    case.undo.append(other.down)
    assert other.up().wait_up(), f"{guest.name} does not reach dom0 over {link.vif} by {family.name}"
    return other


@pytest.fixture
def link(booted: NewGuest, case: CaseContext, request: pytest.FixtureRequest) -> Link:
    guest = booted(linked)
    return on_top(Link(guest, interface=guest.prepared["interface"]), case, family_of(request))


def in_the_middle(guest: Guest) -> dict[str, str]:
    """A preparation: a guest that forwards, between dom0 and a network namespace of it; dom0 knows the way there."""
    near, far = Link(guest).up(), Link(guest, 1, FAR).up()
    assert near.wait_up(), "no link to the near side"
    assert far.wait_up(), "no link to the far side"
    forwards(near, far)
    return {"near": near.interface, "far": far.interface}


def forwards(near: Link, far: Link) -> None:
    near.guest.sh(near.guest.profile.forwarding_command(ipv6=near.family is IPV6))
    near.dom0("ip", "route", "add", far.here, "via", near.there)


@pytest.fixture
def sides(booted: NewGuest, case: CaseContext, request: pytest.FixtureRequest) -> tuple[Link, Link]:
    """The near and the far side of a guest in the middle. The far side has no way back yet."""
    guest, family = booted(in_the_middle, vifs=2), family_of(request)
    near = on_top(Link(guest, interface=guest.prepared["near"]), case, family)
    far = on_top(Link(guest, 1, FAR, guest.prepared["far"]), case, family)
    if family is not IPV4:
        forwards(near, far)
    case.undo.append(lambda: near.dom0("ip", "route", "del", far.here, check=False))
    return near, far


def replug(guest: Guest, keys: dict[str, str], source: str) -> None:
    """The first interface is taken away and given again, by a backend with other ``keys``; it connects within 30 s."""
    guest.host.toolstack.network_detach(guest.domid, 0)
    vif = guest.config.vifs[0]

    def gone() -> None:
        if any(interface.mac == vif.mac for interface in guest.profile.interfaces(guest.sh)):
            raise ConditionNotMet("it still has it")

    # FreeBSD takes no notice of a device that comes back before it has forgotten the old one (sys/xen/xenbus/xenbusb.c,
    # xenbusb_add_device(): "already tracking this node"); seen here once in 150 times, with 4 vCPUs.
    guest.deadline(30).wait("the interface to go", gone, 0.3)
    time.sleep(0.5)
    hotplug.attach(guest, "vif/0", keys, lambda: guest.host.toolstack.network_attach(guest.domid, vif))

    def connected() -> None:
        state = guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vif/0/state")
        if state != "4":
            raise ConditionNotMet(f"its frontend is in state {state}")

    try:
        Deadline(30 * guest.scale).wait("the interface to connect", connected, 0.3)
    except DeadlineExpired as exc:
        what = f" to a backend with {keys}" if keys else ""
        said = finding(test=f"xl network-attach{what}", observed=exc.message, expected="connects it", reference=source)
        pytest.fail(said, pytrace=False)


def again(guest: Guest, source: str) -> Link:
    """The link over an interface that was taken away and given again."""
    link = Link(guest).up()
    assert link.wait_up(), finding(
        test="xl network-detach, then xl network-attach of the same interface",
        observed=f"no answer over {link.interface} within 40 s",
        expected="shows the interface again and uses it",
        reference=source,
    )
    return link
