# SPDX-License-Identifier: BSD-2-Clause
"""Does every byte of the console arrive, whoever attaches when?"""

from __future__ import annotations

import re

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.guests.guest import Guest
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

# A hundred lines of this are a megabyte; long lines, since a guest tells Xen of each by itself.
WIDTH = 9_999
# Seconds in which a console that floods is never silent.
_SILENCE = 30.0


def flood(guest: Guest, lines: int) -> bytes:
    """What comes of so many lines, and of one that says that they are over; that one may be lost, too, and then it is silent.

    Raises GuestDied, and DeadlineExpired for a flood that goes on for too long.
    """
    begun, data = guest.console.offset, bytearray()
    deadline = Deadline(400 * guest.scale)
    guest.session.start(guest.profile.flood_command(lines, WIDTH) + "; echo flood-'over'")
    while fresh := guest.console.read(begun + len(data), -1, deadline.capped(_SILENCE * guest.scale)):
        data += fresh
        if b"flood-over" in data[-len(fresh) - 10 :]:
            break
    else:
        if deadline.expired:
            raise deadline.expire("the end of the flood", f"{len(data)} bytes came, and it goes on")
        guest.sh("echo alive")  # else it has not lost anything: it hangs
    return bytes(data)


def test_flood_loses_nothing(guest: Guest, case: CaseContext) -> None:
    """B5: 10 MB at full speed: every line arrives, in order, and the guest lives on."""
    lines = guest.profile.flood_lines(guest.config.type) if guest.host.facts.emulated else 1000
    data = flood(guest, lines)

    # What the kernel itself says meanwhile cuts a line in two: "[   55.1] clocksource: timekeeping watchdog on CPU0 ...".
    kept = re.sub(rb"\[ *\d+\.\d{6}\] [^\r\n]*\r*\n", b"", data)
    numbers = [int(line[-8:]) for line in re.findall(rb"^\r*(\d{%d})\r*$" % WIDTH, kept, re.MULTILINE)]
    case.metrics["flood bytes"] = float(len(data))
    assert numbers == list(range(1, lines + 1)), f"{lines - len(set(numbers))} lines of {lines} are missing"
    ended = b"flood-over" in data
    assert ended, f"all {lines} lines came, and what was printed behind them did not"
    assert guest.sh("echo alive") == "alive"


# An HVM guest's console is QEMU's serial port: nobody keeps what it prints while nobody is attached.
@pytest.mark.needs(capability=("console-log",), types=("pv", "pvh"))
def test_late_attach_loses_nothing(new_guest: NewGuest) -> None:
    """B6: a console that is attached after the boot shows all of it: xenconsoled kept it."""
    guest = new_guest()
    domid = guest.host.toolstack.create(guest.config, paused=False)
    log = ["cat", f"/var/log/xen/console/guest-{guest.name}.log"]

    def booted() -> bytes:
        data = guest.host.transport.run(log, check=False).stdout
        if b"login: " not in data:
            raise ConditionNotMet(f"{len(data)} bytes so far")
        return data

    kept = guest.deadline(300).wait("the login prompt in xenconsoled's log", booted, 1.0)
    guest.attach(domid)
    guest.wait_stage("login", Deadline(30))

    seen = guest.console.since(0)
    assert seen.startswith(kept), f"{len(kept)} bytes were printed, the late console shows {len(seen)}"


@pytest.mark.needs(capability=("console-log",), types=("pv", "pvh"))
def test_detach_in_the_middle_loses_nothing(new_guest: NewGuest) -> None:
    """B6: the console is detached while the guest boots and attached again: xenconsoled's log has every byte."""
    guest = new_guest().create().start()
    guest.wait_stage("xen")

    guest.reattach()
    guest.wait_stage("login")

    kept = guest.host.transport.run(["cat", f"/var/log/xen/console/guest-{guest.name}.log"]).stdout
    names = [stage.name for stage in guest.profile.stages if stage.pattern.search(kept)]
    assert (names[0], names[-1]) == ("kernel", "login"), (
        f"xenconsoled's log shows the stages {names}: its start or its end is missing"
    )
    assert kept.endswith(guest.console.since(guest.console.boot_offset)[-200:]), "the console's end is not the log's"
