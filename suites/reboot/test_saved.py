# SPDX-License-Identifier: BSD-2-Clause
"""No reboot at all: what a guest runs on after it was saved and restored, when its disk has another kernel by then."""

from __future__ import annotations

import pytest

from harness.guests import replace_kernel, suspend
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted


@pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))
def test_restored_guest_keeps_its_kernel(booted: Booted, case: CaseContext) -> None:
    """F11: the kernel on the disk is overwritten, the guest is saved and restored: its old kernel and processes go on."""
    guest = booted(bootloader="pygrub", on_reboot="restart", on_crash="restart")
    volume = replace_kernel.volume(guest)
    guest.sh(f"dd if=/dev/urandom of={volume.file} bs=64k count=16 conv=notrunc 2>/dev/null; sync")
    guest.sh("sleep 3000 > /dev/null 2>&1 & echo $! > /tmp/before")
    old, junk = replace_kernel.identity(guest), replace_kernel.digest(guest, volume.file)

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    wrong = []
    if replace_kernel.identity(guest) != old:
        wrong.append(f"{replace_kernel.identity(guest)} runs, {old} was saved")
    if guest.run("kill -0 $(cat /tmp/before)", check=False).status:
        wrong.append("a process that was started before it is gone")
    if replace_kernel.digest(guest, volume.file) != junk:
        wrong.append(f"{volume.file} has other content")
    if replace_kernel.bootloader_ran(guest, journey.domids[0]):
        wrong.append(f"the bootloader ran for domain {guest.domid}")
    assert not wrong, finding(
        test="another content put into the kernel's file, xl save, xl restore",
        observed=wrong,
        expected="goes on where it was, with the kernel it had in memory",
        reference="xen tools/libs/light/libxl_create.c, domcreate_bootloader_done() is not reached by a restore",
    )
