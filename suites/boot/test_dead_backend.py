"""Devices whose backend is dead: the guest boots all the same."""

from __future__ import annotations

import re

import pytest

from harness.deadline import Deadline, NotYet
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen import vdev
from harness.xen.config import Disk

SOURCE = {
    "freebsd": "sys/xen/xenbus/xenbusb.c, xenbusb_release_confighook(); sys/kern/subr_autoconf.c",
    "linux": "drivers/xen/xenbus/xenbus_probe_frontend.c, wait_for_devices()",
}
# run_interrupt_driven_hooks: still waiting after 60 seconds for xenbusb_nop_confighook_cb
WAITING = rb"run_interrupt_driven_hooks: still waiting after \d+ seconds for[^\r\n]*"
# States of a backend (public/io/xenbus.h): it has closed, or it has begun and never gets further.
DEAD = {"closed": "6", "initialising": "1"}


@pytest.mark.parametrize(
    "state",
    [
        "closed",
        # Linux gives up after five minutes (wait_for_devices()): too long to look at in every run.
        pytest.param("initialising", marks=pytest.mark.needs(os="freebsd")),
    ],
)
def test_boots_with_a_dead_backend(new_guest: NewGuest, scratch: NewScratch, state: str) -> None:
    """G1: a second disk whose backend is dead does not keep the guest from its login prompt."""
    guest = new_guest()
    (disk,) = scratch("xvdk")
    guest.reconfigure(disks=(*guest.config.disks, Disk(disk.target, "xvdk"))).create()
    kill(guest, "xvdk", DEAD[state])
    guest.start()

    told = Deadline(200 * guest.scale).wait("a login prompt, or what it waits for", lambda: look(guest), 0.5)

    frontend = guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vbd/{vdev.number('xvdk')}/state")
    assert not told, finding(
        asked=f"a boot with a second disk, xvdk, whose backend is {state} ({DEAD[state]})",
        did=[told, f"the disk's frontend is in state {frontend}"],
        good="boots without the disk that it cannot have",
        source=SOURCE[guest.profile.os],
    )
    guest.login()
    assert guest.profile.disk_name("xvdk") not in guest.profile.disks(guest.sh)


def kill(guest: Guest, name: str, state: str) -> None:
    """Take the backend of a disk from its driver in dom0, and leave it in ``state``."""
    device = f"vbd-{guest.domid}-{vdev.number(name)}"
    guest.host.transport.run(["sh", "-c", f"echo {device} > /sys/bus/xen-backend/drivers/vbd/unbind"])
    guest.host.xenstore.write(f"/local/domain/0/backend/vbd/{guest.domid}/{vdev.number(name)}/state", state)


def look(guest: Guest) -> str:
    """What it says that it waits for, or "" once it asks for a login."""
    if any(stage.name == "login" for stage in guest.console.stages):
        return ""
    if found := re.search(WAITING, guest.console.since(guest.console.boot_offset)):
        return found[0].decode(errors="replace")
    if guest.console.death is not None:
        return guest.console.death.summary
    raise NotYet(f"it is at stage {guest.console.stage or 'none'}")
