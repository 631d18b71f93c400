# SPDX-License-Identifier: BSD-2-Clause
"""Names of partitions within a disk: an MBR slice with a BSD label, and a GPT partition, in GEOM, in fstab and as root."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.images.disks import BootCode, write_disk
from harness.images.image import Image
from harness.images.layout import FileSystem, Vdev
from harness.oracles.finding import finding
from harness.oracles.naming import consumer_of
from harness.plugin.case_context import CaseContext
from harness.xen.config import Disk

_MIB = 1 << 20
# Disks in addition to the root on xvda, by partition table. Each has a copy of the root: xbd1s1a and xbd2p2. A row has the disk, the
# index of that copy in it, and the GEOM providers below the copy.
TABLES = {
    "mbr": (Vdev("xvdb", (), "mbr"), 0, ("xbd1s1", "xbd1")),
    "gpt": (Vdev("xvdc", (), "gpt"), 1, ("xbd2",)),
}


@pytest.fixture
def root_file(image: Image) -> Path:
    """The image's root file system, if it is the whole first disk."""
    if image.data["layout"] not in ("ufs1", "ufs2"):
        pytest.skip("needs an image whose first disk is its root file system; elsewhere: fxh run --image IMAGE (--layout ufs1)")
    return image.disks[0].file


def make_divided_disk(table: str, root: Path, directory: Path) -> tuple[Path, str]:
    """Make a disk with that partition table and a copy of ``root`` in it; return its file and FreeBSD's name of the copy."""
    disk, place, _ = TABLES[table]
    swap, fs = FileSystem("none", "swap", 1), FileSystem("/", "ufs1", -(-root.stat().st_size // _MIB))
    disk = replace(disk, fs=(swap, fs) if place else (fs, swap))
    target = directory / f"{table}.img"
    write_disk(disk, [None, root] if place else [root, None], BootCode(directory), f"{table} of a case", target)
    return target, disk.device(place)


def reroot(guest: Guest, device: str) -> None:
    """Change the root file system without a boot (reboot(8), -r), and log in again. Raises GuestDied."""
    guest.console.rearm()
    guest.session.start(f"kenv vfs.root.mountfrom=ufs:/dev/{device}; reboot -r")
    guest.wait_stage("login", Deadline(120 * guest.scale))
    guest.login()


@pytest.mark.needs(os="freebsd", types=("pvh", "pv"), freebsd=">=10.3")
def test_root_within_a_disk(guest: Guest, root_file: Path, tmp_path: Path, case: CaseContext) -> None:
    """A root on an MBR slice with a BSD label (xbd1s1a) and one on GPT (xbd2p2) have these names in GEOM, fstab and as root.

    Source: sys/geom/part/g_part_mbr.c, g_part_bsd.c, g_part_gpt.c; sys/kern/vfs_mountroot.c, vfs_mountroot_parse();
        libexec/rc/rc.d/root
    """
    raw = guest.os.root_device(guest.sh)
    devices = {}
    for table, (disk, _, _) in TABLES.items():
        path, devices[table] = make_divided_disk(table, root_file, tmp_path)
        target = guest.host.disk(path)
        case.undo.append(partial(guest.host.drop_disk, target))
        hotplug.disk(guest, Disk(target, disk.name))
    geom = guest.sh("sysctl -n kern.geom.conftxt")
    (case.directory / "geom.txt").write_text(geom)
    wrong = []
    for table, device in devices.items():
        chain, at = [], device
        while at := consumer_of(geom, at):
            chain.append(at)
        if tuple(chain) != TABLES[table][2]:
            wrong.append(f"{table}: in GEOM {device} is made from {', then '.join(chain) or 'nothing'}")
    assert not wrong, finding(
        test="a disk with an MBR, a FreeBSD slice and a BSD label as xvdb, and one with a GPT as xvdc",
        observed=[*wrong, *geom.splitlines()],
        expected="GEOM reads both tables and names the partitions after the disks: xbd1s1a, xbd2p2",
        reference="sys/geom/part/g_part_mbr.c, g_part_bsd.c, g_part_gpt.c",
    )
    for device in devices.values():
        guest.sh(
            f"fsck_ffs -y /dev/{device} >/dev/null; mount /dev/{device} /mnt && sed -i '' 's|^{raw}[[:space:]]|/dev/{device} |' /mnt/etc/fstab"
        )
        guest.sh(f"echo {device} > /mnt/fxh-root; umount /mnt")

    for device in devices.values():
        begun = guest.console.offset
        reroot(guest, device)
        text = guest.console.since(begun).decode(errors="replace")
        root, marker = guest.os.root_device(guest.sh), guest.sh("cat /fxh-root; true")
        fstab = guest.sh("awk '$2 == \"/\" { print $1 }' /etc/fstab")
        if f"Trying to mount root from ufs:/dev/{device}" not in text or "failed with error" in text:
            wrong.append(f"{device}: the console does not show a successful mount of this root")
        if (root, marker, fstab) != (f"/dev/{device}", device, f"/dev/{device}"):
            wrong.append(f"{device}: root is {root}, the marker file says {marker!r}, fstab says {fstab}")
        if guest.run("touch /fxh-written && sync", check=False).status:
            wrong.append(f"{device}: the root is not writable, although fstab says `rw`")
    assert not wrong, finding(
        test=f"root on {', then on '.join(devices.values())}, by vfs.root.mountfrom, reboot -r, and fstab",
        observed=wrong,
        expected="the guest mounts each root by its name and reaches multi-user mode",
        reference="sys/kern/vfs_mountroot.c, vfs_mountroot_parse(); libexec/rc/rc.d/root",
    )
