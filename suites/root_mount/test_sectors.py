# SPDX-License-Identifier: BSD-2-Clause
"""Reads and writes by block number on disks with large sectors."""

from __future__ import annotations

import pytest

from harness.deadline import Deadline
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.hosts.scratch import MIB, ScratchDisk
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewScratch
from harness.safetext import plain
from harness.xen.config import Disk

BLOCK = 4096
BLOCKS = MIB // BLOCK
# Blocks that the guest reads: the first, their eighths, and the last.
READ = (0, 1, 8, 64, 100, BLOCKS - 1)
WRITTEN = {8: "fxh-eight", 65: "fxh-sixty-five", BLOCKS - 2: "fxh-last-but-one"}


def content(text: str) -> bytes:
    """One block that repeats ``text``, a line each."""
    line = f"{text}\n".encode()
    return (line * (BLOCK // len(line) + 1))[:BLOCK]


def whole(guest: Guest, disk: ScratchDisk) -> bytes:
    """The content of a disk, read in dom0 past the page cache."""
    return guest.host.transport.run(["dd", f"if={disk.target}", "bs=64k", "iflag=direct"], Deadline(60)).stdout


def first_line(guest: Guest, name: str, block: int) -> str:
    """The first line of a block that the guest reads."""
    return guest.sh(f"dd if=/dev/{name} bs={BLOCK} skip={block} count=1 2>/dev/null | head -n 1").strip()


@pytest.mark.parametrize("sector", [512, 4096])
def test_blocks_are_where_they_belong(guest: Guest, scratch: NewScratch, sector: int) -> None:
    """With sectors of 512 and of 4096 bytes the guest reads and writes each block at its place, and changes no other block.

    Kind of bug: the two ends count in different units, so data is read from and written to the wrong place.

    Source: xen 221f2748e8 (public/io/blkif.h: sector_number counts units of 512 bytes); sys/dev/xen/blkfront/blkfront.c
    Catches: requests in units of the backend's sector (FreeBSD up to 14.1, bug 280884): block n is written to n * 512
    """
    (disk,) = scratch("xvdc", size=BLOCKS * BLOCK, sector=sector)
    numbered = b"".join(content(f"block {number}") for number in range(BLOCKS))
    fill = ["dd", f"of={disk.target}", f"bs={BLOCK}", "iflag=fullblock", "oflag=direct"]
    guest.host.transport.run(fill, Deadline(60), stdin=numbered)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))

    read = {block: first_line(guest, name, block) for block in READ}
    wrong = [f"block {block} reads {text!r}" for block, text in read.items() if text != f"block {block}"]
    for block, text in WRITTEN.items():
        guest.sh(f"yes {text} | head -c {BLOCK} > /tmp/fxh-block")
        write = f"dd if=/tmp/fxh-block of=/dev/{name} bs={BLOCK} seek={block} count=1 conv=notrunc && sync"
        if (done := guest.run(write, check=False)).status:
            said = done.text.splitlines() or [f"status {done.status}"]
            wrong.append(f"block {block} cannot be written: {plain(said[0])}")
    hotplug.let_go(guest, "xvdc")

    there = whole(guest, disk)
    for block in range(BLOCKS):
        found = there[block * BLOCK : (block + 1) * BLOCK]
        if found != content(WRITTEN.get(block, f"block {block}")):
            wrong.append(f"block {block} holds {found[:40].decode(errors='replace').splitlines()[:1]} in dom0")
    assert not wrong, finding(
        test=f"blocks of {BLOCK} bytes, read and written by number on a disk with sectors of {sector} bytes",
        observed=wrong[:12],
        expected="each block is read from its place, and written to it; all others keep their content",
        reference=f"xen 221f2748e8 (public/io/blkif.h); {guest.os.source('blkfront')}",
    )
