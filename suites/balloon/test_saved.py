# SPDX-License-Identifier: BSD-2-Clause
"""A guest that is saved and restored while some of its memory is ballooned out."""

from __future__ import annotations

from harness.guests import suspend
from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample, imbalance, missed
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .test_balloon import judge


def test_saved_while_ballooned(guest: Guest, first: Sample, low: int, case: CaseContext) -> None:
    """E13: saved and restored while a part is ballooned out: it stands where it stood, and grows back to all it had."""
    memory = Memory(guest)
    whole = guest.config.memory
    memory.ask(low)
    wanted = first.current - (whole - low) * MIB
    before, _ = memory.settle(wanted)
    judge(guest, f"xl mem-set {low}", first, before, wanted)
    # All the way, and not merely near: a domain that is saved with more than a MiB above its target cannot be restored ("Failed
    # to populate physmap", with Xen's "Over-allocation"; libxl limits it to the target and LIBXL_MAXMEM_CONSTANT).
    before, _ = memory.settle()

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    memory = Memory(guest)
    after, _ = memory.settle()
    wrong = [*missed(after, wanted), *imbalance(before, after)]
    if after.managed != before.managed:
        wrong.append(f"its kernel manages {(after.managed - before.managed) >> 10:+} KiB")
    assert not wrong, finding(
        test=f"xl mem-set {low} (of {whole} MiB), xl save, xl restore",
        observed=wrong,
        expected="stands where it stood before it was saved",
        reference=guest.profile.source("balloon"),
    )
    memory.ask(whole)
    back, _ = memory.settle(first.current)
    judge(guest, f"xl mem-set {whole} after the restore", after, back, first.current)
    last, _ = memory.settle()
    assert last.managed == first.managed, f"after all its kernel manages {(last.managed - first.managed) >> 10:+} KiB"
