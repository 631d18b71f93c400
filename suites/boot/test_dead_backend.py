# SPDX-License-Identifier: BSD-2-Clause
"""Devices whose backend is dead: the guest boots all the same."""

from __future__ import annotations

import re

from harness.deadline import ConditionNotMet
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen import vdev
from harness.xen.config import Disk

# run_interrupt_driven_hooks: still waiting after 60 seconds for xenbusb_nop_confighook_cb
WAITING = rb"run_interrupt_driven_hooks: still waiting after \d+ seconds for[^\r\n]*"


def test_boots_with_dead_backends(new_guest: NewGuest, scratch: NewScratch) -> None:
    """G1: further disks whose backends are closed, or never get ready, do not keep the guest from its login prompt."""
    guest = new_guest()
    # FreeBSD says after 60 s what it waits for; as long without progress is a hang to the console's reader.
    guest.scale *= 2
    dead = guest.profile.dead_backends
    disks = tuple(Disk(disk.target, name) for disk, name in zip(scratch(*dead), dead, strict=True))
    guest.reconfigure(disks=(*guest.config.disks, *disks)).create()
    for name, state in dead.items():
        kill(guest, name, state)
    guest.start()

    told = guest.deadline(100).wait("a login prompt, or what it waits for", lambda: look(guest), 0.5)

    states = guest.host.xenstore.tree(f"/local/domain/{guest.domid}/device/vbd")
    assert not told, finding(
        test=f"a boot with further disks whose backends are in state {', '.join(dead.values())} (6 closed, 1 initialising)",
        observed=[told, *(f"{path} = {value}" for path, value in states.items() if path.endswith("/state"))],
        expected="boots without the disks that it cannot have",
        reference=guest.profile.source("xenbus"),
    )
    guest.login()
    shown = {guest.profile.disk_name(name) for name in dead} & set(guest.profile.disks(guest.sh))
    assert not shown, f"it shows disks whose backends never connected: {', '.join(sorted(shown))}"


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
    raise ConditionNotMet(f"it is at stage {guest.console.stage or 'none'}")
