# SPDX-License-Identifier: BSD-2-Clause
"""Kernels that get larger or smaller on the disk: pygrub reads them through as many levels of indirect blocks as they have."""

from __future__ import annotations

import time

import pytest

from harness.guests import hotplug, replace_kernel
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewScratch
from harness.xen import pygrub
from harness.xen.config import Disk

# The kernel's own blocks are all different; what is before it makes those of each size differ from each other.
WRITE = "(echo {size}; cat /tmp/seed /tmp/seed /tmp/seed /tmp/seed) | head -c {size} > /mnt/boot/{name}"


@pytest.mark.needs(capability=("pygrub",))
def test_kernel_changes_size(guest: Guest, scratch: NewScratch, case: CaseContext) -> None:
    """F8: a kernel's file grows and shrinks across the borders of its indirect blocks; pygrub extracts what the guest wrote."""
    blocks = guest.profile.small_blocks
    direct, single = blocks.direct, blocks.single
    # From a size to another, in place.
    steps = {"shrunk": (single + 1, direct), "grown": (direct, direct + 1), "grown-twice": (direct + 1, single + 1)}
    (disk,) = scratch("xvdc", size=24 * scratches.MIB)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    guest.sh(f"{blocks.make.format(name)}; mkdir -p /mnt/boot/grub")
    guest.sh(f"dd if=/dev/urandom of=/tmp/seed bs=64k count={-(-(single + 1) // (4 << 16))} 2>/dev/null")
    menu = "".join(f"title {what}\\nroot (hd0)\\nkernel /boot/{what}\\n" for what in steps)
    guest.sh(f"printf 'default=0\\ntimeout=0\\n{menu}' > /mnt/boot/grub/menu.lst")
    for what, sizes in steps.items():
        for size in sizes:
            guest.sh(WRITE.format(size=size, name=what) + "; sync", 120)
    written = {what: replace_kernel.digest(guest, f"/mnt/boot/{what}") for what in steps}
    guest.sh("umount /mnt")
    hotplug.let_go(guest, "xvdc")

    begun, wrong = time.monotonic(), []
    for n, (what, (before, after)) in enumerate(steps.items()):
        done = pygrub.run(guest.host.transport, f"{guest.host.directory}/pygrub", disk.target, f"--entry={n}")
        if done.digest("kernel") != written[what]:
            said = done.complaint or f"it extracted {done.digest('kernel') or 'nothing'}, the guest wrote {written[what]}"
            wrong.append(f"{what} from {before} to {after} bytes: {said}")

    case.metrics["pygrub"] = round(time.monotonic() - begun, 2)
    assert not wrong, finding(
        test=f"a kernel's file grown and shrunk in place around {direct} and {single} bytes, then unmounted",
        observed=wrong,
        expected="extracts the bytes that the guest wrote",
        reference="xen tools/libfsimage/ufs/fsys_ufs.c, sbmap(); ext2fs/fsys_ext2fs.c, ext2fs_block_map()",
    )
