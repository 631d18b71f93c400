# SPDX-License-Identifier: BSD-2-Clause
"""Identifies the content of a partition: a file system, a vdev of a ZFS pool, encrypted data, or another format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from harness.images import ufs, zfslabel
from harness.images.parttable import Partition
from harness.images.tables import SECTOR
from harness.images.ufs import Superblock
from harness.images.window import Window
from harness.images.zfslabel import Pool

# sys/geom/eli/g_eli.h: the metadata is in the provider's last sector.
_GELI = b"GEOM::ELI"
# Formats by (offset, magic), which are only named in messages.
_OTHERS = (
    (1080, b"\x53\xef", "ext2/3/4"), (0, b"XFSB", "XFS"), (65600, b"_BHRfS_M", "Btrfs"), (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (536, b"LVM2 001", "LVM"), (3, b"NTFS    ", "NTFS"), (32769, b"CD001", "ISO 9660"), (54, b"FAT", "FAT"), (82, b"FAT32", "FAT"),
)  # fmt: skip


class Files(Protocol):
    """The files of one file system, read without mounting it. All raise BadFileSystem."""

    def read(self, path: str, largest: int) -> bytes: ...

    def blocks(self, path: str, largest: int) -> Iterator[bytes]: ...

    def names(self, path: str) -> tuple[str, ...]: ...

    def exists(self, path: str) -> bool: ...


@dataclass(frozen=True)
class Volume:
    """``kind`` is ``ufs1``, ``ufs2``, ``zfs``, ``geli``, another format's name, or ""."""

    part: Partition
    window: Window
    kind: str
    fs: Superblock | None = None
    pool: Pool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its names below /dev in FreeBSD: of the partition, the GPT label, the UFS label."""
        labels = [f"gpt/{self.part.label}"] if self.part.label else []
        labels += [f"ufs/{self.fs.label}"] if self.fs and self.fs.label else []
        return (self.part.name, *labels)

    @property
    def described(self) -> str:
        """A short description for messages: ``xbd0p4 (freebsd-ufs, ufs2)``."""
        words = [word for word in (self.part.type, self.kind) if word]
        return f"{self.part.name} ({', '.join(words) or 'nothing known'})"


def inspect(disk: Window, part: Partition) -> Volume:
    """Identify the content of the partition ``part`` of ``disk``. Reads a few KiB."""
    window = disk.part(part.start, part.size)
    fs = ufs.superblock(window)
    if fs is not None:
        return Volume(part, window, f"ufs{fs.version}", fs=fs)
    if window.read((window.size // SECTOR - 1) * SECTOR, len(_GELI)) == _GELI:
        return Volume(part, window, "geli")
    pool = zfslabel.read(window)
    if pool is not None:
        return Volume(part, window, "zfs", pool=pool)
    kind = next((name for at, magic, name in _OTHERS if window.read(at, len(magic)) == magic), "")
    if not kind and ufs.has_magic(window):
        kind = "UFS with a damaged superblock"
    return Volume(part, window, kind)
