# SPDX-License-Identifier: BSD-2-Clause
"""The hosts of one worker: acquired at first use, reset between cases, replaced when they are lost."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from harness import preparing
from harness.errors import CannotRun, DeadlineExpired, HarnessError, InfrastructureError, TransportError, UsageError
from harness.guests.source import GuestSource
from harness.hosts.direct import DirectHost
from harness.hosts.inventory import Inventory
from harness.lab import factory
from harness.lab.host import LabHost
from harness.plugin import symbol_files
from harness.plugin.cells import Cell
from harness.plugin.guest_sources import GuestSources
from harness.plugin.host_provider import HostProvider
from harness.plugin.options import Options
from harness.xen.firmware import UEFI

log = logging.getLogger("fxh.worker")


@dataclass
class HeldHost:
    """A host of this worker, with what the worker knows about it."""

    host: DirectHost
    baseline: Inventory | None = None
    """The inventory of dom0 without a case's resources."""
    unreachable: HarnessError | None = None
    """Why the host does not answer, until it is dropped."""


class WorkerHosts:
    """Holds one host for each ``Cell.host``."""

    def __init__(self, options: Options, sources: GuestSources, run_id: str) -> None:
        self._options, self._sources, self._run_id = options, sources, run_id
        self._held: dict[str, HeldHost] = {}
        self._provider = HostProvider(options, lambda: self._start_lab(options.xens[0]))

    def held(self, cell: Cell) -> HeldHost | None:
        """The cell's host, if this worker has acquired one."""
        return self._held.get(cell.host)

    def idle(self, cell: Cell) -> DirectHost:
        """The cell's host with an idle dom0. A host that can be restored has been reset if it was used."""
        held = self._usable(cell)
        self.reset(cell, held)
        return held.host

    def in_any_state(self, cell: Cell) -> HeldHost:
        """The cell's host, with its baseline. It is idle only if it is new."""
        held = self._usable(cell)
        if held.baseline is None:
            self.reset(cell, held)
        return held

    def reset(self, cell: Cell, held: HeldHost, *, private_memory: bool = False) -> None:
        """Bring dom0 to its idle state with the files of the cell's guest, where the host can be restored."""
        host = held.host
        if host.checkpoints is not None:
            host.checkpoints.reset(self._files(cell, host), private_memory=private_memory)
        if held.baseline is None:
            held.baseline = host.inventory()

    def forget(self, cell: Cell, source: GuestSource) -> None:
        """Delete the idle checkpoint of the cell's host with the files of ``source``, which no case uses any more."""
        held = self._held.get(cell.host)
        if held is not None and held.host.checkpoints is not None:
            held.host.checkpoints.forget([file for file in source.loaded(held.host.facts.emulated) if file is not None])

    def second(self, cell: Cell) -> DirectHost:
        """A new host like the cell's, for this case alone; the caller closes it. Raises CannotRun if the hosts are the user's."""
        if self._options.host:
            raise CannotRun("needs a second host, and only labs have one", hint="fxh run lifecycle -k between_hosts")
        with preparing.step("a second lab"):
            return self._start_lab(cell.xen)

    def mark_used(self, cell: Cell) -> None:
        """Say that a case creates a guest or a disk on the cell's host: the next case needs a reset."""
        held = self._held.get(cell.host)
        if held is not None and held.host.checkpoints is not None:
            held.host.checkpoints.mark_used()

    def check(self, cell: Cell) -> HarnessError | None:
        """Why the cell's host does not work, or None."""
        held = self._held.get(cell.host)
        if held is None or held.unreachable is not None:
            return held.unreachable if held is not None else None
        try:
            held.host.check()
        except InfrastructureError as exc:
            # A lab ends its own waits when dom0 is silent. Elsewhere, every later request would wait for its full time-out.
            if isinstance(exc, (TransportError, DeadlineExpired)) and held.host.checkpoints is None:
                held.unreachable = exc
                held.host.transport.close()
            return exc
        return None

    def drop_if_lost(self, cell: Cell) -> str:
        """Drop the cell's host if it does not work, so that the next case gets another. Returns the reason, or ""."""
        held, error = self._held.get(cell.host), self.check(cell)
        if held is None or error is None:
            return ""
        self._provider.mark_lost(held.host, error)
        self.drop(cell.host)
        return error.message

    def drop(self, name: str) -> None:
        """Close the host for the cells with ``Cell.host == name``."""
        held = self._held.pop(name, None)
        if held is not None:
            held.host.close()

    def close(self) -> None:
        try:
            for name in list(self._held):
                self.drop(name)
        finally:
            self._provider.close()

    def _usable(self, cell: Cell) -> HeldHost:
        held = self._held.get(cell.host)
        if held is not None and self._provider.should_give_back(held.host):
            self.drop(cell.host)
        elif held is not None and held.host.failure:
            log.warning("%s: the next case gets a new host", held.host.failure)
            self.drop(cell.host)
        if cell.host not in self._held:
            self._held[cell.host] = HeldHost(self._acquire(cell))
        return self._held[cell.host]

    def _acquire(self, cell: Cell) -> DirectHost:
        if not self._options.host:
            return self._start_lab(cell.xen)
        with preparing.step(f"a share of {cell.host}"):
            host = self._provider.acquire(self._sources.source(cell))
        try:
            symbol_files.check_host(self._options, host, only=self._provider.is_one_host)
        except UsageError:
            host.close()
            raise
        return host

    def _start_lab(self, xen: str) -> LabHost:
        lab = factory.make(self._options.lab_spec(xen))
        try:
            lab.up()
        except BaseException:
            lab.remove()
            raise
        return LabHost(lab, run_id=self._run_id)

    def _files(self, cell: Cell, host: DirectHost) -> list[Path]:
        """The files that each boot of the cell's guest needs in dom0."""
        files = [file for file in self._sources.source(cell).loaded(host.facts.emulated) if file is not None]
        if cell.firmware == UEFI and host.own_ovmf is not None:
            files.append(host.own_ovmf)
        return files
