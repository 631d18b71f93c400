# SPDX-License-Identifier: BSD-2-Clause
"""A root on ZFS: the mounted dataset, its pool, and the pool's disk."""

from __future__ import annotations

import pytest

from harness.guests import rootfs
from harness.guests.guest import Guest
from harness.images.image import Image
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext


@pytest.mark.needs(os="freebsd", freebsd=">=14.0")
def test_zfs_root(guest: Guest, image: Image, case: CaseContext) -> None:
    """Root is the pool's bootfs on the disk of its vdev; the pool is healthy, and a scrub finds no error.

    Source: sys/contrib/openzfs/module/os/freebsd/zfs/spa_os.c, spa_import_rootpool(); zfs_vfsops.c, zfs_mount()
    """
    if not image.zfs:
        pytest.skip("needs an image with a root on ZFS; elsewhere: fxh run root_mount --image IMAGE (--layout zfs)")
    name = image.root.partition("/")[0]

    guest.sh(f"echo written > /fxh-zfs && zpool sync {name} && zpool scrub -w {name}", 300)
    status = guest.sh(f"zpool status -p {name}")

    (case.directory / "zpool.txt").write_text(status)
    pool = rootfs.parse_status(status)
    bootfs = guest.sh(f"zpool get -H -o value bootfs {name}").strip()
    mount = next(
        (words for line in guest.sh("mount -p").splitlines() if (words := line.split())[1:2] == ["/"]), ["", "", "nothing"]
    )
    devices = [rootfs.provider(guest.sh, member.name) for member in pool.members]
    wrong = []
    if (mount[0], mount[2]) != (image.root, "zfs"):
        wrong.append(f"mount -p shows {mount[0]} of type {mount[2]} on /")
    if bootfs != image.root:
        wrong.append(f"the bootfs of {name} is {bootfs}")
    if devices != [image.root_device]:
        wrong.append(f"the pool is on {' '.join(device or '?' for device in devices) or 'no disk'}")
    if pool.state != "ONLINE" or pool.errors != "No known data errors":
        wrong.append(f"zpool status shows {pool.state}, {pool.errors}")
    wrong += [f"{m.name} is {m.state}, with errors {m.errors}" for m in pool.members if m.state != "ONLINE" or any(m.errors)]
    assert not wrong, finding(
        test=f"root {image.mountfrom} on the pool {name}, whose disk is {image.root_device}",
        observed=wrong,
        expected=f"root is {image.root} on {image.root_device}, and the scrub finds no error",
        reference="sys/contrib/openzfs/module/os/freebsd/zfs/spa_os.c, spa_import_rootpool(); zfs_vfsops.c, zfs_mount()",
    )
