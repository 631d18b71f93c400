# SPDX-License-Identifier: BSD-2-Clause
"""Names the mechanism behind a reboot that did not run the replaced kernel.

The candidates explain the report that a guest crashes after its kernel image was replaced and it was restarted.
"""

from __future__ import annotations

from dataclasses import dataclass

NEW, OLD, OTHER = "new", "old", "other"


@dataclass(frozen=True)
class RebootEvidence:
    """The observations after a reboot. A file is ``new``, ``old`` or ``other`` (torn, mixed, damaged); "" means not examined."""

    came_back: bool
    bootloader_ran: bool
    running: str = ""
    """The kernel that runs after the reboot."""
    extracted: str = ""
    """The kernel that pygrub, run by hand in dom0 after the reboot, extracts from the disk."""
    in_guest: str = ""
    """The kernel file as the rebooted guest reads it."""
    cold: str = ""
    """The kernel that runs after xl destroy and xl create; "" if that was not tried."""
    died: str = ""
    """The death of the rebooted guest; "" if it lives."""


def mechanism(seen: RebootEvidence) -> str:
    """Return the mechanism as one line. It begins with ``ok`` if the new kernel runs, otherwise with the mechanism's number."""
    if seen.came_back and seen.running == NEW:
        return "ok: the bootloader ran again and the new kernel runs" if seen.bootloader_ran else "ok: the new kernel runs"
    if not seen.bootloader_ran:
        return "1: the bootloader did not run again" + (
            "; the old kernel runs" if seen.running == OLD else "; the domain did not come back"
        )
    if seen.in_guest == NEW and seen.extracted in (OLD, OTHER):
        mix = "the old kernel" if seen.extracted == OLD else "a mix of old and new blocks"
        return f"2: the bootloader read stale blocks of dom0's page cache: {mix}, while the guest's disk has the new kernel"
    if seen.running == OLD and seen.extracted == NEW and seen.in_guest in (NEW, ""):
        return "2: the bootloader read stale blocks of dom0's page cache at the reboot; now it reads the new kernel"
    if seen.extracted in (OLD, OTHER) and seen.in_guest in (seen.extracted, ""):
        content = "has the old kernel" if seen.extracted == OLD else "has neither kernel complete"
        return f"3: the guest had not flushed its writes: the disk {content}"
    if seen.cold == NEW:
        return "5: the toolstack: a cold start runs the new kernel, the warm reboot did not"
    if seen.died or not seen.came_back:
        return f"4: the new kernel was extracted completely and does not boot{': ' + seen.died if seen.died else ''}"
    return f"unexplained: {seen}"
