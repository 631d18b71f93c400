# SPDX-License-Identifier: BSD-2-Clause
"""The guests under test: sources from the run's options, and the control guest."""

from __future__ import annotations

from functools import cached_property

from harness.guests import bootable, registry
from harness.guests.os.base import SourceRequest
from harness.guests.os.linux import from_directory
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

        Raises UsageError if there is no such image, or if the disk holds no known system.
        """
        options = self._options
        if options.image:
            return images.find(options.image)
        if options.disk is not None and options.kernel is None:
            found = diskread.take(options.disk, options.root)
            if registry.under_test(options.guests) == options.guests:
                diskread.check_types(found, options.types)
            return found
        return None

    @cached_property
    def tested(self) -> GuestSource | None:
        """The guest of --image, of --disk, or of --kernel with --disk. Raises UsageError if Xen cannot start it."""
        options = self._options
        root = options.root if options.image or self.image is None else ""
        request = SourceRequest(self.image, options.kernel, options.disk, root, options.bootloader)
        guests = registry.under_test(options.guests) or registry.default(files_given=True)
        return registry.definition(guests[0]).find(request)

    def source(self, cell: Cell) -> GuestSource:
        """The source of the cell's guest."""
        if cell.under_test and self.tested is not None:
            return self.tested
        xen = cell.xen or self._options.xens[0]
        if xen not in self._controls:
            # Do this once in a run: an edit of the recipe during a run must affect only the next run.
            directory = self._options.control or factory.control(self._options.wish(xen))
            self._controls[xen] = from_directory(directory)
        return self._controls[xen]

    def source_for(self, cell: Cell, shape: Shape) -> GuestSource:
        """The source in this shape: for a bootloader, the kernel is on a disk."""
        source = self.source(cell)
        return bootable.source(source) if shape.bootloader else source
