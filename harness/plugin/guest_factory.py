# SPDX-License-Identifier: BSD-2-Clause
"""Makes guests for cases: new ones, and booted ones from warm checkpoints."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.digest import code_sha256
from harness.errors import TransportError
from harness.guests.domain_config import build_domain_config
from harness.guests.guest import Guest
from harness.guests.shape import Shape
from harness.hosts.checkpoints import HostCheckpoints
from harness.hosts.host import XenHost
from harness.lab.suite_checkpoints import key_of
from harness.plugin.case_context import CaseContext, stage_times
from harness.plugin.cells import Cell
from harness.plugin.guest_sources import GuestSources
from harness.plugin.options import Options
from harness.plugin.worker_hosts import HeldHost, WorkerHosts
from harness.results.model import Boot, Stamp
from harness.xen.config import Disk, DomainConfig, Vif

log = logging.getLogger("fxh.worker")

Prepare = Callable[[Guest], Any]
"""Brings a booted guest into the initial state of several cases. The result goes through JSON to ``guest.prepared``."""


@dataclass(frozen=True)
class _WarmRequest:
    """The guest that a case wants from a warm checkpoint of its host."""

    cell: Cell
    held: HeldHost
    checkpoints: HostCheckpoints
    context: CaseContext
    shape: Shape
    prepare: Prepare | None


class GuestFactory:
    """Makes the guests of one worker."""

    def __init__(self, options: Options, sources: GuestSources, hosts: WorkerHosts) -> None:
        self._scale, self._sources, self._hosts = options.scale, sources, hosts

    def new(self, cell: Cell, host: XenHost, directory: Path, shape: Shape) -> Guest:
        """A guest without a domain. The host counts as used from here on."""
        self._hosts.mark_used(cell)
        source = self._sources.source_for(cell, shape)
        config = build_domain_config(host, source, shape, host.domain_name(source.label))
        return self._guest(cell, host, config, directory)

    def _guest(self, cell: Cell, host: XenHost, config: DomainConfig, directory: Path) -> Guest:
        # A shape with a bootloader has its kernel on a disk. The plain source still has the file.
        source = self._sources.source(cell)
        return Guest(host, source.os, config, directory, scale=self._scale, symbols=source.kernel_symbols)

    def booted(self, cell: Cell, context: CaseContext, shape: Shape, prepare: Prepare | None = None) -> Guest:
        """A guest with a shell, prepared by ``prepare``.

        On a host that can be restored it comes from a warm checkpoint, created at first use. Elsewhere it is booted. The
        context gets the guest before its boot, so a guest that does not come up is removed after the case like any other.
        """
        held = self._hosts.in_any_state(cell)
        if held.host.checkpoints is not None:
            guest, context.warm_boot = self._warm(_WarmRequest(cell, held, held.host.checkpoints, context, shape, prepare))
            context.use(held.host)
            context.guests.append(guest)
            return guest
        host = self._hosts.idle(cell)
        context.use(host)
        guest = self.new(cell, host, context.directory, shape)
        context.guests.append(guest)
        guest.boot()
        if prepare is not None:
            guest.prepared = prepare(guest)
        return guest

    def _warm(self, wanted: _WarmRequest) -> tuple[Guest, Boot]:
        """The guest, and the boot that its checkpoint was saved from."""
        cell, shape = wanted.cell, wanted.shape
        key = key_of(self._sources.source_for(cell, shape).key, repr(shape), _code_digest(wanted.prepare))
        label = f"{self._sources.source(cell).label} {shape.type}"
        saved = wanted.checkpoints.warm(key, lambda: self._boot_to_save(wanted, f"fxh-warm-{key}"), label)
        data = json.loads(saved.note)
        config = _config(data["config"])
        guest = self._guest(cell, wanted.held.host, config, wanted.context.directory)
        guest.prepared = data["prepared"]
        try:
            guest.adopt(int(data["domid"]))
        except TransportError:  # the console cannot be attached, and would not be in any later case
            saved.remove()
            raise
        return guest, Boot(config.name, tuple(Stamp(*stamp) for stamp in data["stages"]))

    def _boot_to_save(self, wanted: _WarmRequest, name: str) -> str:
        """Boot the guest of a new warm checkpoint as the domain ``name``. Returns the checkpoint's note: see :meth:`_warm`."""
        cell, context, shape, prepare, host = wanted.cell, wanted.context, wanted.shape, wanted.prepare, wanted.held.host
        self._hosts.reset(cell, wanted.held, private_memory=True)
        source = self._sources.source_for(cell, shape)
        config = build_domain_config(host, source, shape, name)
        guest = self._guest(cell, host, config, context.directory)
        context.use(host)
        context.prepared.append(guest)
        begun = time.monotonic()
        try:
            guest.boot()
            prepared = prepare(guest) if prepare is not None else None
        except BaseException:
            # The case fails with this guest, so it needs the evidence of it.
            context.prepared.remove(guest)
            context.guests.append(guest)
            raise
        guest.detach()
        log.info("%s booted in %.0f s for a warm checkpoint", source.label, time.monotonic() - begun)
        if wanted.checkpoints.keeps_translations:
            # Do once what each case does at its begin and end, so that the checkpoint has the translated code.
            Guest(host, source.os, config, context.directory, scale=self._scale).adopt(guest.domid).detach()
            host.inventory()
        return json.dumps({"config": asdict(config), "domid": guest.domid, "stages": stage_times(guest), "prepared": prepared})


def _code_digest(prepare: Prepare | None) -> str:
    """A hash of the code that makes a warm guest: a checkpoint made by other code is not used."""
    if prepare is None:
        return _guest_code()
    return key_of(_guest_code(), prepare.__module__, prepare.__qualname__, code_sha256([Path(inspect.getfile(prepare))]))


@functools.cache
def _guest_code() -> str:
    package = Path(__file__).parent.parent
    return code_sha256(path for name in ("console", "dom0", "guests", "xen") for path in sorted((package / name).rglob("*.py")))


def _config(data: dict[str, Any]) -> DomainConfig:
    """The configuration from its JSON object."""
    disks = tuple(Disk(**disk) for disk in data.pop("disks"))
    vifs = tuple(Vif(**vif) for vif in data.pop("vifs"))
    more = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in data.pop("more"))
    return DomainConfig(disks=disks, vifs=vifs, more=more, bootloader_args=tuple(data.pop("bootloader_args")), **data)
