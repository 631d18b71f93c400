# SPDX-License-Identifier: BSD-2-Clause
"""Each disk has the name that its vdev gives, and its own content. The cases tell disks apart by their content."""

from __future__ import annotations

import contextlib
import random
import re

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineExpired
from harness.guests import hotplug, rootfs
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.oracles.naming import Given, collisions, misnamed
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen import vdev
from harness.xen.config import Disk

NOT_HVM = pytest.mark.needs(types=("pvh", "pv"))


def assert_named_by_vdev(guest: Guest, given: tuple[Given, ...], test: str) -> None:
    """Fail unless the content of each disk of ``given`` is under the name that the table of vdev numbers gives."""
    seen = hotplug.digests(guest.sh, sorted(set(guest.os.disks(guest.sh))))
    wrong = misnamed(given, seen, guest.os.disk_name)
    if wrong:
        log = guest.os.attach_log(guest.sh)
        pytest.fail(
            finding(
                test=test,
                observed=[*wrong, f"the guest's disks: {' '.join(sorted(seen))}", *log.splitlines()],
                expected="each disk has the name of its vdev number, whatever the order, and holds its own content",
                reference=guest.os.source("disk names"),
            ),
            pytrace=False,
        )


# The first four disks of an HVM guest are also emulated, and its device model does not start if two of them are the same.
@NOT_HVM
def test_every_vdev_in_one_boot(new_guest: NewGuest, scratch: NewScratch, case: CaseContext) -> None:
    """About twenty disks with all kinds of vdevs, in shuffled order, have the right names and contents in one boot.

    Source: sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(); xen tools/libs/light/libxl_device.c;
        Linux drivers/block/xen-blkfront.c, xlvbd_alloc_gendisk()
    Catches: xvdq and higher named xbd0 in FreeBSD 8.0 (missing return, fixed by 8b8bfa3567); wrong, swapped, missing and
        corrupted disks (planted)
    """
    guest = new_guest()
    names = guest.os.vdev_names
    made = scratch(*names)
    disks = [Disk(disk.target, name) for disk, name in zip(made, names, strict=True)]
    # The order in the configuration must not matter. The fixed seed gives the same order in every run.
    random.Random(4).shuffle(disks)
    half = len(disks) // 2
    guest.reconfigure(disks=(*disks[:half], *guest.config.disks, *disks[half:]))
    shared = collisions(tuple(disk.vdev for disk in guest.config.disks), guest.os.disk_name)
    assert not shared, f"vdevs of this case share a disk name: {shared}"

    guest.boot()

    given = tuple(Given(name, disk.digest) for disk, name in zip(made, names, strict=True))
    case.metrics["disks"] = float(len(given))
    (case.directory / "attach.txt").write_text(guest.os.attach_log(guest.sh))
    assert_named_by_vdev(guest, given, f"a boot with the vdevs {' '.join(disk.vdev for disk in disks)}, in this order")


@pytest.mark.needs(os="freebsd")
# The firmware of an HVM guest boots from an emulated disk. libxl emulates the first four disks, except those whose vdev is a bare
# number (libxl_dm.c, "unable to determine disk number").
@pytest.mark.parametrize("vdev_name", ["hda", "sda", pytest.param("xvdq", marks=NOT_HVM), pytest.param("0xCA10", marks=NOT_HVM)])
def test_root_on(new_guest: NewGuest, vdev_name: str, root_device: str) -> None:
    """Root is mounted from the disk that the vdev number names, and the guest reaches multi-user mode.

    Source: sys/kern/vfs_mountroot.c, vfs_mountroot_parse(); sys/dev/xen/blkfront/blkfront.c
    Catches: xvdq named xbd0 in FreeBSD 8.0 (missing return, fixed by 8b8bfa3567)
    """
    guest = new_guest(root_vdev=vdev_name)
    name = guest.os.disk_name(vdev_name)
    spec = rootfs.spec(root_device).replace(guest.os.disk_name("xvda"), name, 1)

    guest.boot()

    text = guest.console.since(guest.console.boot_offset).decode(errors="replace")
    root = guest.os.root_device(guest.sh)
    problems = []
    if f"Trying to mount root from {spec}" not in text:
        problems.append(f"the console line `Trying to mount root from` does not name {spec}")
    if "failed with error" in text:
        problems.append("the console shows a mount that failed")
    if not (below := rootfs.device(guest.sh, root)).startswith(name):
        problems.append(f"root is {root}, which is on {below or 'no disk'}")
    number = vdev.number(vdev_name)
    if not name.startswith("xbd") and f": attaching as {name}" not in text:
        problems.append(f"the console has no line `attaching as {name}`")
    # The rest of that line can come from another driver, because drivers attach in parallel.
    if not re.search(rf"at device/vbd/{number}(?!\d)", text):
        problems.append(f"no console line names device/vbd/{number}")
    assert not problems, finding(
        test=f"a boot with root on vdev {vdev_name} (number {number}), vfs.root.mountfrom={spec}",
        observed=problems,
        expected=f"the guest mounts root from {spec}, which is on {name}",
        reference="sys/kern/vfs_mountroot.c, vfs_mountroot_parse(); sys/dev/xen/blkfront/blkfront.c",
    )


@pytest.mark.needs(os="freebsd")
def test_mountroot_dialogue(new_guest: NewGuest, root_device: str) -> None:
    """At the mountroot prompt `?` lists the real root, and its name boots the guest to multi-user mode.

    Source: sys/kern/vfs_mountroot.c, parse_dir_ask()
    """
    reference = "sys/kern/vfs_mountroot.c, parse_dir_ask()"
    guest = new_guest(variables=(("vfs.root.mountfrom", "ufs:/dev/xbd7"),)).create().start()
    with guest.console.expecting_death() as death:
        seen = death(guest.deadline(200))
    assert seen.kind == "mountroot", finding(
        test="a boot with vfs.root.mountfrom=ufs:/dev/xbd7, which does not exist",
        observed=seen.summary,
        expected="the boot stops at the mountroot> prompt",
        reference=reference,
    )
    spec, mounted = rootfs.spec(root_device), rootfs.mounted_as(root_device)
    # `?` lists disks and GEOM providers, and GEOM has no ZFS datasets.
    if spec.startswith("ufs:"):
        device, listed = mounted.removeprefix("/dev/"), dict(seen.answers)["?"]
        assert device in listed.split(), finding(
            test="`?` at the mountroot> prompt",
            observed=f"`?` lists: {listed}",
            expected=f"`?` lists {device}",
            reference=reference,
        )

    guest.console.rearm()
    _type_until_echoed(guest, spec)
    guest.wait_stage("login")

    guest.login()
    root = guest.os.root_device(guest.sh)
    assert root == mounted, finding(
        test=f"`{spec}` at the mountroot> prompt",
        observed=f"root is {root}",
        expected=f"the guest mounts {mounted} and reaches multi-user mode",
        reference=reference,
    )


def _type_until_echoed(guest: Guest, line: str) -> None:
    """Type a line up to three times until the guest echoes it: a serial port is flushed after the prompt (uart_grab())."""
    for _ in range(3):
        since = guest.console.offset
        guest.console.write(line.encode() + b"\r")
        with contextlib.suppress(DeadlineExpired):
            guest.console.wait_for(re.escape(line).encode(), Deadline(3 * guest.scale), "the echo of the typed line", since)
            return
    pytest.fail(f"the guest does not echo {line!r} at the mountroot> prompt; it was typed three times", pytrace=False)
