# SPDX-License-Identifier: BSD-2-Clause
"""What becomes of a target when Xen has not the pages at once."""

from __future__ import annotations

from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample, missed
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .test_balloon import judge


def test_grows_when_pages_come(guest: Guest, first: Sample, low: int, case: CaseContext) -> None:
    """E9: Xen refuses pages for a while, and has them later: the guest takes them without being asked again.

    It refuses because of the domain's maximum, which ``xl mem-set`` lowered: to the guest that is a host without memory.
    """
    memory = Memory(guest)
    whole = guest.config.memory
    memory.ask(low)
    down, _ = memory.settle(first.current - (whole - low) * MIB)

    # The target alone: the maximum stays where xl put it.
    memory.write(str(whole << 10))
    refused, _ = memory.settle()
    assert refused.current < down.current + 8 * MIB, "Xen refused nothing: this case asks nothing"
    guest.host.toolstack.mem_max(guest.domid, whole)
    there, seconds = memory.settle(first.current, 15)

    stayed = missed(there, first.current)
    case.metrics["seconds to take them"] = round(seconds, 2)
    # Whatever comes of that, a new write has to move it.
    memory.write(str(whole << 10))
    back, _ = memory.settle(first.current)
    judge(guest, f"memory/target written again, {whole} MiB, when Xen has the pages", down, back, first.current)
    assert not stayed, finding(
        test=f"xl mem-set {low}, then {whole} MiB in memory/target, which Xen refuses; {seconds:.0f} s ago it came to have the pages",
        observed=[*stayed, "a new write of the same target brought it there"],
        expected="asks again from time to time, as Linux does (drivers/xen/balloon.c, update_schedule())",
        reference=f"{guest.profile.source('balloon')}: increase_reservation() sets hard_limit, and nothing but a new target lifts it",
    )
