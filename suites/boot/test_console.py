# SPDX-License-Identifier: BSD-2-Clause
"""Every byte that the guest prints reaches the console, whenever a client attaches."""

from __future__ import annotations

import re
import time

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

# Bytes of a line; 100 lines make about 1 MB. The lines are long because a guest notifies Xen once for each line.
WIDTH = 9_999
# Seconds. During a flood the console is never silent for that long.
_SILENCE = 30.0
CONSOLED = "xenconsoled --log=guest: /var/log/xen/console/guest-NAME.log"


def flood(guest: Guest, lines: int) -> bytes:
    """Print ``lines`` lines and an end mark in the guest; return all bytes that the console showed.

    The end mark can get lost, too: reading ends after a silence. Raises GuestDied, and DeadlineExpired if the flood does not end.
    """
    begun, data = guest.console.offset, bytearray()
    deadline = Deadline(400 * guest.scale)
    guest.session.start(guest.os.flood_command(lines, WIDTH) + "; echo flood-'over'")
    while fresh := guest.console.read(begun + len(data), -1, deadline.capped(_SILENCE * guest.scale)):
        data += fresh
        if b"flood-over" in data[-len(fresh) - 10 :]:
            break
    else:
        if deadline.expired:
            raise deadline.expire("the end of the flood", f"{len(data)} bytes arrived, and more follow")
        guest.sh("echo alive")  # a guest that does not answer hangs, so nothing was lost
    return bytes(data)


def test_flood_loses_nothing(guest: Guest, case: CaseContext) -> None:
    """Of 10 MB printed at full speed every line arrives, in order, and the guest still answers.

    Source: sys/dev/xen/console/xen_console.c (console.c up to FreeBSD 10)
    Catches: xcoutwakeup() of FreeBSD 10, which drops a byte when its buffer is full (known issue); lost bytes (planted)
    """
    lines = guest.os.flood_lines(guest.config.type, serial=guest.config.serial_console) if guest.host.facts.emulated else 1000
    data = flood(guest, lines)

    # A kernel message splits a line: "[   55.123456] clocksource: timekeeping watchdog on CPU0 ...".
    kept = re.sub(rb"\[ *\d+\.\d{6}\] [^\r\n]*\r*\n", b"", data)
    numbers = [int(line[-8:]) for line in re.findall(rb"^\r*(\d{%d})\r*$" % WIDTH, kept, re.MULTILINE)]
    case.metrics["flood bytes"] = float(len(data))
    wrong = []
    if missing := lines - len(set(numbers)):
        wrong.append(f"{missing} lines of {lines} are missing")
    elif numbers != list(range(1, lines + 1)):
        wrong.append("the lines arrived out of order or twice")
    if b"flood-over" not in data:
        wrong.append("the end mark that was printed after the lines did not arrive")
    assert not wrong, finding(
        test=f"{lines} lines of {WIDTH} bytes printed at full speed",
        observed=wrong,
        expected="the console shows every line, in order",
        reference=guest.os.source("console"),
    )
    assert guest.sh("echo alive") == "alive", "the shell does not answer `echo alive` after the flood"


# On a real host, an HVM guest's console is QEMU's serial port, which keeps no output while no client is attached.
@pytest.mark.needs(capability=("console-log",), types=("pv", "pvh"))
def test_late_attach_loses_nothing(new_guest: NewGuest) -> None:
    """A console client that attaches after the boot gets the whole output, because xenconsoled kept it.

    Source: xenconsoled --log=guest
    """
    guest = new_guest()
    domid = guest.host.toolstack.create(guest.config, paused=False)
    log = ["cat", f"/var/log/xen/console/guest-{guest.name}.log"]

    def booted() -> bytes:
        data = guest.host.transport.run(log, check=False).stdout
        if b"login: " not in data:
            raise ConditionNotMet(f"the log has {len(data)} bytes and no login prompt")
        return data

    kept = guest.deadline(300).wait("the login prompt in xenconsoled's log", booted, 1.0)
    guest.attach(domid)
    guest.wait_stage("login", Deadline(30))
    # The log may go on behind the prompt with a message of the kernel.
    rest = Deadline(30)
    while guest.console.offset < len(kept) and not rest.expired:
        time.sleep(0.1)

    seen = guest.console.since(0)
    assert seen.startswith(kept), finding(
        test="xl console attached after the boot",
        observed=f"xenconsoled logged {len(kept)} bytes; the console shows {len(seen)} bytes that differ from them",
        expected="the console shows all output since the start of the domain",
        reference=CONSOLED,
    )


@pytest.mark.needs(capability=("console-log",), types=("pv", "pvh"))
def test_detach_in_the_middle_loses_nothing(new_guest: NewGuest) -> None:
    """If the console client detaches during the boot and attaches again, xenconsoled's log is complete.

    Source: xenconsoled --log=guest
    """
    guest = new_guest().create().start()
    guest.wait_stage("xen")

    guest.reattach()
    guest.wait_stage("login")

    last = guest.console.since(guest.console.boot_offset)[-200:]
    kept = guest.host.transport.run(["cat", f"/var/log/xen/console/guest-{guest.name}.log"]).stdout
    names = [stage.name for stage in guest.os.stages if stage.pattern.search(kept)]
    wrong = []
    if (names[:1], names[-1:]) != (["kernel"], ["login"]):
        wrong.append(f"xenconsoled's log shows {'the stages ' + ', '.join(names) if names else 'no stage of the boot'}")
    # A message of the kernel may follow meanwhile.
    if last not in kept[-8192:]:
        wrong.append("the last 200 bytes of the console are not at the end of xenconsoled's log")
    assert not wrong, finding(
        test="xl console detached during the boot and attached again",
        observed=wrong,
        expected="the log has all stages from kernel to login and ends with the console's last bytes",
        reference=CONSOLED,
    )
