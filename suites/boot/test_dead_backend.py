"""Devices whose backend never comes to life: the guest boots all the same."""

from __future__ import annotations

import re

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
# A backend that has just closed, and one that has begun and never gets further (public/io/xenbus.h).
DEAD = {"xvdk": "6", "xvdl": "1"}


def test_boots_with_dead_backends(new_guest: NewGuest, scratch: NewScratch) -> None:
    """G1: with a disk whose backend has closed and one whose backend never gets ready, it boots, without these disks."""
    guest = new_guest()
    disks = tuple(Disk(disk.target, name) for disk, name in zip(scratch(*DEAD), DEAD, strict=True))
    guest.reconfigure(disks=(*guest.config.disks, *disks)).create()
    for name, state in DEAD.items():
        kill(guest, name, state)
    guest.start()

    told = Deadline(150 * guest.scale).wait("a login prompt, or what it waits for", lambda: look(guest), 0.5)

    assert not told, finding(
        asked="a boot with two more disks: the backend of one is closed, that of the other never gets ready",
        did=[
            told,
            *(f"{name}, backend in state {state}: its frontend is in state {front(guest, name)}" for name, state in DEAD.items()),
        ],
        good="boots without the disks that it cannot have",
        source=SOURCE[guest.profile.os],
    )
    guest.login()
    assert not {guest.profile.disk_name(name) for name in DEAD} & set(guest.profile.disks(guest.sh))


def kill(guest: Guest, name: str, state: str) -> None:
    """Take the backend of a disk from its driver in dom0, and leave it in ``state``."""
    device = f"vbd-{guest.domid}-{vdev.number(name)}"
    guest.host.transport.run(["sh", "-c", f"echo {device} > /sys/bus/xen-backend/drivers/vbd/unbind"])
    guest.host.xenstore.write(f"/local/domain/0/backend/vbd/{guest.domid}/{vdev.number(name)}/state", state)


def front(guest: Guest, name: str) -> str:
    path = f"/local/domain/{guest.domid}/device/vbd/{vdev.number(name)}/state"
    return guest.host.xenstore.read(path) or "none"


def look(guest: Guest) -> str:
    """What it says that it waits for, or "" once it asks for a login."""
    if any(stage.name == "login" for stage in guest.console.stages):
        return ""
    if found := re.search(WAITING, guest.console.since(guest.console.boot_offset)):
        return found[0].decode(errors="replace")
    raise NotYet(f"it is at stage {guest.console.stage or 'none'}")
