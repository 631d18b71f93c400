# SPDX-License-Identifier: BSD-2-Clause
"""Boot volumes for a bootloader in dom0: the control guest's kernel within a file system, and a kernel's twin."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from harness import paths, preparing
from harness.digest import known_sha256
from harness.errors import UsageError
from harness.guests.source import DiskImage, GuestSource
from harness.images import holes, makefs, ufs, window
from harness.images.ufs import BadFileSystem, Ufs

MENU = """\
default=0
timeout=0
title control
root (hd0)
kernel /boot/vmlinuz fxh.menu=one
initrd /boot/initrd
"""
_MIB = 64


def source(plain: GuestSource) -> GuestSource:
    """The same guest, whose kernel the bootloader takes from its first disk.

    The control guest's disk is made here (ext2, which it can write to itself); any other guest brings its own.
    """
    if plain.disks:
        return replace(plain, kernel=None, ramdisk=None)
    if plain.kernel is None or plain.ramdisk is None:
        raise UsageError(f"{plain.label} has no kernel to put on a disk")
    files = {"boot/vmlinuz": plain.kernel.read_bytes(), "boot/initrd": plain.ramdisk.read_bytes()}
    name = f"control-{known_sha256(plain.kernel)[:8]}-{known_sha256(plain.ramdisk)[:8]}-ext2-4k.img"
    path = paths.store() / "volumes" / name
    path.parent.mkdir(exist_ok=True)
    with preparing.step("the control guest's boot volume"), FileLock(path.with_suffix(".lock")):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                tree = Path(scratch) / "tree"
                write_tree(tree, {**files, "boot/grub/menu.lst": MENU.encode()})
                make_ext2(tree, Path(scratch) / name, _MIB, bsize=4096)
                (Path(scratch) / name).rename(path)
    return replace(plain, kernel=None, ramdisk=None, disks=(DiskImage(path),))


def write_tree(directory: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def make_ext2(tree: Path, target: Path, mib: int, *, bsize: int = 1024) -> None:
    """An ext2 as old readers want it, with blocks of ``bsize`` bytes: pygrub makes a system call for each. Raises BuildError."""
    makefs.run(["mke2fs", "-q", "-t", "ext2", "-b", str(bsize), "-I", "128", "-m", "0", "-d", str(tree), str(target), f"{mib}M"])


def make_ufs(tree: Path, target: Path, *, version: int = 1, bsize: int = 8192, size: str = "32m") -> None:
    """A UFS with blocks of ``bsize`` bytes and fragments of an eighth, in a volume that is a block larger. Raises BuildError.

    Blocks of zeros are holes. libfsimage reads a directory in whole blocks, and finds none whose block ends behind the volume.
    """
    options = f"version={version},bsize={bsize},fsize={bsize // 8},optimization=space"
    makefs.run(["makefs", "-t", "ffs", "-B", "le", "-s", size, "-o", options, str(target), str(tree)])
    holes.dig(target)
    os.truncate(target, target.stat().st_size + bsize)


def holes_in(volume: Path, path: str) -> int:
    """How many blocks of the file ``path`` of a raw UFS are holes. Raises UsageError where there is no such file."""
    with window.opened(volume) as whole:
        fs = ufs.superblock(whole)
        try:
            return Ufs(whole, fs).holes(path) if fs else 0
        except BadFileSystem as exc:
            raise UsageError(f"{volume}: {exc}") from exc
