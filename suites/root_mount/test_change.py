# SPDX-License-Identifier: BSD-2-Clause
"""Disks that are attached, detached or resized while the guest runs."""

from __future__ import annotations

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import GuestCommandFailed
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.oracles.finding import finding, precondition
from harness.oracles.naming import Given, misnamed
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewScratch
from harness.xen.config import Disk

from .support import frontend_state


def test_hot_plug(guest: Guest, scratch: NewScratch) -> None:
    """A disk attached to a running guest has the right name and content; it can be detached and attached again.

    Source: sys/dev/xen/blkfront/blkfront.c; Linux drivers/block/xen-blkfront.c
    Catches: a guest that ignores a detach request (planted)
    """
    (disk,) = scratch("xvdc")
    name = guest.os.disk_name("xvdc")
    for test in (
        "xl block-attach of a disk to a running guest",
        "xl block-attach of a disk to a running guest, again after its detach",
    ):
        guest.host.toolstack.block_attach(guest.domid, Disk(disk.target, "xvdc"))

        there = hotplug.wait_disks(guest, {name})
        seen = hotplug.digests(guest.sh, sorted(there))
        wrong = misnamed((Given("xvdc", disk.digest),), seen, guest.os.disk_name)
        assert not wrong, finding(
            test=test,
            observed=wrong,
            expected=f"the guest shows the disk as {name} within seconds",
            reference=guest.os.source("blkfront"),
        )

        stays: list[str] = []
        try:
            hotplug.let_go(guest, "xvdc")
        except GuestCommandFailed as exc:
            stays = exc.output.splitlines()
        if name in (left := hotplug.wait_disks(guest, set(), {name})):
            stays.append(f"{name} is still among the guest's disks: {' '.join(sorted(left))}")
        elif (state := frontend_state(guest, "xvdc")) not in ("", "6"):
            stays.append(f"the disk is gone, but its frontend is in state {state}")
        assert not stays, finding(
            test="xl block-detach of a disk that is not in use",
            observed=stays,
            expected="the guest closes the frontend (state 6, or no node) within ten seconds and removes the disk",
            reference=guest.os.source("blkfront"),
        )


def test_detach_in_use(guest: Guest, scratch: NewScratch) -> None:
    """A disk that is open stays until it is closed, and the guest releases it then.

    Source: sys/dev/xen/blkfront/blkfront.c, xbd_closing(); Linux drivers/block/xen-blkfront.c, blkfront_closing()
    """
    (disk,) = scratch("xvdc", size=4 * scratches.MIB)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    guest.sh(f"sleep 300 < /dev/{name} >/dev/null 2>&1 & echo $! > /tmp/user")

    guest.host.transport.run(["timeout", "30", "xl", "block-detach", str(guest.domid), "xvdc"], Deadline(60), check=False)

    assert guest.sh("echo alive") == "alive", "the shell does not answer `echo alive` after xl block-detach of an open disk"
    during = frontend_state(guest, "xvdc")
    guest.sh("kill $(cat /tmp/user)")
    left = hotplug.wait_disks(guest, set(), {name})
    assert name not in left, finding(
        test="xl block-detach while a process has the disk open, then the process ends",
        observed=[f"{name} is still there; its frontend's state was {during!r} and is {frontend_state(guest, 'xvdc')!r}",
             *guest.os.attach_log(guest.sh).splitlines()[-5:]],
        expected="the guest prints `detaching with pending users` and closes the frontend (state 6) after the last user",
        reference=f"{guest.os.source('blkfront')}, xbd_closing() / blkfront_closing()",
    )  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [("xvdb1", "xvdb2"), ("hdc1", "hdc2"), ("xvdd", "0xCB30")])
@pytest.mark.needs(os="freebsd")
def test_collision_is_survived(guest: Guest, scratch: NewScratch, first: str, second: str, case: CaseContext) -> None:
    """If two vdevs map to one disk name, the guest keeps running, and the first disk keeps its name and content.

    Source: sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(); sys/geom/geom_dev.c, g_dev_taste()
    """
    name = guest.os.disk_name(first)
    precondition(name == guest.os.disk_name(second), f"{first} and {second} map to different names")
    one, two = scratch(first, second)
    hotplug.disk(guest, Disk(one.target, first))

    guest.host.toolstack.block_attach(guest.domid, Disk(two.target, second))

    guest.deadline(20).wait("the second frontend to settle", lambda: _require_settled(guest, second), 0.5)
    log = guest.os.attach_log(guest.sh)
    (case.directory / "attach.txt").write_text(log)
    digest = hotplug.digests(guest.sh, [name]).get(name)
    assert digest == one.digest, finding(
        test=f"a disk {first}, then a disk {second}; the table maps both to {name}",
        observed=[f"/dev/{name} holds {'the second disk' if digest == two.digest else 'neither'}", *log.splitlines()[-6:]],
        expected="the first disk keeps its name, and the guest reports that the second has none",
        reference="sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(); sys/geom/geom_dev.c, g_dev_taste()",
    )


def _require_settled(guest: Guest, name: str) -> None:
    """Raise ConditionNotMet unless the frontend of vdev ``name`` is connected (4), closing (5) or closed (6)."""
    state = frontend_state(guest, name)
    if state not in ("4", "5", "6"):
        raise ConditionNotMet(f"the frontend is in state {state!r}")


def test_read_only(guest: Guest, scratch: NewScratch) -> None:
    """A read-only disk can be read, a write to it fails in the guest, and its content stays.

    Source: sys/dev/xen/blkfront/blkfront.c (VDISK_READONLY); Linux drivers/block/xen-blkfront.c
    Catches: a write that goes through to a read-only disk (planted)
    """
    (disk,) = scratch("xvdc")
    name = hotplug.disk(guest, Disk(disk.target, "xvdc", readonly=True))

    write = guest.run(f"dd if=/dev/zero of=/dev/{name} bs=512 count=1 && sync", check=False)

    behind = guest.host.transport.run(["md5sum", disk.file]).text.split()[0]
    digest = hotplug.digests(guest.sh, [name]).get(name)
    assert (write.status != 0, digest, behind) == (True, disk.digest, disk.digest), finding(
        test=f"a write to {name}, which the toolstack attached read-only",
        observed=f"dd ended with status {write.status} ({' '.join(write.text.splitlines()[-1:])}); the content is "
        f"{'unchanged' if digest == disk.digest else 'changed'} in the guest and "
        f"{'unchanged' if behind == disk.digest else 'changed'} in dom0",
        expected="the guest refuses the write and can still read the disk",
        reference=f"{guest.os.source('blkfront')} (VDISK_READONLY in the backend's `info`)",
    )


@pytest.mark.parametrize("sector", [512, 4096])
def test_resize(guest: Guest, scratch: NewScratch, sector: int, case: CaseContext) -> None:
    """With sectors of 512 and 4096 bytes a disk has the size of its backend, and grows with it.

    Source: xen 221f2748e8 (public/io/blkif.h); sys/dev/xen/blkfront/blkfront.c, xbd_connect()
    Catches: `sectors` counted in units of the backend's sector size (FreeBSD bug 280884)
    """
    (disk,) = scratch("xvdc", size=4 * scratches.MIB, sector=sector)
    ask = guest.os
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    before = ask.disk_bytes(guest.sh, name)
    assert before == disk.size, finding(
        test=f"a disk of {disk.size} bytes with sectors of {sector} bytes",
        observed=f"{name} has {before} bytes ({before / disk.size:g} times as many)",
        expected=f"{name} has {disk.size} bytes: `sectors` in xenstore counts units of 512 bytes, whatever the sector size",
        reference="xen 221f2748e8 (public/io/blkif.h); FreeBSD bug 280884",
    )

    scratches.resize(guest.host, disk, 8 * scratches.MIB)
    # Linux's blkback checks the size of its device when a request arrives (drivers/block/xen-blkback/blkback.c, vbd_resize()).
    wanted, seen = 8 * scratches.MIB, before
    for block in range(20):
        guest.sh(f"dd if=/dev/{name} of=/dev/null bs=4096 count=1 skip={500 + block} 2>/dev/null; true")
        seen = ask.disk_bytes(guest.sh, name)
        if seen != before:
            break
    assert seen == wanted, finding(
        test=f"the backend of {name} ({sector} byte sectors) grew from {disk.size} to {wanted} bytes",
        observed=f"{name} has {seen} bytes",
        expected=f"{name} has the new size, {wanted} bytes",
        reference=f"{guest.os.source('blkfront')} (xbd_connect, BLKIF_STATE_CONNECTED); FreeBSD main still multiplies by the sector size",
    )
