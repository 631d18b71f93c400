# SPDX-License-Identifier: BSD-2-Clause
"""Does a panicking kernel write its dump to a disk of blkfront, and to no other place?"""

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
    """A panic writes a complete kernel dump to the dump device, with sectors of 512 and of 4096 bytes, and to no other disk."""
    device, other = scratch("xvdc", "xvdd", size=SIZE, sector=sector)
    name = hotplug.disk(guest, Disk(device.target, "xvdc"))
    hotplug.disk(guest, Disk(other.target, "xvdd"))
    before = digest(guest.host, other)
    release = guest.sh("uname -r")
    guest.sh(f"dumpon /dev/{name}")

    death = guest.panic(60)
    guest.wait_shutdown(180)

    wrong = []
    tail = block(guest.host, device, SIZE - sector, sector)
    place = kerneldump.begin(tail, sector=sector, size=SIZE)
    head = block(guest.host, device, place, sector) if place >= 0 else b""
    message = re.sub(r"^panic: ", "", death.message)
    wrong += kerneldump.judge(head, tail, sector=sector, size=SIZE, panic=message, release=release)
    if digest(guest.host, other) != before:
        wrong.append("the other disk has changed")
    case.metrics["dump, MiB"] = kerneldump.parse(tail).length / scratches.MIB
    assert not wrong, finding(
        test=f"dumpon /dev/{name} (sectors of {sector} bytes), then a panic",
        observed=wrong,
        expected="a dump with equal headers in front and behind, and no other disk touched",
        reference="sys/dev/xen/blkfront/blkfront.c, xbd_dump(); sys/kern/kern_shutdown.c, dump_start(); sys/sys/kerneldump.h",
    )


def block(host: XenHost, disk: ScratchDisk, at: int, size: int) -> bytes:
    """One block of a disk, as dom0 reads it past its cache."""
    argv = ["dd", f"if={disk.target}", f"bs={size}", f"skip={at // size}", "count=1", "iflag=direct"]
    return host.transport.run(argv, Deadline(60)).stdout


def digest(host: XenHost, disk: ScratchDisk) -> str:
    return host.transport.run(["md5sum", disk.target], Deadline(120)).text.split()[0]
