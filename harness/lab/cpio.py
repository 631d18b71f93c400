# SPDX-License-Identifier: BSD-2-Clause
"""Write an initramfs: the "newc" cpio format of Linux's Documentation/driver-api/early-userspace/buffer-format.rst."""

from __future__ import annotations

import stat
from collections.abc import Mapping

LINK = stat.S_IFLNK | 0o777
# Permission bits, content.
File = tuple[int, bytes]


def _entry(index: int, name: str, mode: int, data: bytes, rdev: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    fields = (index, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return _pad(header) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def archive(files: Mapping[str, File]) -> bytes:
    """The archive of ``files``, which maps paths without a leading slash to files. Directories are added.

    A file with the mode :data:`LINK` is a symbolic link, and its content is the target. ``/dev/console`` and ``/dev/null`` are
    always added: the kernel opens the first one before init runs.
    """
    out = [
        _entry(1, "dev", stat.S_IFDIR | 0o755, b""),
        _entry(2, "dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        _entry(3, "dev/null", stat.S_IFCHR | 0o666, b"", (1, 3)),
    ]
    made = {"dev"}
    for name in sorted(files):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            if directory not in made:
                made.add(directory)
                out.append(_entry(len(out) + 1, directory, stat.S_IFDIR | 0o755, b""))
        bits, data = files[name]
        out.append(_entry(len(out) + 1, name, bits if bits == LINK else stat.S_IFREG | bits, data))
    return b"".join(out) + _entry(0, "TRAILER!!!", 0, b"")
