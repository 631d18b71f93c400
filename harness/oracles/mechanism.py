# SPDX-License-Identifier: BSD-2-Clause
"""A kernel was replaced and the guest rebooted: which of the things that can go wrong went wrong.

The candidates are those for the old report that a guest crashes when its kernel image was replaced and it was restarted.
"""

from __future__ import annotations

from dataclasses import dataclass

NEW, OLD, OTHER = "new", "old", "other"


@dataclass(frozen=True)
class RebootEvidence:
    """What was seen after the reboot. Each file is ``new``, ``old``, or ``other`` (torn, mixed, damaged); "" when not looked at."""

    came_back: bool
    bootloader_ran: bool
    running: str = ""
    """The kernel that answers."""
    extracted: str = ""
    """What pygrub takes from the disk, by hand in dom0, after the reboot."""
    in_guest: str = ""
    """The file as the rebooted guest reads it."""
    cold: str = ""
    """The kernel that answers after xl destroy and xl create; "" when that was not tried."""
    died: str = ""
    """How the rebooted guest died, if it did."""


def mechanism(seen: RebootEvidence) -> str:
    """One line: the mechanism. It begins with ``ok`` when the new kernel runs."""
    if seen.came_back and seen.running == NEW:
        return "ok: the bootloader ran again and the new kernel runs" if seen.bootloader_ran else "ok: the new kernel runs"
    if not seen.bootloader_ran:
        return "1: the bootloader did not run again" + (
            "; the old kernel runs" if seen.running == OLD else "; the domain is not back"
        )
    if seen.in_guest == NEW and seen.extracted in (OLD, OTHER):
        mix = "the old kernel" if seen.extracted == OLD else "a mix of old and new blocks"
        return f"2: the bootloader read stale blocks of dom0's page cache: {mix}, while the guest's disk has the new one"
    if seen.running == OLD and seen.extracted == NEW and seen.in_guest in (NEW, ""):
        return "2: the bootloader read stale blocks of dom0's page cache at the reboot; by now it would read the new kernel"
    if seen.extracted in (OLD, OTHER) and seen.in_guest in (seen.extracted, ""):
        what = "the old kernel is" if seen.extracted == OLD else "neither kernel is whole"
        return f"3: the guest had not flushed: {what} on its disk"
    if seen.cold == NEW:
        return "5: the toolstack: a cold start runs the new kernel, the warm reboot did not"
    if seen.died or not seen.came_back:
        return f"4: the new kernel was extracted whole and does not boot{': ' + seen.died if seen.died else ''}"
    return f"unexplained: {seen}"
