# SPDX-License-Identifier: BSD-2-Clause
"""Every clock and every timer of the guest keeps the time of dom0."""

from __future__ import annotations

import time

from harness.guests.clock import clock_offset
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

# Seconds of one measurement.
SLEEP = 3
# Seconds: of the clocks, which are read in whole seconds, and of the commands to and from the console.
SLACK, OVERHEAD = 3.0, 0.3
# The part of the time by which a timer may be wrong. An emulated CPU delays every process.
SHARE, EMULATED_SHARE = 0.02, 0.3


def measure(guest: Guest) -> float:
    """The seconds by this machine's clock that the guest needs for ``sleep``. It takes 60 s if the guest's timer stands still."""
    begun = time.monotonic()
    guest.sh(f"sleep {SLEEP}", 60)
    return time.monotonic() - begun


def test_every_timer_keeps_time(guest: Guest, case: CaseContext) -> None:
    """With each timer and each clock that the kernel offers, also periodic, a sleep takes its time and the clock stays right.

    Kind of bug: a device that is not the default, and that is wrong: its interrupts get lost, or its rate is another.

    Source: sys/kern/kern_clocksource.c (kern.eventtimer), sys/kern/kern_tc.c (kern.timecounter); Linux kernel/time/clocksource.c
    Catches: periodic interrupts of the emulated RTC that did not arrive, so that FreeBSD's clock was slow (xen c2f79c4648, f6b533308c)
    """
    share = EMULATED_SHARE if guest.host.facts.emulated else SHARE
    first, wrong = clock_offset(guest), []
    for name, command in guest.profile.clock_commands(guest.sh).items():
        guest.sh(command)
        taken = measure(guest)
        case.metrics[name] = round(taken, 2)
        if not SLEEP * (1 - share) <= taken <= SLEEP * (1 + share) + OVERHEAD:
            wrong.append(f"with {name} `sleep {SLEEP}` takes {taken:.2f} s")
    if abs(jump := clock_offset(guest) - first) > SLACK:
        wrong.append(f"at the end the guest's clock is {jump:+.1f} s off, compared with dom0")
    assert len(case.metrics) > 0, "the guest offers no clock and no timer, so this case cannot judge"
    assert not wrong, finding(
        test=f"each timer and clock in turn: {', '.join(case.metrics)}",
        observed=wrong,
        expected=f"`sleep {SLEEP}` takes {SLEEP} s, within {share:.0%} and {OVERHEAD} s, and the clock keeps pace with dom0's",
        reference=f"{guest.profile.source('clock')}; sys/kern/kern_clocksource.c",
    )
