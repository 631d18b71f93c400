# SPDX-License-Identifier: BSD-2-Clause
"""The guests under test: sources from the run's options, and the control guest."""

from __future__ import annotations

from functools import cached_property

from harness.guests import bootable
from harness.guests import source as sources
from harness.guests.shape import Shape
from harness.guests.source import GuestSource
from harness.images import diskread
from harness.images import image as images
from harness.images.image import Image
from harness.lab import factory
from harness.plugin.cells import Cell
from harness.plugin.options import Options


class GuestSources:
    """The sources of one run. Each is loaded at its first use and stays the same for the run."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._controls: dict[str, GuestSource] = {}

    @cached_property
    def image(self) -> Image | None:
        """The image of --image, or one made from --disk without --kernel.

        Raises UsageError if there is no such image, or if the disk holds no FreeBSD.
        """
        options = self._options
        if options.image:
            return images.find(options.image)
        if options.disk is not None and options.kernel is None:
            found = diskread.take(options.disk, options.root)
            if options.guests == ("freebsd",):
                diskread.check_types(found, options.types)
            return found
        return None

    @cached_property
    def freebsd(self) -> GuestSource | None:
        """The FreeBSD of --image, of --disk, or of --kernel with --disk. Raises UsageError if Xen cannot start it."""
        options = self._options
        if self.image is not None:
            root = options.root if options.image else ""
            return sources.from_image(self.image, bootloader=options.bootloader, root=root)
        if options.kernel is None or options.disk is None:
            return None
        return sources.freebsd(options.kernel, options.disk, root=options.root)

    def source(self, cell: Cell) -> GuestSource:
        """The source of the cell's guest."""
        if cell.guest == "freebsd" and self.freebsd is not None:
            return self.freebsd
        xen = cell.xen or self._options.xens[0]
        if xen not in self._controls:
            # Do this once in a run: an edit of the recipe during a run must affect only the next run.
            directory = self._options.control or factory.control(self._options.wish(xen))
            self._controls[xen] = sources.control(directory)
        return self._controls[xen]

    def source_for(self, cell: Cell, shape: Shape) -> GuestSource:
        """The source in this shape: for a bootloader, the kernel is on a disk."""
        source = self.source(cell)
        return bootable.source(source) if shape.bootloader else source
