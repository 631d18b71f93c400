# SPDX-License-Identifier: BSD-2-Clause
"""Every clock and every timer of the guest keeps the time of dom0."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from harness.guests.clock import clock_offset
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

# Seconds of one measurement.
SLEEP = 3
# Seconds: of the clocks, which are read in whole seconds, and by which the time of a command over the console varies.
SLACK, OVERHEAD = 3.0, 0.3
# The part of the time by which a timer may be wrong. An emulated CPU delays every process.
SHARE, EMULATED_SHARE = 0.02, 0.3


def timed(guest: Guest, seconds: int) -> float:
    """The seconds by this machine's clock that the guest needs for ``sleep``. Raises GuestDied after 60 s if its timer stands still."""
    begun = time.monotonic()
    guest.sh(f"sleep {seconds}", 60)
    return time.monotonic() - begun


def judge(sleep: Callable[[int], float], share: float) -> tuple[float, bool]:
    """The seconds that ``sleep(SLEEP)`` takes, and whether that is right: not less than it should, nor much more than ``sleep(0)`` adds.

    A sleep that is too long is repeated, because this machine may have been busy: a wrong timer is wrong again.
    """
    for _ in range(2):
        taken = sleep(SLEEP)
        if taken < SLEEP * (1 - share):
            return taken, False
        if taken - min(sleep(0) for _ in range(3)) <= SLEEP * (1 + share) + OVERHEAD:
            return taken, True
    return taken, False


def test_every_timer_keeps_time(guest: Guest, case: CaseContext) -> None:
    """With each timer and each clock that the kernel offers, also periodic, a sleep takes its time and the clock stays right.

    Kind of bug: a device that is not the default, and that is wrong: its interrupts get lost, or its rate is another.

    Source: sys/kern/kern_clocksource.c (kern.eventtimer), sys/kern/kern_tc.c (kern.timecounter); Linux kernel/time/clocksource.c
    Catches: periodic interrupts of the emulated RTC that did not arrive, so that FreeBSD's clock was slow (xen c2f79c4648, f6b533308c)
    """
    share = EMULATED_SHARE if guest.host.facts.emulated else SHARE
    first, wrong = clock_offset(guest), []
    commands = guest.os.clock_commands(guest.sh)
    if not commands:
        pytest.skip("the guest's kernel offers no clock and no timer to choose")
    for name, command in commands.items():
        # An emulated CPU often stands still for that long.
        if guest.host.facts.emulated and name in guest.os.short_clocks:
            continue
        guest.sh(command)
        taken, right = judge(partial(timed, guest), share)
        case.metrics[name] = round(taken, 2)
        if not right:
            wrong.append(f"with {name} `sleep {SLEEP}` takes {taken:.2f} s")
    if abs(jump := clock_offset(guest) - first) > SLACK:
        wrong.append(f"at the end the guest's clock is {jump:+.1f} s off, compared with dom0")
    assert not wrong, finding(
        test=f"each timer and clock in turn: {', '.join(case.metrics)}",
        observed=wrong,
        expected=f"`sleep {SLEEP}` takes {SLEEP} s, within {share:.0%} and {OVERHEAD} s, and the clock keeps pace with dom0's",
        reference=f"{guest.os.source('clock')}; sys/kern/kern_clocksource.c",
    )
