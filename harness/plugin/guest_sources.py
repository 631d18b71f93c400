# SPDX-License-Identifier: BSD-2-Clause
"""The guests under test: sources from the run's options, and the control guest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from harness.errors import UsageError
from harness.guests import bootable, registry
from harness.guests.os.definition import SourceRequest
from harness.guests.shape import Shape
from harness.guests.source import GuestSource
from harness.images import diskimage
from harness.images import image as images
from harness.images.image import Image
from harness.lab import factory
from harness.plugin.cells import Cell
from harness.plugin.options import Options


class GuestSources:
    """The sources of one run. Each is loaded at its first use and stays the same for the run."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sources: dict[tuple[str, str], GuestSource] = {}
        """By guest and Xen version. The version is "" for a guest under test."""
        self._standbys: dict[tuple[str, str], GuestSource] = {}
        """Control guests with dom0's kernel, until their own kernel is built."""
        self._on_standby = False

    @cached_property
    def image(self) -> Image | None:
        """The image of --image, or one made from --disk without --kernel.

        Raises UsageError if there is no such image, or if the disk holds no known system.
        """
        options = self._options
        if options.image:
            return images.find(options.image)
        if options.disk is not None and options.kernel is None:
            found = diskimage.read_image(options.disk, options.root)
            if registry.under_test(options.guests) == options.guests:
                diskimage.check_types(found, options.types)
            return found
        return None

    @cached_property
    def tested(self) -> GuestSource | None:
        """The guest of --image, of --disk, or of --kernel with --disk. Raises UsageError if Xen cannot start it."""
        names = registry.under_test(self._options.guests) or registry.default(files_given=True)
        return self._find_tested(names[0])

    def begin_case(self, cell: Cell, *, any_kernel: bool) -> GuestSource | None:
        """Choose the kernel of the control guest for the case that begins, and start its build if it is missing.

        A case marked with ``any_kernel`` does not wait for that build: it runs with dom0's kernel. Returns the source with that
        kernel once, when no further case needs it. Raises UsageError.
        """
        key = cell.guest, cell.xen
        self._on_standby = False
        if cell.under_test or not may_wait(self._options):
            return None
        spec = self._options.lab_spec(cell.xen)
        if key in self._sources or factory.control_available(spec):
            return self._standbys.pop(key, None)
        factory.begin(spec, control=True)
        self._on_standby = any_kernel
        if any_kernel and key not in self._standbys:
            definition = registry.definition(cell.guest)
            found = definition.find(SourceRequest(control=lambda: factory.control_with_dom0_kernel(spec)))
            if found is None:
                raise UsageError(f"--guest {cell.guest}: no files were given", hint=definition.option)
            self._standbys[key] = replace(found, symbols=self._options.symbols)
        return None

    def source(self, cell: Cell) -> GuestSource:
        """The source of the cell's guest. Raises UsageError if the options do not give its files."""
        if self._on_standby and (cell.guest, cell.xen) in self._standbys:
            return self._standbys[cell.guest, cell.xen]
        xen = "" if cell.under_test else cell.xen or self._options.xens[0]
        if (cell.guest, xen) not in self._sources:
            # Do this once in a run: an edit of the control guest's recipe during a run must affect only the next run.
            found = self._find_tested(cell.guest) if cell.under_test else self._find_control(cell.guest, xen)
            if found is None:
                raise UsageError(f"--guest {cell.guest}: no files were given", hint=registry.definition(cell.guest).option)
            self._sources[cell.guest, xen] = replace(found, symbols=self._options.symbols)
        return self._sources[cell.guest, xen]

    def of_system(self, title: str) -> Iterator[GuestSource]:
        """The sources of the run's guests whose OS is ``title``: FreeBSD, Linux. Raises UsageError."""
        for guest in self._options.guests:
            definition = registry.definition(guest)
            if definition.os.title != title:
                continue
            if registry.under_test((guest,)):
                yield from filter(None, [self._find_tested(guest)])
            else:
                yield from filter(None, [self._find_control(guest, xen) for xen in self._options.xens])

    def source_for(self, cell: Cell, shape: Shape) -> GuestSource:
        """The source in this shape: for a bootloader, the kernel is on a disk."""
        source = self.source(cell)
        return bootable.source(source) if shape.bootloader else source

    def _find_tested(self, guest: str) -> GuestSource | None:
        options = self._options
        root = options.root if options.image or self.image is None else ""
        request = SourceRequest(self.image, options.kernel, options.disk, root, options.bootloader)
        return registry.definition(guest).find(request)

    def _find_control(self, guest: str, xen: str) -> GuestSource | None:
        request = SourceRequest(control=lambda: self._options.control or factory.control(self._options.lab_spec(xen)))
        return registry.definition(guest).find(request)


def may_wait(options: Options) -> bool:
    """Whether cases of the control guest use a kernel that the harness builds, and dom0's kernel can replace it meanwhile."""
    return not options.control and not options.host and options.dom0_kernel is None


def waits(options: Options) -> bool:
    """Whether a run has cases of a control guest whose kernel is not built yet. Raises UsageError."""
    available = (factory.control_available(options.lab_spec(xen)) for xen in options.xens)
    return _has_control(options) and may_wait(options) and not all(available)


def begin_builds(options: Options) -> None:
    """Start the missing builds of the run's labs. Raises UsageError."""
    if options.host:
        return
    for xen in options.xens:
        factory.begin(options.lab_spec(xen), control=_has_control(options) and not options.control)


def _has_control(options: Options) -> bool:
    return any(not registry.definition(name).under_test for name in options.guests)
