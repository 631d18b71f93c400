# SPDX-License-Identifier: BSD-2-Clause
"""Disks that come, go and change while the guest runs."""

from __future__ import annotations

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import GuestCommandFailed
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.oracles.finding import finding
from harness.oracles.naming import Given, misnamed
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewScratch
from harness.xen import vdev
from harness.xen.config import Disk


def frontend_state(guest: Guest, name: str) -> str:
    """The state of the frontend of vdev ``name`` in xenstore (4 connected, 6 closed), or "" when it is gone."""
    return guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vbd/{vdev.number(name)}/state") or ""


def test_hot_plug(guest: Guest, scratch: NewScratch) -> None:
    """A11: a disk attached to the running guest has its name and content; detached, it is gone, and can come again."""
    (disk,) = scratch("xvdc")
    name = guest.profile.disk_name("xvdc")
    for _ in range(2):
        guest.host.toolstack.block_attach(guest.domid, Disk(disk.target, "xvdc"))

        there = hotplug.wait_disks(guest, {name})
        seen = hotplug.digests(guest.sh, sorted(there))
        wrong = misnamed((Given("xvdc", disk.digest),), seen, guest.profile.disk_name)
        assert not wrong, finding(
            test="xl block-attach of vdev xvdc to a running guest",
            observed=wrong,
            expected=f"shows it as {name} within seconds",
            reference=guest.profile.source("blkfront"),
        )

        stays: list[str] = []
        try:
            hotplug.let_go(guest, "xvdc")
        except GuestCommandFailed as exc:
            stays = exc.output.splitlines()
        if name in (left := hotplug.wait_disks(guest, set(), {name})):
            stays.append(f"{name} is still among its disks: {' '.join(sorted(left))}")
        assert not stays, finding(
            test="xl block-detach of a disk that nobody uses",
            observed=stays,
            expected="closes its frontend within ten seconds and removes the disk",
            reference=guest.profile.source("blkfront"),
        )
        state = frontend_state(guest, "xvdc")
        assert state in ("", "6"), f"the disk is gone, and its frontend is in state {state}: 6 (closed) or none is due"


def test_detach_in_use(guest: Guest, scratch: NewScratch) -> None:
    """A11: a disk that is open is not torn away: the guest says so or waits, and lets go when it is closed."""
    (disk,) = scratch("xvdc", size=4 * scratches.MIB)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    guest.sh(f"sleep 300 < /dev/{name} >/dev/null 2>&1 & echo $! > /tmp/user")

    guest.host.transport.run(["timeout", "30", "xl", "block-detach", str(guest.domid), "xvdc"], Deadline(60), check=False)

    assert guest.sh("echo alive") == "alive"
    during = frontend_state(guest, "xvdc")
    guest.sh("kill $(cat /tmp/user)")
    left = hotplug.wait_disks(guest, set(), {name})
    assert name not in left, finding(
        test="xl block-detach while a process has the disk open, then the process ends",
        observed=[f"{name} is still there; its frontend's state was {during!r} and is {frontend_state(guest, 'xvdc')!r}",
             *guest.profile.attach_log(guest.sh).splitlines()[-5:]],
        expected="says `detaching with pending users` and closes its frontend (state 6) when the last user is gone",
        reference=f"{guest.profile.source('blkfront')}, xbd_closing() / blkfront_closing()",
    )  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [("xvdb1", "xvdb2"), ("hdc1", "hdc2"), ("xvdd", "0xCB30")])
@pytest.mark.needs(os="freebsd")
def test_collision_is_survived(guest: Guest, scratch: NewScratch, first: str, second: str, case: CaseContext) -> None:
    """A6: two vdevs that FreeBSD gives one name: it lives on, and the first disk keeps its name and its content."""
    name = guest.profile.disk_name(first)
    assert name == guest.profile.disk_name(second)
    one, two = scratch(first, second)
    hotplug.disk(guest, Disk(one.target, first))

    guest.host.toolstack.block_attach(guest.domid, Disk(two.target, second))

    guest.deadline(20).wait("the second frontend to settle", lambda: _settled(guest, second), 0.5)
    log = guest.profile.attach_log(guest.sh)
    (case.directory / "attach.txt").write_text(log)
    digest = hotplug.digests(guest.sh, [name]).get(name)
    assert digest == one.digest, finding(
        test=f"a disk {first}, then a disk {second}: both are {name} by the table",
        observed=[f"/dev/{name} holds {'the second disk' if digest == two.digest else 'neither'}", *log.splitlines()[-6:]],
        expected="keeps the first disk under its name, and says that the second has none",
        reference="sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(); sys/geom/geom_dev.c, g_dev_taste()",
    )


def _settled(guest: Guest, name: str) -> None:
    state = frontend_state(guest, name)
    if state not in ("4", "5", "6"):
        raise ConditionNotMet(f"state {state!r}")


def test_read_only(guest: Guest, scratch: NewScratch) -> None:
    """A10: a read-only disk can be read, a write to it fails in the guest, and its content stays."""
    (disk,) = scratch("xvdc")
    name = hotplug.disk(guest, Disk(disk.target, "xvdc", readonly=True))

    write = guest.run(f"dd if=/dev/zero of=/dev/{name} bs=512 count=1 && sync", check=False)

    behind = guest.host.transport.run(["md5sum", disk.file]).text.split()[0]
    digest = hotplug.digests(guest.sh, [name]).get(name)
    assert (write.status != 0, digest, behind) == (True, disk.digest, disk.digest), finding(
        test=f"a write to {name}, which the toolstack gave read-only",
        observed=f"dd ended with {write.status} ({write.text.splitlines()[-1:]}), content in the guest "
        f"{'as before' if digest == disk.digest else 'changed'}, in dom0 {'as before' if behind == disk.digest else 'changed'}",
        expected="refuses the write and can read the disk",
        reference=f"{guest.profile.source('blkfront')} (VDISK_READONLY in the backend's `info`)",
    )


@pytest.mark.parametrize("sector", [512, 4096])
def test_resize(guest: Guest, scratch: NewScratch, sector: int, case: CaseContext) -> None:
    """A10: a disk has the size of its backend, in 512 and 4096 byte sectors, and follows when the backend grows."""
    (disk,) = scratch("xvdc", size=4 * scratches.MIB, sector=sector)
    ask = guest.profile
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    before = ask.disk_bytes(guest.sh, name)
    assert before == disk.size, finding(
        test=f"a disk of {disk.size} bytes with sectors of {sector} bytes",
        observed=f"{name} has {before} bytes ({before / disk.size:g} times as many)",
        expected=f"shows {disk.size} bytes: `sectors` in xenstore counts 512 bytes whatever the sector size",
        reference="xen 221f2748e8 (public/io/blkif.h); FreeBSD bug 280884",
    )

    scratches.resize(guest.host, disk, 8 * scratches.MIB)
    # Linux's blkback looks at its device's size when a request comes (drivers/block/xen-blkback/blkback.c, vbd_resize).
    wanted, seen = 8 * scratches.MIB, before
    for block in range(20):
        guest.sh(f"dd if=/dev/{name} of=/dev/null bs=4096 count=1 skip={500 + block} 2>/dev/null; true")
        seen = ask.disk_bytes(guest.sh, name)
        if seen != before:
            break
    assert seen == wanted, finding(
        test=f"the backend of {name} ({sector} byte sectors) grew from {disk.size} to {wanted} bytes",
        observed=f"{name} has {seen} bytes",
        expected=f"takes the new size: {wanted}",
        reference=f"{guest.profile.source('blkfront')} (xbd_connect, BLKIF_STATE_CONNECTED), FreeBSD main still multiplies by the sector size",
    )
