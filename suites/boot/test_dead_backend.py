# SPDX-License-Identifier: BSD-2-Clause
"""Devices whose backend is dead do not stop a boot."""

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
    """A guest boots to its login prompt although backends of further disks are closed or never get ready.

    Source: sys/xen/xenbus/xenbusb.c, xenbusb_release_confighook(); sys/dev/xen/blkfront/blkfront.c, xbd_backend_changed()
    Catches: a boot that waits for xenbusb_nop_confighook_cb (known issue; similar to mfsbsd issue 125)
    """
    guest = new_guest()
    # FreeBSD reports after 60 s which device it waits for. The console reader takes 60 s without progress for a hang.
    guest.scale *= 2
    dead = guest.os.dead_backends
    disks = tuple(Disk(disk.target, name) for disk, name in zip(scratch(*dead), dead, strict=True))
    guest.reconfigure(disks=(*guest.config.disks, *disks)).create()
    for name, state in dead.items():
        disconnect_backend(guest, name, state)
    guest.start()

    problem = guest.deadline(100).wait("a login prompt, or a message about a device", lambda: boot_problem(guest), 0.5)

    states = guest.host.xenstore.tree(f"/local/domain/{guest.domid}/device/vbd")
    assert not problem, finding(
        test=f"a boot with further disks whose backends are in state {', '.join(dead.values())} (6 closed, 1 initialising)",
        observed=[problem, *(f"{path} = {value}" for path, value in states.items() if path.endswith("/state"))],
        expected="the guest boots without these disks",
        reference=guest.os.source("xenbus"),
    )
    guest.login()
    shown = {guest.os.disk_name(name) for name in dead} & set(guest.os.disks(guest.sh))
    assert not shown, finding(
        test="the guest's list of disks, after a boot with dead backends",
        observed=f"the guest lists {', '.join(sorted(shown))}, whose backends never connected",
        expected="the guest lists only disks whose backends are connected",
        reference=guest.os.source("xenbus"),
    )


def disconnect_backend(guest: Guest, name: str, state: str) -> None:
    """Unbind the backend of disk ``name`` from its driver in dom0, and leave it in xenbus ``state``."""
    device = f"vbd-{guest.domid}-{vdev.number(name)}"
    guest.host.transport.run(["sh", "-c", f"echo {device} > /sys/bus/xen-backend/drivers/vbd/unbind"])
    guest.host.xenstore.write(f"/local/domain/0/backend/vbd/{guest.domid}/{vdev.number(name)}/state", state)


def boot_problem(guest: Guest) -> str:
    """Return "" at the login prompt, or the message about the device that the boot waits for, or the guest's death.

    Raises ConditionNotMet while the boot continues.
    """
    if any(stage.name == "login" for stage in guest.console.stages):
        return ""
    if found := re.search(WAITING, guest.console.since(guest.console.boot_offset)):
        return found[0].decode(errors="replace")
    if guest.console.death is not None:
        return guest.console.death.summary
    raise ConditionNotMet(f"the boot is at stage {guest.console.stage or 'none'}")
