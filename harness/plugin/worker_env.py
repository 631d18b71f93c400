# SPDX-License-Identifier: BSD-2-Clause
"""The environment of one worker: its guest sources, hosts, and guests."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from harness import trace
from harness.errors import HarnessError, InfrastructureError
from harness.guests import keptdump
from harness.guests.guest import Guest
from harness.guests.shape import Shape
from harness.guests.source import GuestSource
from harness.hosts.direct import DirectHost
from harness.hosts.host import XenHost
from harness.hosts.inventory import Item
from harness.images.image import Image
from harness.plugin import hold_guest, leak_guard, symbol_files
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.guest_factory import GuestFactory, Prepare
from harness.plugin.guest_sources import GuestSources
from harness.plugin.options import Options
from harness.plugin.worker_hosts import WorkerHosts

log = logging.getLogger("fxh.worker")


class WorkerEnvironment:
    """The fixture ``worker_env``. It belongs to one worker and lives as long as the run."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sources = GuestSources(options)
        self._hosts = WorkerHosts(options, self._sources, secrets.token_hex(3))
        self._guests = GuestFactory(options, self._sources, self._hosts)
        self._kept = self._dumps = 0

    # -- guests under test --------------------------------------------------------------------------------------------

    @property
    def image(self) -> Image | None:
        """See :attr:`GuestSources.image`."""
        return self._sources.image

    @property
    def tested(self) -> GuestSource | None:
        """See :attr:`GuestSources.tested`."""
        return self._sources.tested

    def source(self, cell: Cell) -> GuestSource:
        """The source of the cell's guest."""
        return self._sources.source(cell)

    def check_symbols(self) -> None:
        """See :func:`harness.plugin.symbol_files.check`."""
        symbol_files.check(self._options, self._sources)

    @property
    def symbols(self) -> tuple[Path, ...]:
        """The user's files with debugging information."""
        return self._options.symbols

    # -- for a case ---------------------------------------------------------------------------------------------------

    def begin_case(self, cell: Cell, *, any_kernel: bool) -> None:
        """See :meth:`GuestSources.begin_case`. A checkpoint with dom0's kernel goes when that is no longer needed."""
        unneeded = self._sources.begin_case(cell, any_kernel=any_kernel)
        if unneeded is not None:
            self._hosts.forget(cell, unneeded)

    def host(self, cell: Cell) -> DirectHost:
        """The cell's host with an idle dom0."""
        return self._hosts.idle(cell)

    def second_host(self, cell: Cell) -> DirectHost:
        """See :meth:`WorkerHosts.second`."""
        return self._hosts.second(cell)

    def mark_used(self, cell: Cell) -> None:
        """See :meth:`WorkerHosts.mark_used`."""
        self._hosts.mark_used(cell)

    def new_guest(self, cell: Cell, host: XenHost, directory: Path, shape: Shape) -> Guest:
        """See :meth:`GuestFactory.new`."""
        return self._guests.new(cell, host, directory, shape)

    def booted_guest(self, cell: Cell, context: CaseContext, shape: Shape, prepare: Prepare | None = None) -> Guest:
        """See :meth:`GuestFactory.booted`."""
        return self._guests.booted(cell, context, shape, prepare)

    # -- after a case -------------------------------------------------------------------------------------------------

    @property
    def keeps_dumps(self) -> bool:
        """``--keep dump``."""
        return self._options.keep == "dump"

    def keep(self, cell: Cell, context: CaseContext) -> None:
        """With ``--keep failed``, leave the guests of a failed case for inspection. The next case gets another share or lab.

        With ``--keep dump``, leave the dumps of those that panicked in the case's directory.
        """
        if self.keeps_dumps:
            with trace.step(trace.EVIDENCE, "keep kernel dumps"):
                for guest in context.guests:
                    self._dumps += keptdump.save(guest, context.directory, self._dumps)
        held = self._hosts.held(cell)
        if self._options.keep != "failed" or held is None or not context.guests or context.kept:
            return
        if self._kept >= hold_guest.MOST:
            log.warning("this worker keeps %d guests already and keeps no more", self._kept)
            return
        context.kept = hold_guest.keep(held.host, context.guests, self._options.keep_minutes)
        if context.kept:
            self._kept += 1
            self._hosts.drop(cell.host)

    def clean_up(self, context: CaseContext) -> None:
        """Remove a case's guests, then undo its other steps. A host that can be restored is reset before the next case."""
        context.remove_guests()
        if context.host is not None and context.host.checkpoints is not None:
            return
        for step in reversed(context.undo):
            try:
                step()
            except InfrastructureError as exc:
                log.error("a cleanup step failed: %s", exc)

    def leaks(self, cell: Cell, context: CaseContext) -> tuple[Item, ...]:
        """See :func:`harness.plugin.leak_guard.leaks`. Also reads the case's lines of the host's logs."""
        held = self._hosts.held(cell)
        return leak_guard.leaks(held, context) if held is not None else ()

    def check_host(self, cell: Cell) -> HarnessError | None:
        """Why the cell's host does not work, or None."""
        return self._hosts.check(cell)

    def drop_lost_host(self, cell: Cell) -> str:
        """See :meth:`WorkerHosts.drop_if_lost`."""
        return self._hosts.drop_if_lost(cell)

    def close(self) -> None:
        """Give all hosts back."""
        self._hosts.close()
