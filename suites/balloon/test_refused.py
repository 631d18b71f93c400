# SPDX-License-Identifier: BSD-2-Clause
"""A guest whose target is higher than the memory that Xen has at the moment."""

from __future__ import annotations

from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample, missed
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .support import assert_balloon_at


def test_grows_when_pages_come(memory: Memory, initial: Sample, low: int, case: CaseContext) -> None:
    """If Xen refuses pages and has them later, the guest takes them without a new target.

    Xen refuses because ``xl mem-set`` lowered the domain's maximum. The guest cannot tell that from a host without free memory.

    Source: sys/dev/xen/balloon/balloon.c, increase_reservation(); Linux drivers/xen/balloon.c, update_schedule()
    Catches: a balloon driver that never asks again after a refusal (known issue: hard_limit)
    """
    guest = memory.guest
    whole = guest.config.memory
    memory.ask(low)
    down, _ = memory.settle(initial.current - (whole - low) * MIB)

    # Write the target alone: the maximum stays where xl put it.
    memory.write(str(whole << 10))
    refused, _ = memory.settle()
    assert refused.current < down.current + 8 * MIB, "Xen refused no pages, so this case cannot judge what the guest does then"
    guest.host.toolstack.mem_max(guest.domid, whole)
    # Linux waits for up to 32 s between two attempts (drivers/xen/balloon.c, max_schedule_delay).
    there, seconds = memory.settle(initial.current, 40)

    stayed = missed(there, initial.current)
    case.metrics["seconds to take them"] = round(seconds, 2)
    # In either case a new write has to move the balloon.
    memory.write(str(whole << 10))
    back, _ = memory.settle(initial.current)
    assert_balloon_at(guest, f"{whole} MiB written to memory/target again, when Xen has the pages", down, back, initial.current)
    assert not stayed, finding(
        test=f"xl mem-set {low}, then {whole} MiB in memory/target, which Xen refuses; {seconds:.0f} s ago Xen got the pages",
        observed=[*stayed, "a new write of the same target brought it there"],
        expected="the guest asks again from time to time, as Linux does (drivers/xen/balloon.c, update_schedule())",
        reference=f"{guest.os.source('balloon')}: increase_reservation() sets hard_limit, and only a new target lifts it",
    )
