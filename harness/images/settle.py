# SPDX-License-Identifier: BSD-2-Clause
"""Sets fixed times and a reproducible ID in a new file system, so that the same inputs give the same image.

Debian's makefs keeps times of files that are older than the given one; mke2fs up to 1.47.0 copies times and owners of the host's
files. Sources: sys/ufs/ffs/fs.h and sys/ufs/ufs/dinode.h (UFS); the kernel's Documentation/filesystems/ext4 (ext2).
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

from harness.errors import BuildError
from harness.images import ufs, window

# struct fs: fs_sblkno, fs_id[1], fs_metackhash, fs_magic.
_SBLKNO, _ID, _CHECK_HASHES, _MAGIC = 8, 148, 1308, 1372
_SUPERBLOCK = 1376
# Inodes by version of UFS: size; times as (offset, format): atime, mtime, ctime, and birth (UFS2), with their nanoseconds.
_UFS_INODES = {1: (128, ((16, "<6i"),)), 2: (256, ((32, "<4q"), (64, "<4i")))}
# The superblock of an ext2: offset, size, and the smallest block (bytes).
_EXT2 = 1024


def identity(seed: str) -> int:
    """A number for fs_id[1], which newfs chooses at random: 31 bits, not 0."""
    return uuid.uuid5(uuid.NAMESPACE_OID, seed).int % 0x7FFFFFFF + 1


def ufs_volume(path: Path, identity: int, moment: int) -> None:
    """Set all times of the UFS in ``path`` to ``moment`` (seconds since 1970), and the second half of its ufsid to ``identity``.

    fs_id[0] is the creation time, which makefs has set. Raises BuildError for an unknown format.
    """
    with window.opened(path) as whole:
        fs = ufs.superblock(whole)
        head = whole.read(fs.place, _SUPERBLOCK) if fs else b""
    if fs is None or struct.unpack_from("<I", head, _CHECK_HASHES)[0]:
        raise BuildError(f"{path.name}: not a UFS in makefs's known format", hint="report it with the version of the tree")
    with path.open("r+b") as file:
        descriptor = file.fileno()
        (copy,) = struct.unpack_from("<i", head, _SBLKNO)
        for place in (fs.place, *((fs.group(number) + copy) * fs.fsize for number in range(fs.ncg))):
            if os.pread(descriptor, 4, place + _MAGIC) == head[_MAGIC:_SUPERBLOCK]:
                os.pwrite(descriptor, struct.pack("<i", identity), place + _ID)
        size, times = _UFS_INODES[fs.version]
        for table in fs.tables:
            _change_inodes(descriptor, table, fs.ipg, size, lambda inode: _set_times(inode, times, moment))


def _set_times(inode: bytearray, times: tuple[tuple[int, str], ...], moment: int) -> None:
    for at, form in times:
        # UFS1 alternates seconds and nanoseconds; UFS2 has all seconds first.
        values = (moment, 0) * 3 if form == "<6i" else (moment,) * 4 if form == "<4q" else (0,) * 4
        struct.pack_into(form, inode, at, *values)


def _change_inodes(descriptor: int, at: int, count: int, size: int, change: Callable[[bytearray], None]) -> None:
    """Apply ``change`` to each used inode of a table. Neither reads nor fills holes: a large file system has gigabytes of inodes."""
    end, where = at + count * size, at
    while where < end:
        try:
            begin = os.lseek(descriptor, where, os.SEEK_DATA)
        except OSError:  # only a hole follows
            return
        if begin >= end:
            return
        where = min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
        first = begin - (begin - at) % size
        table = os.pread(descriptor, where - first, first)
        for place in range(0, len(table) - size + 1, size):
            if table[place] or table[place + 1]:  # its mode
                inode = bytearray(table[place : place + size])
                change(inode)
                os.pwrite(descriptor, inode, first + place)


def ext2_volume(path: Path, moment: int) -> None:
    """Set all times of the ext2 in ``path`` to ``moment`` (seconds since 1970), and all owners to root."""
    with path.open("r+b") as file:
        descriptor = file.fileno()
        head = os.pread(descriptor, _EXT2, _EXT2)
        inodes, first, log, per_group = (struct.unpack_from("<I", head, at)[0] for at in (0, 20, 24, 40))
        (size,) = struct.unpack_from("<H", head, 88)
        block = _EXT2 << log
        groups = os.pread(descriptor, -(-inodes // per_group) * 32, (first + 1) * block)
        for group in range(-(-inodes // per_group)):
            (table,) = struct.unpack_from("<I", groups, group * 32 + 8)
            _change_inodes(descriptor, table * block, per_group, size, lambda inode: _reset_ext2_inode(inode, moment))


def _reset_ext2_inode(inode: bytearray, moment: int) -> None:
    struct.pack_into("<H", inode, 2, 0)  # i_uid
    struct.pack_into("<3I", inode, 8, moment, moment, moment)  # i_atime, i_ctime, i_mtime
    struct.pack_into("<H", inode, 24, 0)  # i_gid
    struct.pack_into("<2H", inode, 120, 0, 0)  # the upper halves of uid and gid
    # i_extra_isize; i_ctime_extra, i_mtime_extra, i_atime_extra, i_crtime, i_crtime_extra
    if len(inode) >= 160 and struct.unpack_from("<H", inode, 128)[0] >= 24:
        struct.pack_into("<5I", inode, 132, 0, 0, 0, moment, 0)
