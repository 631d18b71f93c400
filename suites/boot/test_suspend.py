# SPDX-License-Identifier: BSD-2-Clause
"""A guest continues after a pause and after save and restore, and its clock is right."""

from __future__ import annotations

import time

import pytest

from harness.guests import hotplug, suspend
from harness.guests.clock import clock_offset
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted

# Seconds that the guest stays paused.
PAUSE = 10.0
# Seconds. Both clocks are read in whole seconds over a console.
SLACK = 3.0


def test_time_goes_on_while_paused(guest: Guest, case: CaseContext) -> None:
    """After `xl pause` and `xl unpause` the guest's clock is right, and a sleep ends.

    Source: sys/dev/xen/timer/timer.c, xentimer_get_timecount(); Linux arch/x86/xen/time.c
    Catches: a clock that loses multiples of 4.295 s of a pause (known issue)
    """
    first = clock_offset(guest)

    with hotplug.paused(guest):
        time.sleep(PAUSE)

    jump = clock_offset(guest) - first
    case.metrics["jump"] = jump
    assert abs(jump) <= SLACK, finding(
        test=f"xl pause, {PAUSE:.0f} s, xl unpause",
        observed=f"compared with dom0, the guest's clock is {jump:+.1f} s off",
        expected=f"the guest's clock keeps pace with dom0's, within {SLACK:.0f} s",
        reference=guest.os.source("clock"),
    )
    assert guest.sh("sleep 1; echo slept") == "slept", "`sleep 1; echo slept` does not print `slept` after xl unpause"


@pytest.mark.parametrize("vcpus", [1, 2])
def test_saved_and_restored(booted: Booted, vcpus: int, case: CaseContext) -> None:
    """After `xl save` and `xl restore` the guest's processes, clock, disk and network continue.

    Source: sys/dev/xen/control/control.c; sys/x86/x86/mp_x86.c, cpususpend_handler()
    Catches: a page fault in cpususpend_handler() (FreeBSD e7e2431586a4, D43765); a write outside the event channel mask
        (FreeBSD 4ece79968e70, D43928)
    """
    guest = booted(vcpus=vcpus)
    guest.sh("echo before > /tmp/before; sleep 3000 > /dev/null 2>&1 & echo $! > /tmp/process")
    first, disks = clock_offset(guest), guest.os.disks(guest.sh)

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    jump = clock_offset(guest) - first
    wrong = []
    if abs(jump) > SLACK:
        wrong.append(f"compared with dom0, the guest's clock is {jump:+.1f} s off")
    if guest.run("kill -0 $(cat /tmp/process)", check=False).status:
        wrong.append("a process that was started before the save is gone")
    if (now := guest.os.disks(guest.sh)) != disks:
        wrong.append(f"the guest's disks changed from {' '.join(disks)} to {' '.join(now)}")
    if guest.config.disks and guest.run("echo after > /tmp/after && sync && cat /tmp/before", check=False).text != "before":
        wrong.append("the root disk cannot be written and read")
    link = Link(guest).up()
    case.undo.append(link.down)
    if not link.wait_up():
        wrong.append("dom0 gets no answer from the guest over the network within 40 s")
    assert not wrong, finding(
        test=f"xl save and xl restore of a guest with vcpus={vcpus}",
        observed=wrong,
        expected="processes, clock, disk and network continue where they were",
        reference=f"{guest.os.source('clock')}; FreeBSD e7e2431586a4 (D43765)",
    )
