# SPDX-License-Identifier: BSD-2-Clause
"""What a worker works with: hosts, and guests on them, put back to a known state for every case."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import preparing
from harness.console.reader import ConsoleReader
from harness.digest import known_sha256
from harness.errors import DeadlineExpired, HarnessError, InfrastructureError, LabDead, TransportError, UsageError
from harness.guests import bootable, registry
from harness.guests.configure import configure
from harness.guests.guest import Guest
from harness.guests.os.base import SourceRequest
from harness.guests.shape import Shape
from harness.guests.source import GuestSource
from harness.hosts.host import DirectHost, XenHost
from harness.hosts.inventory import Inventory, Item
from harness.images import diskread
from harness.images import image as images
from harness.images.image import Image
from harness.lab import checkpoint, factory, prune
from harness.lab.host import LabHost, key_of
from harness.plugin import hold_guest as keeping
from harness.plugin.cells import Cell
from harness.plugin.host_provider import HostProvider
from harness.plugin.options import Options
from harness.results.model import Boot, Stamp
from harness.xen.config import Disk, DomainConfig, Vif
from harness.xen.firmware import UEFI

log = logging.getLogger("fxh.rig")

Prepare = Callable[[Guest], Any]
"""Brings a booted guest to where several cases begin; what it returns goes through JSON to ``guest.prepared``."""


@dataclass
class CaseContext:
    """What a case did: collected for its result."""

    directory: Path
    cell: Cell | None = None
    host: XenHost | None = None
    guests: list[Guest] = field(default_factory=list)
    warm_boot: Boot | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    undo: list[Callable[[], object]] = field(default_factory=list)
    """What to give back on a real host once the guests are gone, last first; a lab is put back as a whole."""
    given: list[str] = field(default_factory=list)
    """Parts of names of things in dom0 that the harness made for the case: on a lab they are no leaks."""
    kept: str = ""
    """How to attach to its guests, which are left as they are."""

    @property
    def consoles(self) -> list[ConsoleReader]:
        return [guest.console for guest in self.guests if guest.domid >= 0]


class Rig:
    """Belongs to one worker. Hosts are acquired when first asked for, and replaced when they are lost."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.run_id = secrets.token_hex(3)
        self._hosts: dict[str, DirectHost] = {}
        self._before: dict[str, Inventory] = {}
        self._resting: dict[str, str] = {}
        """The checkpoint that a lab is at, unchanged since; :meth:`host` alone puts one there."""
        self._sources: dict[tuple[str, str], GuestSource] = {}
        """By guest and Xen version, "" for a guest whose files were given."""
        self._silent: dict[str, HarnessError] = {}
        """Why hosts do not answer that are still to be dropped."""
        self._kept = 0
        self._lender = HostProvider(options, lambda: self._lab(options.xens[0]))

    # -- what is tested -----------------------------------------------------------------------------------------------

    @cached_property
    def image(self) -> Image | None:
        """The image given by --image, or made of --disk alone. Raises UsageError for none of that name, or a disk without FreeBSD."""
        if self.options.image:
            return images.find(self.options.image)
        if self.options.disk is not None and self.options.kernel is None:
            found = diskread.read_image(self.options.disk, self.options.root)
            if registry.under_test(self.options.guests) == self.options.guests:
                diskread.check_types(found, self.options.types)
            return found
        return None

    @cached_property
    def tested(self) -> GuestSource | None:
        """The guest given by --image, by --disk, or by both --kernel and --disk. Raises UsageError when Xen cannot start it."""
        names = registry.under_test(self.options.guests) or registry.default(files_given=True)
        return self._find_tested(names[0])

    def _find_tested(self, guest: str) -> GuestSource | None:
        options = self.options
        root = options.root if options.image or self.image is None else ""
        request = SourceRequest(self.image, options.kernel, options.disk, root, options.bootloader)
        return registry.definition(guest).find(request)

    def source(self, cell: Cell) -> GuestSource:
        """What the cell's guest boots. It is found once in a run: a recipe that is edited meanwhile is the next run's."""
        xen = "" if cell.under_test else cell.xen or self.options.xens[0]
        if (cell.guest, xen) not in self._sources:
            if cell.under_test:
                found = self._find_tested(cell.guest)
            else:
                control = self.options.control
                request = SourceRequest(control=lambda: control or factory.control(self.options.wish(xen)))
                found = registry.definition(cell.guest).find(request)
            if found is None:
                raise UsageError(f"--guest {cell.guest}: no files were given", hint=registry.definition(cell.guest).option)
            self._sources[cell.guest, xen] = found
        return self._sources[cell.guest, xen]

    def source_for(self, cell: Cell, shape: Shape) -> GuestSource:
        """What is booted in this shape: where a bootloader shall find the kernel, it is on a disk."""
        source = self.source(cell)
        return bootable.source(source) if shape.bootloader else source

    # -- hosts --------------------------------------------------------------------------------------------------------

    def host(self, cell: Cell) -> DirectHost:
        """The cell's host, at rest: a lab that was used is put back to where dom0 has the cell's guest's files."""
        if self._lender.wanted(self._hosts.get(cell.host)):
            self._drop(cell.host)
        host = self._hosts.get(cell.host)
        if isinstance(host, LabHost) and host.lab.dead:
            log.warning("lab %s is lost (%s): the next case gets a fresh one", host.lab.name, host.lab.dead)
            self._drop(cell.host)
            host = None
        if host is None:
            host = self._acquire(cell)
        if isinstance(host, LabHost):
            name, files = self._rest(cell, host)
            if self._resting.get(cell.host) != name:
                self._put_to_rest(host, name, files)
                self._resting[cell.host] = name
        if cell.host not in self._before:
            self._before[cell.host] = host.inventory()
        return host

    def used(self, cell: Cell) -> None:
        """The cell's host is no longer as it was put back: a case has made something there, a guest or a disk."""
        self._resting.pop(cell.host, None)

    def _rest(self, cell: Cell, host: LabHost) -> tuple[str, list[Path]]:
        """The checkpoint with dom0 at rest that has the files of the cell's guest already, and these files.

        Bringing the control guest's takes two to four seconds under emulation, before every boot.
        """
        files = [file for file in self.source(cell).loaded(host.facts.emulated) if file is not None]
        if cell.firmware == UEFI:
            files.append(host.own_ovmf)
        return f"{checkpoint.REST}{key_of(*map(known_sha256, files))}", files

    def _put_to_rest(self, host: LabHost, name: str, files: Sequence[Path], *, private_memory: bool = False) -> None:
        def make() -> str:
            host.rest(private_memory=True)
            host.files(*files)
            host.transport.run(["rm", "-r", host.directory])
            return "dom0 at rest, with the files of a guest"

        if files:
            host.restore_or_create(name, make, private_memory=private_memory)
        else:
            host.rest(private_memory=private_memory)

    def _acquire(self, cell: Cell) -> DirectHost:
        if self.options.host:
            with preparing.step(f"a share of {cell.host}"):
                host = self._lender.acquire(self.source(cell))
        else:
            host = self._lab(cell.xen)
        self._hosts[cell.host] = host
        return host

    def _lab(self, xen: str) -> LabHost:
        lab = factory.make(self.options.wish(xen))
        lab.up()
        return LabHost(lab, run_id=self.run_id)

    def lost(self, cell: Cell) -> str:
        """Why the cell's host is lost, or "". A lost one is dropped, and the next case gets another."""
        host = self._hosts.get(cell.host)
        error = self.check(cell)
        if host is None or error is None:
            return ""
        self._lender.lost(host, error.message)
        self._drop(cell.host)
        return error.message

    def _drop(self, name: str) -> None:
        host = self._hosts.pop(name, None)
        self._before.pop(name, None)
        self._resting.pop(name, None)
        self._silent.pop(name, None)
        if host is not None:
            host.close()

    def close(self) -> None:
        for name in list(self._hosts):
            self._drop(name)

    # -- guests -------------------------------------------------------------------------------------------------------

    def new_guest(self, cell: Cell, host: XenHost, directory: Path, shape: Shape) -> Guest:
        """A guest that is not created yet. The host counts as used from here on."""
        self.used(cell)
        source = self.source_for(cell, shape)
        config = configure(host, source, shape, host.domain_name(source.label))
        return Guest(host, source.profile, config, directory, scale=self.options.scale, kernel=source.kernel)

    def booted_guest(self, cell: Cell, context: CaseContext, shape: Shape, prepare: Prepare | None = None) -> Guest:
        """A guest with a shell, prepared: restored from a warm checkpoint on a lab (made at first use), booted elsewhere.

        The context has it from before its boot: one that does not come up is removed after the case like any other.
        """
        directory = context.directory
        if not self.options.host:
            name = f"{checkpoint.WARM}{key_of(self.source_for(cell, shape).key, repr(shape), _written(prepare))}"
            host = self._hosts.get(cell.host)
            if not isinstance(host, LabHost) or host.lab.dead:
                host = self.host(cell)
            if isinstance(host, LabHost):
                guest, context.warm_boot = self._warm_guest(cell, host, name, directory, shape, prepare)
                context.host = host
                context.guests.append(guest)
                return guest
        context.host = self.host(cell)
        guest = self.new_guest(cell, context.host, directory, shape)
        context.guests.append(guest)
        guest.boot()
        if prepare is not None:
            guest.prepared = prepare(guest)
        return guest

    def _warm_guest(
        self, cell: Cell, host: LabHost, name: str, directory: Path, shape: Shape, prepare: Prepare | None
    ) -> tuple[Guest, Boot | None]:
        self.used(cell)
        # Not alone: where the kernel comes up nowhere, workers would wait for each other's boots, one after the other.
        what = f"{self.source(cell).label} {shape.type}"
        made = host.restore_or_create(
            name, lambda: self._boot_warm(cell, host, name, directory, shape, prepare), alone=False, what=what
        )
        data = json.loads(made.note)
        config = _config(data["config"])
        source = self.source(cell)
        guest = Guest(host, source.profile, config, directory, scale=self.options.scale, kernel=source.kernel)
        guest.prepared = data["prepared"]
        try:
            guest.adopt(int(data["domid"]))
        except TransportError:  # its console cannot be had: so would every later case begin
            checkpoint.remove(made.directory)
            raise
        boot = Boot(config.name, tuple(Stamp(*stamp) for stamp in data["stages"]))
        return guest, boot

    def _boot_warm(self, cell: Cell, host: LabHost, name: str, directory: Path, shape: Shape, prepare: Prepare | None) -> str:
        """Boot what is to be kept as a checkpoint; returns its note."""
        self._put_to_rest(host, *self._rest(cell, host), private_memory=True)
        if cell.host not in self._before:
            self._before[cell.host] = host.inventory()
        source = self.source_for(cell, shape)
        config = configure(host, source, shape, f"fxh-{name}")
        guest = Guest(host, source.profile, config, directory, scale=self.options.scale, kernel=source.kernel)
        begun = time.monotonic()
        try:
            guest.boot()
            prepared = prepare(guest) if prepare is not None else None
        finally:
            guest.detach()
        log.info("%s booted in %.0f s; kept as a checkpoint", source.label, time.monotonic() - begun)
        if host.lab.hot is not None:
            # What each case begins and ends with, once: it is kept as translated.
            Guest(host, source.profile, config, directory, scale=self.options.scale).adopt(guest.domid).detach()
            host.inventory()
        prune.bound()
        return json.dumps({"config": asdict(config), "domid": guest.domid, "stages": stamps(guest), "prepared": prepared})

    # -- after a case -------------------------------------------------------------------------------------------------

    def leaks(self, cell: Cell, given: Sequence[str] = ()) -> tuple[Item, ...]:
        """What the case left in dom0 beyond its guests and, on a lab, what was ``given`` to it.

        What is on its way out is given a moment; what stays is told once, not after each case that follows.
        """
        host, before = self._hosts.get(cell.host), self._before.get(cell.host)
        if host is None or before is None:
            return ()
        found: tuple[Item, ...] = ()
        for pause in (0.0, 0.5, 2.0):
            time.sleep(pause)
            try:
                now = host.inventory()
                found = now.leaks_since(before)
            except (LabDead, TransportError) as exc:  # whoever needs the host next is told, and what ran there was judged
                log.warning("%s: not looked for leaks: %s", cell, exc.message)
                return ()
            if isinstance(host, LabHost):
                found = tuple(item for item in found if not any(part in item.name for part in given))
            if not found:
                break
        else:
            if not isinstance(host, LabHost):
                self._before[cell.host] = now
        return found

    def keep(self, cell: Cell, context: CaseContext) -> None:
        """Leave the guests of a failed case for somebody to look at; the next case gets another share or another lab."""
        host = self._hosts.get(cell.host)
        if self.options.keep != "failed" or host is None or not context.guests or context.kept:
            return
        if self._kept >= keeping.MOST:
            log.warning("this worker keeps %d guests already: no more", self._kept)
            return
        context.kept = keeping.keep(host, context.guests, self.options.keep_minutes)
        if context.kept:
            self._kept += 1
            self._drop(cell.host)

    def clean(self, guests: list[Guest], undo: Sequence[Callable[[], object]] = ()) -> None:
        """Remove a case's guests, and then what was made for them. On a lab all goes when it is put back for the next case."""
        for guest in guests:
            if isinstance(guest.host, LabHost):
                guest.abandon()
            else:
                try:
                    guest.destroy()
                except InfrastructureError as exc:
                    log.error("could not remove %s: %s", guest.name, exc)
                for disk in guest.disks:
                    guest.host.drop_disk(disk.target)
                guest.host.forget(guest.name)
        if not self.options.host:
            return
        for step in reversed(undo):
            try:
                step()
            except InfrastructureError as exc:
                log.error("could not tidy up: %s", exc)

    def check(self, cell: Cell) -> HarnessError | None:
        """Why the cell's host is not well, or None."""
        host = self._hosts.get(cell.host)
        if host is None:
            return None
        if cell.host in self._silent:
            return self._silent[cell.host]
        try:
            host.check()
        except InfrastructureError as exc:
            if isinstance(exc, (TransportError, DeadlineExpired)) and not isinstance(host, LabHost):
                # It does not answer: without this all that is still to be asked of it would wait out its time, too.
                self._silent[cell.host] = exc
                host.transport.close()
            return exc
        return None


def stamps(guest: Guest) -> tuple[tuple[str, float], ...]:
    """The stages of its present boot, with seconds since it was unpaused."""
    return tuple((reached.name, round(reached.at - guest.unpaused, 3)) for reached in guest.console.stages)


def _written(prepare: Prepare | None) -> str:
    """Changes with all that makes a warm guest what it is: a checkpoint made by other code is not taken."""
    digest = hashlib.sha256(_guests_code())
    if prepare is not None:
        digest.update(f"{prepare.__module__}.{prepare.__qualname__}\n".encode())
        digest.update(Path(inspect.getfile(prepare)).read_bytes())
    return digest.hexdigest()


@functools.cache
def _guests_code() -> bytes:
    package = Path(__file__).parent.parent
    return b"".join(path.read_bytes() for name in ("console", "guests", "xen") for path in sorted((package / name).rglob("*.py")))


def _config(data: dict[str, Any]) -> DomainConfig:
    """A configuration that went through JSON."""
    disks = tuple(Disk(**disk) for disk in data.pop("disks"))
    vifs = tuple(Vif(**vif) for vif in data.pop("vifs"))
    more = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in data.pop("more"))
    return DomainConfig(disks=disks, vifs=vifs, more=more, bootloader_args=tuple(data.pop("bootloader_args")), **data)
