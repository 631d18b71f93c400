# SPDX-License-Identifier: BSD-2-Clause
"""Programs that wait in a system call while the guest is suspended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.guests import suspend
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted
from harness.safetext import plain

from .support import connected

# Seconds that a program would wait: longer than any suspension.
LONG = 900
PORT = 6002


@pytest.mark.parametrize("suspended", [suspend.continued, suspend.through_a_file], ids=["copied", "restored"])
def test_waiting_programs_go_on(booted: Booted, suspended: Callable[[Guest], object], case: CaseContext) -> None:
    """Programs that wait for a time, a pipe, a child or a socket go on waiting after `xl save -c`, or after a save and a restore.

    Kind of bug: what the suspension of all processes does to a system call that cannot be restarted, such as poll(2).

    Source: sys/kern/kern_thread.c, weed_inhib() (sleepq_abort() with ERESTART); sys/kern/sys_generic.c, kern_poll();
        sys/dev/xen/control/control.c, xctrl_suspend() (stop_all_proc()); Linux kernel/power/process.c, freeze_processes()
    """
    guest = booted(connected)
    link = Link(guest, interface=guest.prepared["interface"])
    peer = link.peer("recv", PORT, 1 << 20, LONG)
    case.undo.append(peer.stop)
    waiting = {
        "sleep": f"sleep {LONG}",
        "cat": f"sleep {LONG} | cat",
        "wait": f"sleep {LONG} & wait",
        "nc": f"while sleep 2; do echo more; done | {link.nc(LONG)} {link.here} {PORT}",
    }
    for name, command in waiting.items():
        guest.sh(f"( ( {command} ) > /dev/null 2> /tmp/fxh-said-{name}; echo $? > /tmp/fxh-ended-{name} ) > /dev/null 2>&1 &")
    guest.sh("sleep 3")
    assert not (early := ended(guest, waiting)), f"before the suspension: {', '.join(early)}"

    suspended(guest)
    guest.sh("sleep 5")

    assert not (wrong := ended(guest, waiting)), finding(
        test="programs that wait in nanosleep(2), read(2), wait4(2) and poll(2) while the guest is suspended and continues",
        observed=wrong,
        expected="each program goes on waiting: no signal was sent to it",
        reference=f"poll(2) (EINTR: a signal was delivered); {guest.os.source('suspend')}",
    )


def ended(guest: Guest, waiting: dict[str, str]) -> list[str]:
    """The programs that ended, each with its status and its last words."""
    found = []
    for name in waiting:
        if status := guest.sh(f"cat /tmp/fxh-ended-{name} 2>/dev/null; true").strip():
            said = plain(guest.sh(f"head -c 300 /tmp/fxh-said-{name}")).strip()
            found.append(f"{name} ended with status {status}" + (f": {said}" if said else ""))
    return found
