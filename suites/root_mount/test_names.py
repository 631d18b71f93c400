# SPDX-License-Identifier: BSD-2-Clause
"""Is each disk called what its vdev says, and is its content where its name is? Disks are told apart by what they hold."""

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


def judge(guest: Guest, given: tuple[Given, ...], how: str) -> None:
    """Every disk of ``given`` is where the table says, by its content."""
    seen = hotplug.digests(guest.sh, sorted(set(guest.profile.disks(guest.sh))))
    wrong = misnamed(given, seen, guest.profile.disk_name)
    if wrong:
        log = guest.profile.attach_log(guest.sh)
        pytest.fail(
            finding(
                test=how,
                observed=[*wrong, f"its disks: {' '.join(sorted(seen))}", *log.splitlines()],
                expected="names each disk after its vdev number alone, whatever the order, and reads through it what was put there",
                reference=guest.profile.source("disk names"),
            ),
            pytrace=False,
        )


# An HVM guest's first four disks are emulated, too, and its device model does not start where two of them are the same.
@NOT_HVM
def test_every_vdev_in_one_boot(new_guest: NewGuest, scratch: NewScratch, case: CaseContext) -> None:
    """A1 A2 A4 A5 A7: twenty disks by all kinds of vdev, in no order, root in their middle: each has its name and content."""
    guest = new_guest()
    names = guest.profile.vdev_names
    made = scratch(*names)
    disks = [Disk(disk.target, name) for disk, name in zip(made, names, strict=True)]
    # The order in the configuration must not matter: the same shuffle in every run.
    random.Random(4).shuffle(disks)
    half = len(disks) // 2
    guest.reconfigure(disks=(*disks[:half], *guest.config.disks, *disks[half:]))
    assert not collisions(tuple(disk.vdev for disk in guest.config.disks), guest.profile.disk_name)

    guest.boot()

    given = tuple(Given(name, disk.digest) for disk, name in zip(made, names, strict=True))
    case.metrics["disks"] = float(len(given))
    (case.directory / "attach.txt").write_text(guest.profile.attach_log(guest.sh))
    judge(guest, given, f"vdevs {' '.join(disk.vdev for disk in disks)}, in this order, in one boot")


@pytest.mark.needs(os="freebsd")
# The firmware of an HVM guest starts from an emulated disk: libxl emulates the first four, and none whose vdev is a bare number
# (libxl_dm.c, "unable to determine disk number").
@pytest.mark.parametrize("vdev_name", ["hda", "sda", pytest.param("xvdq", marks=NOT_HVM), pytest.param("0xCA10", marks=NOT_HVM)])
def test_root_on(new_guest: NewGuest, vdev_name: str, root_device: str) -> None:
    """A1 A2: the root file system is mounted from the disk that the table names, and multi-user mode is reached."""
    guest = new_guest(root_vdev=vdev_name)
    name = guest.profile.disk_name(vdev_name)
    spec = rootfs.spec(root_device).replace(guest.profile.disk_name("xvda"), name, 1)

    guest.boot()

    text = guest.console.since(guest.console.boot_offset).decode(errors="replace")
    root = guest.profile.root_device(guest.sh)
    problems = []
    if f"Trying to mount root from {spec}" not in text:
        problems.append(f"the line `Trying to mount root from` does not name {spec}")
    if "failed with error" in text:
        problems.append("a mount failed on the way")
    if not (below := rootfs.device(guest.sh, root)).startswith(name):
        problems.append(f"root is {root}, which is on {below or 'no disk'}")
    number = vdev.number(vdev_name)
    if not name.startswith("xbd") and f": attaching as {name}" not in text:
        problems.append(f"no line `attaching as {name}`")
    # What follows the number on its line can be another driver's: attaching goes on side by side.
    if not re.search(rf"at device/vbd/{number}(?!\d)", text):
        problems.append(f"no line names device/vbd/{number}")
    assert not problems, finding(
        test=f"root on vdev {vdev_name} (number {number}), vfs.root.mountfrom={spec}",
        observed=problems,
        expected=f"mounts root from {spec}, which is on {name}",
        reference="sys/kern/vfs_mountroot.c, vfs_mountroot_parse(); sys/dev/xen/blkfront/blkfront.c",
    )


@pytest.mark.needs(os="freebsd")
def test_mountroot_dialogue(new_guest: NewGuest, root_device: str) -> None:
    """A3: at ``mountroot>`` after a wrong root, ``?`` lists the true one, and typing it boots to multi-user mode."""
    guest = new_guest(variables=(("vfs.root.mountfrom", "ufs:/dev/xbd7"),)).create().start()
    with guest.console.expecting_death() as death:
        seen = death(guest.deadline(200))
    assert seen.kind == "mountroot", seen.summary
    spec, mounted = rootfs.spec(root_device), rootfs.mounted_as(root_device)
    # `?` lists disks and what is on them by GEOM, which knows no ZFS datasets.
    if spec.startswith("ufs:"):
        listed = mounted.removeprefix("/dev/")
        assert listed in dict(seen.answers)["?"].split(), f"`?` does not list {listed}: {seen.answers}"

    guest.console.rearm()
    _type(guest, spec)
    guest.wait_stage("login")

    guest.login()
    root = guest.profile.root_device(guest.sh)
    assert root == mounted, finding(
        test=f"`{spec}` at the mountroot> prompt",
        observed=f"root is {root}",
        expected="mounts what was typed and goes on to multi-user mode",
        reference="sys/kern/vfs_mountroot.c, parse_dir_ask()",
    )


def _type(guest: Guest, line: str) -> None:
    """Type a line until it is echoed: a serial port is flushed (uart_grab()) after the prompt was printed."""
    for _ in range(3):
        since = guest.console.offset
        guest.console.write(line.encode() + b"\r")
        with contextlib.suppress(DeadlineExpired):
            guest.console.wait_for(re.escape(line).encode(), Deadline(3 * guest.scale), "the echo of what was typed", since)
            return
    pytest.fail(f"{line!r}, typed three times, is not echoed at the prompt", pytrace=False)
