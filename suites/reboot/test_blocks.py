# SPDX-License-Identifier: BSD-2-Clause
"""Kernel files that grow or shrink on the disk: pygrub reads them through every level of indirect blocks."""

from __future__ import annotations

import time

import pytest

from harness.guests import files, hotplug
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewScratch
from harness.xen import pygrub
from harness.xen.config import Disk

# The blocks of the seed all differ. The size before it makes the blocks of each file differ from those of the others.
WRITE = "(echo {size}; cat /tmp/seed /tmp/seed /tmp/seed /tmp/seed) | head -c {size} > /mnt/boot/{name}"


@pytest.mark.needs(capability=("pygrub",))
def test_kernel_changes_size(guest: Guest, scratch: NewScratch, case: CaseContext) -> None:
    """pygrub extracts a kernel file completely after it grew or shrank across the limits of its indirect blocks.

    Source: xen tools/libfsimage/ufs/fsys_ufs.c, sbmap(); ext2fs/fsys_ext2fs.c, ext2fs_block_map()
    """
    blocks = guest.os.small_blocks
    direct, single = blocks.direct, blocks.single
    # Bytes before and after the change, which is made in place.
    steps = {"shrunk": (single + 1, direct), "grown": (direct, direct + 1), "grown-twice": (direct + 1, single + 1)}
    (disk,) = scratch("xvdc", size=24 * scratches.MIB)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    guest.sh(f"{blocks.make.format(name)}; mkdir -p /mnt/boot/grub")
    guest.sh(f"dd if=/dev/urandom of=/tmp/seed bs=64k count={-(-(single + 1) // (4 << 16))} 2>/dev/null")
    menu = "".join(f"title {step}\\nroot (hd0)\\nkernel /boot/{step}\\n" for step in steps)
    guest.sh(f"printf 'default=0\\ntimeout=0\\n{menu}' > /mnt/boot/grub/menu.lst")
    for step, sizes in steps.items():
        for size in sizes:
            guest.sh(WRITE.format(size=size, name=step) + "; sync", 120)
    written = {step: files.digest(guest, f"/mnt/boot/{step}") for step in steps}
    guest.sh("umount /mnt")
    hotplug.let_go(guest, "xvdc")

    begun, wrong = time.monotonic(), []
    for n, (step, (before, after)) in enumerate(steps.items()):
        done = pygrub.run(guest.host.transport, f"{guest.host.directory}/pygrub", disk.target, f"--entry={n}")
        if done.digest("kernel") != written[step]:
            problem = done.complaint or f"pygrub extracted {done.digest('kernel') or 'nothing'}, the guest wrote {written[step]}"
            wrong.append(f"{step} from {before} to {after} bytes: {problem}")

    case.metrics["pygrub"] = round(time.monotonic() - begun, 2)
    assert not wrong, finding(
        test=f"a kernel file that grew and shrank in place around {direct} and {single} bytes, on a file system unmounted since",
        observed=wrong,
        expected="pygrub extracts the bytes that the guest wrote",
        reference="xen tools/libfsimage/ufs/fsys_ufs.c, sbmap(); ext2fs/fsys_ext2fs.c, ext2fs_block_map()",
    )
