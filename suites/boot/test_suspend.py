# SPDX-License-Identifier: BSD-2-Clause
"""A guest that stands still for a while, paused or in a file: it goes on, and knows what time it is."""

from __future__ import annotations

import time

import pytest

from harness.guests import hotplug, suspend
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

STILL = 10.0
# Both clocks are read in whole seconds, over a console.
SLACK = 3.0


def ahead(guest: Guest) -> float:
    """By how many seconds the guest's clock is before dom0's."""
    read = ["date", "+%s"]
    before = int(guest.host.transport.run(read).text)
    there = int(guest.sh("date +%s"))
    return there - (before + int(guest.host.transport.run(read).text)) / 2


def test_time_goes_on_while_paused(guest: Guest, case: CaseContext) -> None:
    """G5: after xl pause and xl unpause its clock is right, and what waited for time to pass goes on."""
    first = ahead(guest)

    with hotplug.paused(guest):
        time.sleep(STILL)

    jumped = ahead(guest) - first
    case.metrics["jump"] = jumped
    assert abs(jumped) <= SLACK, finding(
        test=f"xl pause, {STILL:.0f} s, xl unpause",
        observed=f"its clock is {jumped:+.1f} s off, against before",
        expected="has a clock that went on meanwhile",
        reference=guest.profile.source("clock"),
    )
    assert guest.sh("sleep 1; echo slept") == "slept"


@pytest.mark.parametrize("vcpus", [1, 2])
def test_saved_and_restored(booted: NewGuest, vcpus: int, case: CaseContext) -> None:
    """G2 G3 G4 G5: xl save and xl restore: processes, clock, disk and network go on."""
    guest = booted(vcpus=vcpus)
    guest.sh("echo before > /tmp/before; sleep 3000 > /dev/null 2>&1 & echo $! > /tmp/process")
    first, disks = ahead(guest), guest.profile.disks(guest.sh)

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    jumped = ahead(guest) - first
    wrong = []
    if abs(jumped) > SLACK:
        wrong.append(f"its clock is {jumped:+.1f} s off, against before")
    if guest.run("kill -0 $(cat /tmp/process)", check=False).status:
        wrong.append("a process that was started before it is gone")
    if (now := guest.profile.disks(guest.sh)) != disks:
        wrong.append(f"its disks are {' '.join(now)}, they were {' '.join(disks)}")
    if guest.config.disks and guest.run("echo after > /tmp/after && sync && cat /tmp/before", check=False).text != "before":
        wrong.append("its root disk cannot be written and read")
    link = Link(guest).up()
    case.undo.append(link.down)
    if not link.wait_up():
        wrong.append("its network does not come back within 40 s")
    assert not wrong, finding(
        test=f"xl save and xl restore of a guest with vcpus={vcpus}",
        observed=wrong,
        expected="goes on where it was",
        reference=f"{guest.profile.source('clock')}; FreeBSD e7e2431586a4 (D43765)",
    )
