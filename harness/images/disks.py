# SPDX-License-Identifier: BSD-2-Clause
"""Builds disks from file systems: raw, or with a partition table and boot code."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BuildError
from harness.images import loader_conf_slot, makefs, metalog, tables
from harness.images.layout import FileSystem, Layout, Vdev
from harness.images.makefs import Makefs
from harness.images.metalog import Tree
from harness.images.tables import SECTOR, Part

_MIB = (1 << 20) // SECTOR
# A slice begins after the first track, as with fdisk and gpart.
_SLICE_START = 63
# gpart's first sector for a freebsd-boot that is aligned to 4 KiB.
_BOOT_START = 40
_LABEL_AT = SECTOR
# pmbr reads all of a freebsd-boot through the BIOS, at most this many bytes (stand/i386/pmbr/pmbr.S).
_BOOT_LIMIT = 545 << 10
_GPT_KINDS = {"swap": "freebsd-swap", "ext2": "linux-data", "boot": "freebsd-boot", "efi": "efi", "zfs": "freebsd-zfs"}
# How to build a world with the file. WITHOUT_EFI drops loader.efi; the small world is WITHOUT_LOADER_ZFS (share/mk/src.opts.mk).
_WORLDS = {"loader.efi": "build the world WITH_EFI", "gptzfsboot": "build it with --world zfs (WITH_LOADER_ZFS)"}


@dataclass(frozen=True)
class BootCode:
    """The directory /boot of a world: pmbr, gptboot, gptzfsboot, mbr, boot, loader.efi."""

    directory: Path

    def path(self, name: str) -> Path:
        """The path of a boot file. Raises BuildError if the world lacks it."""
        path = self.directory / name
        if not path.is_file():
            way = "UEFI" if name == "loader.efi" else "HVM"
            raise BuildError(
                f"this world has no /boot/{name}: {way} cannot boot it",
                hint=f"{_WORLDS.get(name, 'build the world WITH_BOOT')}, or use a layout without",
            )
        return path

    def read(self, name: str) -> bytes:
        """The content of a boot file. Raises BuildError if the world lacks it."""
        return self.path(name).read_bytes()


def check(layout: Layout, boot: BootCode) -> None:
    """Raise BuildError if the world lacks boot code that ``layout`` needs."""
    for disk, _, fs in layout.parts:
        if fs.type == "efi":
            boot.path("loader.efi")
        elif fs.type == "boot":
            boot.path("pmbr")
            boot.path(_gptboot(disk))


def write(
    layout: Layout,
    tree: Tree,
    tool: Makefs | None,
    etc: Path,
    boot: BootCode,
    seed: str,
    directory: Path,
    variables: Mapping[str, str],
) -> None:
    """Write all disks of ``layout`` with the files of ``tree`` to ``directory``. Raises UsageError, BuildError.

    ``variables`` are kernel variables for the boot environment of a ZFS pool.
    """
    for _, _, fs in layout.parts:
        makefs.check(tool, fs)
    check(layout, boot)
    mounts = tuple(fs.mount for _, _, fs in layout.parts if fs.mount != "none")
    for mount in mounts:
        if mount != "/":
            metalog.add_directory(tree, f".{mount}")
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=directory) as scratch:
        for disk in layout.vdevs:
            files: list[Path | None] = []
            for number, fs in enumerate(disk.fs):
                # A disk without a table consists of its file system.
                path = directory / disk.file if disk.table == "none" else Path(scratch) / f"{disk.name}-{number}"
                own = f"{seed} {disk.name} {number}"
                if fs.type == "boot":
                    path.write_bytes(boot.read(_gptboot(disk)))
                    files.append(path)
                elif fs.type == "efi":
                    makefs.fat(tool, fs, {"EFI/BOOT/BOOTX64.EFI": boot.path("loader.efi")}, path, own)
                    files.append(path)
                else:
                    label = layout.root_label if fs.mount == "/" else "FB" + fs.mount.strip("/").replace("/", "").upper()
                    files.append(_file_system(fs, metalog.subtree(tree, fs.mount, mounts), tool, etc, path, own, label))
                if fs.type == "zfs":
                    loader_conf_slot.fill_pool(path, variables)
            write_disk(disk, files, boot, f"{seed} {disk.name}", directory / disk.file)


def _gptboot(disk: Vdev) -> str:
    """The name of the boot code for the file system that holds the disk's loader."""
    return "gptzfsboot" if any(fs.type == "zfs" for fs in disk.fs) else "gptboot"


def write_disk(disk: Vdev, files: list[Path | None], boot: BootCode, seed: str, target: Path) -> None:
    """Write the partition table of ``disk``, if it has one, and the file systems ``files`` (None: empty space)."""
    if disk.table == "mbr":
        _mbr(disk, files, boot, target)
    elif disk.table == "gpt":
        _gpt(disk, files, boot, seed, target)


def _file_system(fs: FileSystem, tree: Tree, tool: Makefs | None, etc: Path, path: Path, seed: str, label: str) -> Path | None:
    """Write one file system; None for swap, which is empty space."""
    if fs.type == "swap":
        with path.open("wb") as file:
            file.truncate(fs.bytes)
        return None
    if fs.type == "ext2":
        makefs.ext2(fs, tree, path, seed)
    elif tool is not None and fs.type == "zfs":
        makefs.zfs(tool, fs, tree, etc, path, seed)
    elif tool is not None:
        makefs.ufs(tool, fs, tree, etc, path, label, seed)
    return path


def _mbr(disk: Vdev, files: list[Path | None], boot: BootCode, target: Path) -> None:
    parts, at = [], disk.label_offset
    for fs in disk.fs:
        parts.append(Part("freebsd-swap" if fs.type == "swap" else "freebsd-ufs", at, fs.size * _MIB))
        at += fs.size * _MIB
    size = at
    sectors = (_SLICE_START + size + _MIB - 1) // _MIB * _MIB
    with target.open("wb") as out:
        out.truncate(sectors * SECTOR)
        begin = _SLICE_START * SECTOR
        for part, file in zip(parts, files, strict=True):
            if file is not None:
                loader_conf_slot.copy_data(file, out.fileno(), begin + part.start * SECTOR)
        # Boot code and label use the 8 KiB that a UFS leaves free at its beginning (or before partition a).
        if disk.boot:
            out.seek(begin)
            out.write(boot.read("boot")[: 16 * SECTOR])
        out.seek(begin + _LABEL_AT)
        out.write(tables.disklabel(size, parts))
        out.seek(0)
        out.write(tables.mbr(_SLICE_START, size, code=boot.read("mbr") if disk.boot else b""))


def place(disk: Vdev, sizes: list[int]) -> tuple[list[Part], int]:
    """The partitions of a GPT disk whose file systems have ``sizes`` in sectors, and the disk's size in sectors.

    mkimg(1) places partitions without gaps from the first usable sector (``packed``); bsdinstall aligns them.
    """
    parts: list[Part] = []
    at = tables.GPT_FIRST if disk.packed else _BOOT_START if disk.fs[0].type == "boot" else _MIB
    for fs, size in zip(disk.fs, sizes, strict=True):
        parts.append(Part(_GPT_KINDS.get(fs.type, "freebsd-ufs"), at, size, fs.label))
        at += size
        if not disk.packed:
            at = -(-at // _MIB) * _MIB
    return parts, at + (tables.GPT_TAIL if disk.packed else _MIB)


def _gpt(disk: Vdev, files: list[Path | None], boot: BootCode, seed: str, target: Path) -> None:
    sizes = []
    for fs, file in zip(disk.fs, files, strict=True):
        length = file.stat().st_size if fs.type == "boot" and file is not None else fs.bytes
        if fs.type == "boot" and length > _BOOT_LIMIT:
            raise BuildError(
                f"/boot/{_gptboot(disk)} has {length} bytes, but pmbr reads only {_BOOT_LIMIT}",
                hint="use a layout without freebsd-boot",
            )
        sizes.append(-(-length // SECTOR))
    parts, sectors = place(disk, sizes)
    first, last = tables.gpt(sectors, parts, seed=seed, code=boot.read("pmbr") if disk.boots else b"")
    with target.open("wb") as out:
        out.truncate(sectors * SECTOR)
        for part, file in zip(parts, files, strict=True):
            if file is not None:
                loader_conf_slot.copy_data(file, out.fileno(), part.start * SECTOR)
        out.seek(0)
        out.write(first)
        out.seek(sectors * SECTOR - len(last))
        out.write(last)


def slot_of(layout: Layout, disk: Vdev, image: Path) -> int:
    """The offset of the slot in the disk file ``image``; -1 if ``disk`` has none.

    Raises BuildError unless the disk has the slot exactly once.
    """
    if not layout.firmwares or not any(fs.mount == "/" for fs in disk.fs):
        return -1
    if not layout.zfs:
        return loader_conf_slot.locate(image)
    at = loader_conf_slot.locate_pool(image)
    if at < 0:
        raise BuildError(f"{image.name}: its pool has no boot environment", hint="report it with the version of the tree")
    return at
