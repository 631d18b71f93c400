# SPDX-License-Identifier: BSD-2-Clause
"""Save and restore of a guest whose disk has another kernel than the guest runs."""

from __future__ import annotations

import pytest

from harness.guests import files, replace_kernel, suspend
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted

from .support import PYGRUB_RESTART


@pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))
def test_restored_guest_keeps_its_kernel(booted: Booted, case: CaseContext) -> None:
    """A guest whose kernel file was overwritten continues with its old kernel and processes after save and restore.

    Source: xen tools/libs/light/libxl_create.c, domcreate_bootloader_done()
    Catches: a write outside the event channel mask on resume (FreeBSD 4ece79968e70, D43928)
    """
    guest = booted(**PYGRUB_RESTART)
    volume = replace_kernel.volume(guest)
    guest.sh(f"dd if=/dev/urandom of={volume.file} bs=64k count=16 conv=notrunc 2>/dev/null; sync")
    guest.sh("sleep 3000 > /dev/null 2>&1 & echo $! > /tmp/before")
    old, junk = replace_kernel.identity(guest), files.digest(guest, volume.file)

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    wrong = []
    if (now := replace_kernel.identity(guest)) != old:
        wrong.append(f"{now} runs, {old} was saved")
    if guest.run("kill -0 $(cat /tmp/before)", check=False).status:
        wrong.append("a process that was started before the save is gone")
    if files.digest(guest, volume.file) != junk:
        wrong.append(f"the content of {volume.file} changed")
    if replace_kernel.bootloader_ran(guest, journey.domids[0]):
        wrong.append(f"the bootloader ran for domain {guest.domid}")
    assert not wrong, finding(
        test="other data written into the kernel file, xl save, xl restore",
        observed=wrong,
        expected="the guest continues where it was, with the kernel in its memory, and the bootloader does not run",
        reference="xen tools/libs/light/libxl_create.c, domcreate_bootloader_done() is not reached by a restore",
    )
