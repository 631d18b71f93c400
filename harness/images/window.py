# SPDX-License-Identifier: BSD-2-Clause
"""A read-only view of a byte range of a disk image: a whole disk, or one partition of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError


class Readable(Protocol):
    """The bytes of a disk, or of a part of one."""

    @property
    def size(self) -> int: ...

    def read(self, at: int, size: int) -> bytes:
        """As :meth:`Window.read`."""
        ...

    def part(self, start: int, size: int) -> Readable:
        """As :meth:`Window.part`."""
        ...


@dataclass(frozen=True)
class Window:
    """``size`` bytes of the open file ``descriptor``, starting at the byte ``start``."""

    descriptor: int
    start: int
    size: int

    def read(self, at: int, size: int) -> bytes:
        """Up to ``size`` bytes at the offset ``at``: fewer or none at the end of the window or of the image."""
        if at < 0 or at >= self.size or size <= 0:
            return b""
        size, found = min(size, self.size - at), b""
        while len(found) < size:
            block = os.pread(self.descriptor, size - len(found), self.start + at + len(found))
            if not block:
                break
            found += block
        return found

    def part(self, start: int, size: int) -> Window:
        """The part of this window that begins at ``start``, shortened to the end of the window."""
        start = min(max(start, 0), self.size)
        return Window(self.descriptor, self.start + start, max(0, min(size, self.size - start)))


@contextmanager
def opened(path: Path) -> Iterator[Window]:
    """Open the file ``path`` for reading only and yield all of it. Raises UsageError if it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a disk image that can be read") from exc
    try:
        yield Window(descriptor, 0, os.lseek(descriptor, 0, os.SEEK_END))
    finally:
        os.close(descriptor)
