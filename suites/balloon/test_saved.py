# SPDX-License-Identifier: BSD-2-Clause
"""A guest that is saved and restored while part of its memory is ballooned out."""

from __future__ import annotations

from harness.guests import suspend
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample, imbalance, missed
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .support import assert_balloon_at, assert_no_page_lost


def test_saved_while_ballooned(memory: Memory, initial: Sample, low: int, case: CaseContext) -> None:
    """A guest that is saved and restored with part of its memory ballooned out keeps its size and can grow back.

    Source: sys/dev/xen/balloon/balloon.c, balloon_process(); Linux drivers/xen/balloon.c, balloon_process()
    Catches: a write outside the event channel mask on resume (FreeBSD 4ece79968e70, D43928)
    """
    guest = memory.guest
    whole = guest.config.memory
    memory.ask(low)
    wanted = initial.current - (whole - low) * MIB
    before, _ = memory.settle(wanted)
    assert_balloon_at(guest, f"xl mem-set {low}", initial, before, wanted)
    # Wait until the balloon stands still. A domain saved with more than 1 MiB above its target cannot be restored: xl says "Failed
    # to populate physmap", Xen "Over-allocation" (libxl allows the target plus LIBXL_MAXMEM_CONSTANT).
    before, _ = memory.settle()

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    memory = Memory(guest)
    after, _ = memory.settle()
    wrong = [*missed(after, wanted), *imbalance(before, after)]
    if after.managed != before.managed:
        wrong.append(f"the memory that the guest's kernel manages changed by {(after.managed - before.managed) >> 10:+} KiB")
    assert not wrong, finding(
        test=f"xl mem-set {low} (of {whole} MiB), xl save, xl restore",
        observed=wrong,
        expected="the balloon is where it was before the save",
        reference=guest.os.source("balloon"),
    )
    memory.ask(whole)
    back, _ = memory.settle(initial.current)
    assert_balloon_at(guest, f"xl mem-set {whole} after the restore", after, back, initial.current)
    last, _ = memory.settle()
    assert_no_page_lost(guest, f"xl mem-set {low}, xl save, xl restore, xl mem-set {whole}", initial, last)
