"""A guest with an address, and dom0 at the other end."""

from __future__ import annotations

import time

import pytest

from harness.deadline import Deadline, NotYet
from harness.errors import DeadlineExpired
from harness.guests import plug
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest
from harness.plugin.rig import CaseContext


def linked(guest: Guest) -> dict[str, str]:
    """A preparation: dom0 and the guest have reached each other."""
    found = Link(guest).up()
    assert found.wait_up(), f"{guest.name} does not reach dom0 over {found.vif}"
    return {"interface": found.interface}


@pytest.fixture
def link(booted: NewGuest, case: CaseContext) -> Link:
    guest = booted(linked)
    found = Link(guest, interface=guest.prepared["interface"])
    case.undo.append(found.down)
    return found


def in_the_middle(guest: Guest) -> dict[str, str]:
    """A preparation: a guest that forwards, between dom0 and a network namespace of it; dom0 knows the way there."""
    near, far = Link(guest).up(), Link(guest, 1, "fxhfar").up()
    assert near.wait_up(), "no link to the near side"
    assert far.wait_up(), "no link to the far side"
    guest.sh("sysctl net.inet.ip.forwarding=1" if guest.profile.os == "freebsd" else "echo 1 > /proc/sys/net/ipv4/ip_forward")
    near.dom0("ip", "route", "add", far.here, "via", near.there)
    return {"near": near.interface, "far": far.interface}


@pytest.fixture
def sides(booted: NewGuest, case: CaseContext) -> tuple[Link, Link]:
    """The near and the far side of a guest in the middle. The far side has no way back yet."""
    guest = booted(in_the_middle, vifs=2)
    near = Link(guest, interface=guest.prepared["near"])
    far = Link(guest, 1, "fxhfar", guest.prepared["far"])
    case.undo += [near.down, far.down]
    case.undo.append(lambda: near.dom0("ip", "route", "del", far.here, check=False))
    return near, far


def replug(guest: Guest, keys: dict[str, str], source: str) -> None:
    """The first interface is taken away and given again, by a backend with other ``keys``; it connects within 30 s."""
    guest.host.toolstack.network_detach(guest.domid, 0)
    vif = guest.config.vifs[0]

    def gone() -> None:
        if any(interface.mac == vif.mac for interface in guest.profile.interfaces(guest.sh)):
            raise NotYet("it still has it")

    # FreeBSD takes no notice of a device that comes back before it has forgotten the old one (sys/xen/xenbus/xenbusb.c,
    # xenbusb_add_device(): "already tracking this node"); seen here once in 150 times, with 4 vCPUs.
    Deadline(30 * guest.scale).wait("the interface to go", gone, 0.3)
    time.sleep(0.5)
    plug.attach(guest, "vif/0", keys, lambda: guest.host.toolstack.network_attach(guest.domid, vif))

    def connected() -> None:
        state = guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vif/0/state")
        if state != "4":
            raise NotYet(f"its frontend is in state {state}")

    try:
        Deadline(30 * guest.scale).wait("the interface to connect", connected, 0.3)
    except DeadlineExpired as exc:
        what = f" to a backend with {keys}" if keys else ""
        said = finding(asked=f"xl network-attach{what}", did=exc.message, good="connects it", source=source)
        pytest.fail(said, pytrace=False)


def again(guest: Guest, source: str) -> Link:
    """The link over an interface that was taken away and given again."""
    link = Link(guest).up()
    assert link.wait_up(), finding(
        asked="xl network-detach, then xl network-attach of the same interface",
        did=f"no answer over {link.interface} within 40 s",
        good="shows the interface again and uses it",
        source=source,
    )
    return link
