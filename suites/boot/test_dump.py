# SPDX-License-Identifier: BSD-2-Clause
"""A panicking kernel writes its dump to its blkfront dump device and to no other disk."""

from __future__ import annotations

import re

import pytest

from harness.deadline import Deadline
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.hosts.host import XenHost
from harness.hosts.scratch import ScratchDisk
from harness.oracles import kerneldump
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewScratch
from harness.xen.config import Disk

# A minidump of a guest with 512 MiB takes up to 120 MiB.
SIZE = 192 * scratches.MIB


@pytest.mark.needs(os="freebsd")
@pytest.mark.parametrize("sector", [512, 4096])
def test_dump_reaches_the_disk(guest: Guest, scratch: NewScratch, sector: int, case: CaseContext) -> None:
    """A panic writes a complete kernel dump to the dump device, with sectors of 512 and of 4096 bytes, and to no other disk.

    Source: sys/dev/xen/blkfront/blkfront.c, xbd_dump(); sys/kern/kern_shutdown.c, dump_start(); sys/sys/kerneldump.h
    Catches: xbd_dump() counts in the wrong units on disks with sectors of 4096 bytes
    """
    device, other = scratch("xvdc", "xvdd", size=SIZE, sector=sector)
    name = hotplug.disk(guest, Disk(device.target, "xvdc"))
    hotplug.disk(guest, Disk(other.target, "xvdd"))
    before = digest(guest.host, other)
    release = guest.sh("uname -r")
    guest.sh(f"dumpon /dev/{name}")

    death = guest.panic(60)
    guest.wait_shutdown(180)

    wrong = []
    tail = read_block(guest.host, device, SIZE - sector, sector)
    place = kerneldump.first_header_offset(tail, sector=sector, size=SIZE)
    head = read_block(guest.host, device, place, sector) if place >= 0 else b""
    message = re.sub(r"^panic: ", "", death.message)
    wrong += kerneldump.dump_errors(head, tail, sector=sector, size=SIZE, panic=message, release=release)
    if digest(guest.host, other) != before:
        wrong.append("the content of the other disk changed")
    case.metrics["dump, MiB"] = kerneldump.parse(tail).length / scratches.MIB
    assert not wrong, finding(
        test=f"dumpon /dev/{name} (sectors of {sector} bytes), then a panic",
        observed=wrong,
        expected="the dump has equal headers before and after it, and no other disk changes",
        reference="sys/dev/xen/blkfront/blkfront.c, xbd_dump(); sys/kern/kern_shutdown.c, dump_start(); sys/sys/kerneldump.h",
    )


def read_block(host: XenHost, disk: ScratchDisk, at: int, size: int) -> bytes:
    """Read ``size`` bytes at byte ``at`` of a disk in dom0, without its page cache."""
    argv = ["dd", f"if={disk.target}", f"bs={size}", f"skip={at // size}", "count=1", "iflag=direct"]
    return host.transport.run(argv, Deadline(60)).stdout


def digest(host: XenHost, disk: ScratchDisk) -> str:
    """Return the md5 of a disk, taken in dom0."""
    return host.transport.run(["md5sum", disk.target], Deadline(120)).text.split()[0]
