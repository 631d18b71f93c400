# SPDX-License-Identifier: BSD-2-Clause
"""Disks of an HVM guest, which exist twice (emulated and paravirtual), and its CD drives, which are only emulated."""

from __future__ import annotations

import hashlib

import pytest

from harness.hosts import scratch as scratches
from harness.images.image import Image
from harness.oracles.finding import finding
from harness.oracles.naming import consumer_of
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen.config import Disk

# Bytes of the medium in the CD drive.
CD = 64 << 10
# The name of the root disk xvda, with PV drivers and without.
NAMES = {True: "xbd0", False: "ada0"}


@pytest.mark.needs(os="freebsd", types=("hvm",))
@pytest.mark.parametrize("pv", [True, False], ids=["pv", "emulated"])
def test_disks_of_an_hvm_guest(new_guest: NewGuest, scratch: NewScratch, image: Image, pv: bool, case: CaseContext) -> None:
    """An HVM guest shows its disk once, as xbd0 or without PV drivers as ada0, finds root by label, and has cd0 and cd1.

    vfs.root.mountfrom first names the disk by its other name. That must fail, because the disk must not exist twice.

    Source: sys/x86/xen/hvm.c, xen_hvm_disable_emulated_devices(); sys/dev/xen/blkfront/blkfront.c, xbd_probe();
        QEMU hw/i386/xen/xen_platform.c
    Catches: a root on xvda that moves from ada0 to xbd0 when PV drivers load, as in an upgrade from FreeBSD 9 to 10
    """
    if image.zfs:
        pytest.skip("a pool is found by its labels, not by a device; elsewhere: fxh run root_mount --image IMAGE (--layout gpt)")
    own, other = NAMES[pv], NAMES[not pv]
    label = f"ufs/{image.data.get('root_label') or 'FBROOT'}"
    part = image.root.removeprefix(NAMES[True])
    if part == image.root or not image.data["disks"][0]["slot"] >= 0:
        pytest.skip("needs an image whose root is on xvda; elsewhere: fxh run root_mount --image IMAGE (--layout gpt) --type hvm")
    variables = {"vfs.root.mountfrom": f"ufs:/dev/{other}{part} ufs:/dev/{label}", "vfs.mountroot.timeout": "1"}
    guest = new_guest(variables=tuple((variables | ({} if pv else {"hw.xen.disable_pv_disks": "1"})).items()))
    (medium,) = scratch("cd", size=CD)
    drives = (Disk(medium.file, "hdc", cdrom=True), Disk("", "hdd", format="empty", cdrom=True))
    guest.reconfigure(disks=(*guest.config.disks, *drives))

    guest.boot()

    text = guest.console.since(guest.console.boot_offset).decode(errors="replace")
    disks, geom = set(guest.os.disks(guest.sh)), guest.sh("sysctl -n kern.geom.conftxt")
    (case.directory / "geom.txt").write_text(geom)
    wrong = []
    if f"Mounting from ufs:/dev/{other}{part} failed with error" not in text:
        wrong.append(f"the mount from /dev/{other}{part}, the disk's other name, did not fail")
    if (root := guest.os.root_device(guest.sh)) != f"/dev/{label}":
        wrong.append(f"root is {root}")
    if (below := consumer_of(geom, label)) != f"{own}{part}":
        wrong.append(f"{label} is on {below or 'nothing'}")
    if (found := {name for name in disks if not name.startswith("cd")}) != {own}:
        wrong.append(f"the guest's disks are {' '.join(sorted(found))}")
    digest = guest.sh(f"dd if=/dev/cd0 bs=2048 count={CD // 2048} 2>/dev/null | fxh_digest", 120).split()[0]
    if digest != hashlib.md5(scratches.content(medium.label, CD), usedforsecurity=False).hexdigest():
        wrong.append(f"cd0 does not hold the medium of drive hdc (the guest has {' '.join(sorted(disks))})")
    if "cd1" not in guest.sh("ls /dev"):
        wrong.append("the empty drive hdd is not cd1")
    assert not wrong, finding(
        test=f"HVM, disk xvda, CD drives hdc and hdd (empty), {'PV disks' if pv else 'hw.xen.disable_pv_disks=1'}, "
        f"vfs.root.mountfrom={variables['vfs.root.mountfrom']!r}",
        observed=wrong,
        expected=f"the guest has the disk once, as {own}, with its root there by label; the CD drives are the emulated cd0 and cd1",
        reference="sys/x86/xen/hvm.c, xen_hvm_disable_emulated_devices(); sys/dev/xen/blkfront/blkfront.c, xbd_probe(); QEMU hw/i386/xen/xen_platform.c",
    )
