# SPDX-License-Identifier: BSD-2-Clause
"""The record of one case while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.console.reader import ConsoleReader
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.plugin.cells import Cell
from harness.results.model import Boot


@dataclass
class CaseContext:
    """Collects what a case used and measured, for its result and for the cleanup after it."""

    directory: Path
    cell: Cell | None = None
    host: XenHost | None = None
    guests: list[Guest] = field(default_factory=list)
    prepared: list[Guest] = field(default_factory=list)
    """Guests that were booted and prepared for a warm checkpoint. They are gone, but what their watches found is not."""
    warm_boot: Boot | None = None
    """The boot that the warm checkpoint of the case's guest was saved from."""
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    undo: list[Callable[[], object]] = field(default_factory=list)
    """Cleanup steps for a host that cannot be restored as a whole. They run after the guests' removal, the last one first."""
    given: list[str] = field(default_factory=list)
    """Parts of the names of resources in dom0 that the harness made for the case. On a restorable host they are no leaks."""
    symbols: tuple[Path, ...] = ()
    """Files with debugging information that the user gave."""
    kept: str = ""
    """How to attach to the case's guests, if they are kept."""

    @property
    def consoles(self) -> list[ConsoleReader]:
        return [guest.console for guest in self.guests if guest.domid >= 0]


def stage_times(guest: Guest) -> tuple[tuple[str, float], ...]:
    """The stages of the guest's present boot, with seconds since the guest was unpaused."""
    return tuple((reached.name, round(reached.at - guest.unpaused, 3)) for reached in guest.console.stages)
