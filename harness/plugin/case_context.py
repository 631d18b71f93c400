# SPDX-License-Identifier: BSD-2-Clause
"""The record of one case while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.console.complaints import DOM0, XEN
from harness.errors import HarnessError
from harness.guests.guest import Guest
from harness.hosts import logs
from harness.hosts.host import XenHost
from harness.hosts.inventory import Inventory
from harness.hosts.logs import LogMark
from harness.plugin.cells import Cell
from harness.results.model import Boot

log = logging.getLogger("fxh.worker")


@dataclass
class CaseContext:
    """Collects what a case used and measured, for its result and for the cleanup after it."""

    directory: Path
    cell: Cell | None = None
    host: XenHost | None = None
    guests: list[Guest] = field(default_factory=list)
    prepared: list[Guest] = field(default_factory=list)
    """Guests that were booted and prepared for a warm checkpoint. They no longer exist; the results of their explainers do."""
    warm_boot: Boot | None = None
    """The boot that the warm checkpoint of the case's guest was saved from."""
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    undo: list[Callable[[], object]] = field(default_factory=list)
    """Cleanup steps for a host that cannot be restored as a whole. They run after the guests' removal, the last one first."""
    own_resources: list[str] = field(default_factory=list)
    """Parts of the names of resources in dom0 that the harness made for the case. On a restorable host they are not leaks."""
    symbols: tuple[Path, ...] = ()
    """Files with debugging information that the user gave."""
    kept: str = ""
    """How to attach to the case's guests, if they are kept."""
    gathered: bool = False
    """The case has gathered the evidence of its failure itself, because it continued with other guests."""
    mark: LogMark | None = None
    """Where the case begins in the logs of the host."""
    logs: dict[str, str] = field(default_factory=dict)
    """The lines that the case added to the logs of the host, by source (``dom0``, ``xen``)."""

    def use(self, host: XenHost) -> None:
        """Set the host of the case. Its logs count from here on."""
        self.host, self.mark = host, LogMark.of(time.monotonic(), host.hypervisor_log())

    def remove_guests(self) -> None:
        """Remove the guests from their hosts. On a host that can be restored, only detach from their consoles."""
        for guest in self.guests:
            if guest.host.checkpoints is not None:
                guest.abandon()
                continue
            # One that cannot be removed must not keep the next ones.
            steps: list[Callable[[], None]] = [guest.destroy]
            steps += [partial(guest.host.drop_disk, disk.target) for disk in guest.disks]
            steps.append(partial(guest.host.forget, guest.name))
            for step in steps:
                try:
                    step()
                except HarnessError as exc:
                    log.error("could not remove %s: %s", guest.name, exc)

    def read_logs(self, host: XenHost, inventory: Inventory) -> None:
        """Keep the new lines of the host's logs. ``inventory`` was taken a moment ago."""
        if self.mark is not None:
            seconds = time.monotonic() - self.mark.at
            self.logs = {
                DOM0: logs.dom0_since(inventory.log, inventory.uptime, seconds),
                XEN: logs.xen_since(host.hypervisor_log(), self.mark),
            }


def stage_times(guest: Guest) -> tuple[tuple[str, float], ...]:
    """The stages of the guest's present boot, with seconds since the guest was unpaused."""
    return tuple((reached.name, round(reached.at - guest.unpaused, 3)) for reached in guest.console.stages)
