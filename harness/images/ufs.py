# SPDX-License-Identifier: BSD-2-Clause
"""Reads files from a UFS1 or UFS2 without mounting it. The image is not trusted: every count and length has a bound.

Sources: sys/ufs/ffs/fs.h (superblock, cylinder groups), sys/ufs/ffs/ffs_subr.c (the locations of a superblock, and its
checks), sys/ufs/ufs/dinode.h and dir.h (inodes and directories).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from construct import Bytes, Int8ul, Int16ul, Int32sl, Int32ul, Int64sl, Int64ul, Padding, Struct

from harness.images.window import Window

_UFS1, _UFS2, _UNFINISHED = 0x011954, 0x19540119, 0x19960408
# fs.h, SBLOCKSEARCH
_PLACES = (65536, 8192, 0, 262144)
_SBLOCK = 8192
_ROOT_INODE = 2
_DIRECT, _INDIRECT = 12, 3
# The symbolic links of a path (MAXSYMLINKS, sys/sys/param.h), and the bytes of a directory.
_LINKS, _DIRECTORY = 32, 4 << 20

UNCLEAN, SOFTDEP, NEEDS_FSCK, SUJ, GJOURNAL, _FLAGS_UPDATED = 0x1, 0x2, 0x4, 0x8, 0x40, 0x80
"""fs_flags: not clean at mount, soft updates, needs a full fsck, soft updates journal, gjournal."""

_SUPERBLOCK = Struct(
    Padding(16), "iblkno" / Int32sl, "dblkno" / Int32sl, "old_cgoffset" / Int32sl, "old_cgmask" / Int32sl, Padding(4), "old_size" / Int32sl,
    Padding(4), "ncg" / Int32ul, "bsize" / Int32sl, "fsize" / Int32sl, "frag" / Int32sl, Padding(60), "inopb" / Int32ul, Padding(60), "ipg" / Int32ul,
    "fpg" / Int32sl, Padding(17), "clean" / Int8ul, Padding(1), "old_flags" / Int8ul, Padding(468), "volname" / Bytes(32),
    Padding(148), "maxbsize" / Int32sl, Padding(136), "sblockloc" / Int64ul, Padding(72), "size" / Int64sl, Padding(224),
    "flags" / Int32ul, Padding(4), "maxsymlinklen" / Int32sl, Padding(48), "magic" / Int32ul,
)  # fmt: skip
_INODE = {
    1: Struct("mode" / Int16ul, Padding(6), "size" / Int64ul, Padding(24), "blocks" / Bytes(60)),
    2: Struct("mode" / Int16ul, Padding(14), "size" / Int64ul, Padding(88), "blocks" / Bytes(120)),
}


class BadFileSystem(Exception):
    """The file system is inconsistent, or has no such file; the text says where."""


@dataclass(frozen=True)
class Superblock:
    """``version`` is 1 or 2, ``label`` the name below /dev/ufs, ``flags`` as in fs.h; sizes in bytes, ``fpg`` in fragments.

    ``place`` is the superblock's offset in the volume, ``size`` the bytes of the file system.
    """

    version: int
    bsize: int
    fsize: int
    ipg: int
    fpg: int
    ncg: int
    inopb: int
    iblkno: int
    cgoffset: int
    cgmask: int
    clean: bool
    flags: int
    label: str
    maxsymlinklen: int
    place: int
    size: int

    def group(self, number: int) -> int:
        """The first fragment of a cylinder group's own data; copies of the superblock and the inodes follow it."""
        return self.fpg * number + (self.cgoffset * (number & ~self.cgmask) if self.version == 1 else 0)

    @property
    def tables(self) -> Iterator[int]:
        """The offsets of the ``ipg`` inodes of each cylinder group, in bytes."""
        return ((self.group(number) + self.iblkno) * self.fsize for number in range(self.ncg))

    @property
    def pending(self) -> str:
        """The reason why files may be inconsistent; "" for a file system that was unmounted."""
        if self.clean and not self.flags & (UNCLEAN | NEEDS_FSCK):
            return ""
        if self.flags & NEEDS_FSCK:
            return "it is marked as needing a full fsck"
        if self.flags & GJOURNAL:
            return "it was not unmounted, and its gjournal was not replayed"
        if self.flags & SUJ:
            return "it was not unmounted, and its soft updates journal was not replayed"
        return f"it was not unmounted{' (soft updates, no journal)' if self.flags & SOFTDEP else ''}, so it needs fsck"


def superblock(volume: Window) -> Superblock | None:
    """The superblock that FreeBSD would use; None if it accepts no superblock (validate_sblock(), sys/ufs/ffs/ffs_subr.c)."""
    for place in _PLACES:
        data = volume.read(place, _SBLOCK)
        if len(data) < 1376:
            continue
        raw = _SUPERBLOCK.parse(data)
        if raw.magic not in (_UFS1, _UFS2):
            continue
        if raw.magic == _UFS1 and place == 65536 and raw.bsize == 65536:
            continue  # the first backup of a UFS1 with blocks of that size
        # NetBSD's makefs writes another location into a UFS2, which FreeBSD refuses.
        if raw.magic == _UFS2 and raw.sblockloc != 65536:
            continue
        version = 1 if raw.magic == _UFS1 else 2
        inode = 128 * version
        if not (
            4096 <= raw.bsize <= 65536 and raw.bsize & (raw.bsize - 1) == 0 and 512 <= raw.fsize <= raw.bsize
            and raw.fsize & (raw.fsize - 1) == 0 and raw.fsize * raw.frag == raw.bsize and raw.inopb == raw.bsize // inode
            and raw.iblkno > 0
        ):  # fmt: skip
            continue
        # A UFS1 of an old FreeBSD has the narrow field only (ffs_oldfscompat_read()).
        fragments = raw.size if version == 2 or raw.maxbsize == raw.bsize else raw.old_size
        if not (
            raw.ipg >= raw.inopb and raw.ipg % raw.inopb == 0 and raw.dblkno == raw.iblkno + raw.ipg * raw.frag // raw.inopb
            and 3 * raw.frag <= raw.fpg < 8 * raw.bsize and (raw.ncg - 1) * raw.fpg < fragments <= raw.ncg * raw.fpg
        ):  # fmt: skip
            continue
        flags = raw.flags if version == 2 or raw.old_flags & _FLAGS_UPDATED else raw.old_flags
        label = raw.volname.partition(b"\0")[0].decode("ascii", "replace")
        return Superblock(
            version, raw.bsize, raw.fsize, raw.ipg, raw.fpg, raw.ncg, raw.inopb, raw.iblkno, raw.old_cgoffset, raw.old_cgmask,
            bool(raw.clean), flags, label, raw.maxsymlinklen, place, fragments * raw.fsize,
        )  # fmt: skip
    return None


def has_magic(volume: Window) -> bool:
    """Whether there is the magic number of a superblock, even of one that FreeBSD does not accept."""
    return any(int.from_bytes(volume.read(place + 1372, 4), "little") in (_UFS1, _UFS2) for place in _PLACES)


@dataclass(frozen=True)
class _Node:
    mode: int
    size: int
    blocks: bytes


@dataclass(frozen=True)
class Ufs:
    """The files of a UFS in ``volume``."""

    volume: Window
    fs: Superblock

    def read(self, path: str, largest: int) -> bytes:
        """The content of a file. Raises BadFileSystem if it is missing, not regular, or larger than ``largest`` bytes."""
        return b"".join(self.blocks(path, largest))

    def blocks(self, path: str, largest: int) -> Iterator[bytes]:
        """The content of a file in blocks. Raises BadFileSystem as :meth:`read` does."""
        node = self._find(path)
        if not stat.S_ISREG(node.mode):
            raise BadFileSystem(f"{path} is not a regular file")
        if node.size > largest:
            raise BadFileSystem(f"{path} has {node.size} bytes; the limit is {largest}")
        yield from self._content(node)

    def holes(self, path: str) -> int:
        """The number of blocks of a file that are holes. Raises BadFileSystem if it is missing."""
        node = self._find(path)
        return sum(not fragment for fragment in self._fragments(node, -(-node.size // self.fs.bsize)))

    def names(self, path: str) -> tuple[str, ...]:
        """The sorted names in a directory, without ``.`` and ``..``. Raises BadFileSystem if it is not a directory."""
        return tuple(sorted(set(self._entries(self._find(path), path)) - {".", ".."}))

    def exists(self, path: str) -> bool:
        """Whether there is a regular file or a directory at ``path``."""
        try:
            return self._find(path).mode != 0
        except BadFileSystem:
            return False

    def _find(self, path: str) -> _Node:
        parts, links = [word for word in path.split("/") if word], 0
        trail: list[tuple[str, _Node]] = [("", self._inode(_ROOT_INODE))]
        while parts:
            word = parts.pop(0)
            if word == ".":
                continue
            if word == "..":
                trail = trail[:-1] or trail
                continue
            entries = self._entries(trail[-1][1], "/".join(name for name, _ in trail) or "/")
            if word not in entries:
                raise BadFileSystem(f"{path}: there is no {word!r}")
            node = self._inode(entries[word])
            if stat.S_ISLNK(node.mode):
                links += 1
                if links > _LINKS:
                    raise BadFileSystem(f"{path}: more than {_LINKS} symbolic links")
                target = self._target(node)
                if target.startswith("/"):
                    trail = trail[:1]
                parts = [part for part in target.split("/") if part] + parts
                continue
            trail.append((word, node))
        return trail[-1][1]

    def _target(self, node: _Node) -> str:
        # The inode itself holds a short target, in place of the block numbers.
        if node.size < self.fs.maxsymlinklen and node.size <= len(node.blocks):
            return node.blocks[: node.size].decode("utf-8", "replace")
        if node.size > 1024:
            raise BadFileSystem(f"a symbolic link of {node.size} bytes")
        return b"".join(self._content(node)).decode("utf-8", "replace")

    def _entries(self, node: _Node, path: str) -> dict[str, int]:
        if not stat.S_ISDIR(node.mode):
            raise BadFileSystem(f"{path} is not a directory")
        if node.size > _DIRECTORY:
            raise BadFileSystem(f"{path}: a directory of {node.size} bytes")
        found, data, at = {}, b"".join(self._content(node)), 0
        while at + 8 <= len(data):
            inode, length, _, named = struct.unpack_from("<IHBB", data, at)
            if length < 8 or length % 4 or 8 + named > length:
                raise BadFileSystem(f"{path}: a damaged directory entry at {at}")
            if inode:
                found[data[at + 8 : at + 8 + named].decode("utf-8", "replace")] = inode
            at += length
        return found

    def _inode(self, number: int) -> _Node:
        fs = self.fs
        group, index = divmod(number, fs.ipg)
        if group >= fs.ncg:
            raise BadFileSystem(f"inode {number} of {fs.ncg * fs.ipg}")
        block, place = divmod(index, fs.inopb)
        size = 128 * fs.version
        at = (fs.group(group) + fs.iblkno) * fs.fsize + block * fs.bsize + place * size
        data = self.volume.read(at, size)
        if len(data) < size:
            raise BadFileSystem(f"inode {number} is beyond the end of the image")
        raw = _INODE[fs.version].parse(data)
        return _Node(raw.mode, raw.size, raw.blocks)

    def _content(self, node: _Node) -> Iterator[bytes]:
        left = node.size
        for fragment in self._fragments(node, -(-node.size // self.fs.bsize)):
            size = min(left, self.fs.bsize)
            data = self.volume.read(fragment * self.fs.fsize, size) if fragment else bytes(size)
            if len(data) < size:
                raise BadFileSystem("a file's block is beyond the end of the image")
            yield data
            left -= size

    def _fragments(self, node: _Node, count: int) -> Iterator[int]:
        """The first fragment of each of the ``count`` blocks of a file; 0 is a hole."""
        numbers = struct.unpack("<15i" if self.fs.version == 1 else "<15q", node.blocks)
        given = 0
        for direct in numbers[:_DIRECT]:
            if given == count:
                return
            yield max(direct, 0)
            given += 1
        for level, top in enumerate(numbers[_DIRECT:], 1):
            for block in self._indirect(max(top, 0), level, count - given):
                yield block
                given += 1
            if given == count:
                return

    def _indirect(self, fragment: int, level: int, count: int) -> Iterator[int]:
        """The block numbers below an indirect block of that ``level``, at most ``count``."""
        word = 4 * self.fs.version
        each = self.fs.bsize // word
        span = each ** (level - 1)
        numbers: tuple[int, ...] = (0,) * each
        if fragment:
            data = self.volume.read(fragment * self.fs.fsize, self.fs.bsize)
            if len(data) < self.fs.bsize:
                raise BadFileSystem("an indirect block is beyond the end of the image")
            numbers = struct.unpack(f"<{each}{'i' if word == 4 else 'q'}", data)
        for number in numbers:
            if count <= 0:
                return
            if level == 1:
                yield max(number, 0)
            else:
                yield from self._indirect(max(number, 0), level - 1, count)
            count -= span
