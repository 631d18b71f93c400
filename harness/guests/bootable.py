# SPDX-License-Identifier: BSD-2-Clause
"""Boot volumes for a bootloader in dom0: file systems with a kernel."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from harness import store
from harness.digest import known_sha256
from harness.errors import UsageError
from harness.guests.source import DiskImage, GuestSource
from harness.images import holes, makefs, ufs, window
from harness.images.ufs import BadFileSystem, Ufs

KINDS = ("volumes",)

MENU = """\
default=0
timeout=0
title control
root (hd0)
kernel /boot/vmlinuz fxh.menu=one
initrd /boot/initrd
"""
_MIB = 64
# Part of the file's name: another menu makes another volume.
_LAYOUT = f"ext2-4k-{hashlib.sha256(f'{MENU}{_MIB}'.encode()).hexdigest()[:8]}"


def source(plain: GuestSource) -> GuestSource:
    """The same guest, but the bootloader takes its kernel from its first disk.

    A guest without a disk (the control guest) gets a writable ext2 disk with its kernel and ramdisk. Raises UsageError if it has no
    kernel.
    """
    if plain.disks:
        return replace(plain, kernel=None, ramdisk=None)
    if plain.kernel is None or plain.ramdisk is None:
        raise UsageError(f"{plain.label} has no disk, and no kernel and ramdisk to put on one")
    files = {"boot/vmlinuz": plain.kernel.read_bytes(), "boot/initrd": plain.ramdisk.read_bytes()}
    name = f"control-{known_sha256(plain.kernel)[:8]}-{known_sha256(plain.ramdisk)[:8]}-{_LAYOUT}.img"

    def create(work: Path) -> Path:
        write_tree(work / "tree", {**files, "boot/grub/menu.lst": MENU.encode()})
        make_ext2(work / "tree", work / name, _MIB, bsize=4096)
        return work / name

    path = store.get_or_create("volumes", name, create, step="the control guest's boot volume")
    return replace(plain, kernel=None, ramdisk=None, disks=(DiskImage(path),))


def write_tree(directory: Path, files: dict[str, bytes]) -> None:
    """Write ``files`` (content by path) below ``directory``."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def make_ext2(tree: Path, target: Path, mib: int, *, bsize: int = 1024) -> None:
    """Make an ext2 for old readers, with blocks of ``bsize`` bytes; pygrub needs a system call for each. Raises BuildError."""
    makefs.run(["mke2fs", "-q", "-t", "ext2", "-b", str(bsize), "-I", "128", "-m", "0", "-d", str(tree), str(target), f"{mib}M"])


def make_ufs(tree: Path, target: Path, *, version: int = 1, bsize: int = 8192, size: str = "32m") -> None:
    """Make a UFS with blocks of ``bsize`` bytes and fragments of an eighth of that. Blocks of zeros are holes. Raises BuildError.

    The volume is one block larger than the file system. libfsimage reads directories in whole blocks, and fails on a block that
    ends beyond the volume.
    """
    options = f"version={version},bsize={bsize},fsize={bsize // 8},optimization=space"
    makefs.run(["makefs", "-t", "ffs", "-B", "le", "-s", size, "-o", options, str(target), str(tree)])
    holes.punch(target)
    os.truncate(target, target.stat().st_size + bsize)


def holes_in(volume: Path, path: str) -> int:
    """The number of holes (blocks) in the file ``path`` of a raw UFS. Raises UsageError if there is no such file."""
    with window.opened(volume) as whole:
        fs = ufs.superblock(whole)
        try:
            return Ufs(whole, fs).holes(path) if fs else 0
        except BadFileSystem as exc:
            raise UsageError(f"{volume}: {exc}") from exc
