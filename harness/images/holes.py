# SPDX-License-Identifier: BSD-2-Clause
"""Makes holes in the files of a UFS, as ``cp --sparse=always`` does, because makefs writes every block.

Sources: sys/ufs/ufs/dinode.h (block numbers of an inode; 0 is a hole), sys/ufs/ffs/fs.h.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from harness.images import ufs, window
from harness.images.ufs import Superblock

_DIRECT, _LEVELS = 12, 3
# Fills blocks that become unused, so that a reader that follows an old or wrong number does not read zeros.
_NOISE = bytes(range(1, 256))
# The boot area, which a reader gets if it takes the number 0 for a block.
_BOOT_AREA = 8192


def punch(volume: Path) -> int:
    """Replace the blocks of regular files that are all zeros by holes; returns their number. Keeps the last block of a file.

    The freed blocks stay marked as used; readers ignore this, and fsck repairs it. The freed blocks and the boot area get bytes
    other than zero.
    """
    with window.opened(volume) as whole:
        fs = ufs.superblock(whole)
    if fs is None:
        return 0
    with volume.open("r+b") as file:
        puncher = _Puncher(file.fileno(), fs)
        size = 128 * fs.version
        for begin in fs.tables:
            table = os.pread(file.fileno(), fs.ipg * size, begin)
            for at in range(0, len(table), size):
                if stat.S_ISREG(int.from_bytes(table[at : at + 2], "little")):
                    puncher.file(begin + at, table[at : at + size])
        if puncher.count and not any(os.pread(file.fileno(), _BOOT_AREA, 0)):
            os.pwrite(file.fileno(), _noise(_BOOT_AREA), 0)
    return puncher.count


def _noise(size: int) -> bytes:
    return (_NOISE * (size // len(_NOISE) + 1))[:size]


class _Puncher:
    """``count`` is the number of blocks that became holes, without indirect ones."""

    def __init__(self, descriptor: int, fs: Superblock) -> None:
        self.descriptor, self.fs, self.count = descriptor, fs, 0
        self._word = struct.Struct("<i" if fs.version == 1 else "<q")
        self._freed = 0

    def file(self, at: int, inode: bytes) -> None:
        """Punch holes into the file whose ``inode`` is at the byte ``at`` of the volume."""
        size_at, blocks, numbers = (8, (104, "<I"), 40) if self.fs.version == 1 else (16, (24, "<Q"), 112)
        size = int.from_bytes(inode[size_at : size_at + 8], "little")
        last, self._freed = max(0, -(-size // self.fs.bsize) - 1), 0
        first, each = 0, self.fs.bsize // self._word.size
        for slot in range(_DIRECT + _LEVELS):
            level = max(0, slot - _DIRECT + 1)
            self._punch(at + numbers + slot * self._word.size, level, first, last)
            first += each**level
        if self._freed:
            place, form = blocks
            (held,) = struct.unpack_from(form, inode, place)
            os.pwrite(self.descriptor, struct.pack(form, held - self._freed * (self.fs.bsize // 512)), at + place)

    def _punch(self, slot: int, level: int, first: int, last: int) -> bool:
        """Whether the block number at the byte ``slot`` is a hole now; ``first`` is the first block of the file below it."""
        (fragment,) = self._word.unpack(os.pread(self.descriptor, self._word.size, slot))
        if not fragment:
            return True
        if first >= last:
            return False
        at, each = fragment * self.fs.fsize, self.fs.bsize // self._word.size
        if level:
            span = each ** (level - 1)
            below = [self._punch(at + n * self._word.size, level - 1, first + n * span, last) for n in range(each)]
            if not all(below):
                return False
        elif any(os.pread(self.descriptor, self.fs.bsize, at)):
            return False
        else:
            self.count += 1
        os.pwrite(self.descriptor, _noise(self.fs.bsize), at)
        os.pwrite(self.descriptor, self._word.pack(0), slot)
        self._freed += 1
        return True
