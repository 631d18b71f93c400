"""Puts file systems together to disks: raw, or behind a partition table, with boot code where a firmware needs it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BuildError
from harness.images import makefs, metalog, slot, tables
from harness.images.layout import FileSystem, Layout, Vdev
from harness.images.makefs import Makefs
from harness.images.metalog import Tree
from harness.images.tables import SECTOR, Part

_MIB = (1 << 20) // SECTOR
# A slice begins behind the first track, as fdisk and gpart have always done it.
_SLICE_START = 63
_BOOT_START = 40
_LABEL_AT = SECTOR


@dataclass(frozen=True)
class BootCode:
    """/boot/pmbr, /boot/gptboot, /boot/mbr and /boot/boot of the world."""

    directory: Path

    def read(self, name: str) -> bytes:
        path = self.directory / name
        if not path.is_file():
            raise BuildError(
                f"this world has no /boot/{name}: HVM cannot boot it", mend="build it WITH_BOOT, or take a layout without"
            )
        return path.read_bytes()


def write(layout: Layout, tree: Tree, tool: Makefs | None, etc: Path, boot: BootCode, seed: str, directory: Path) -> None:
    """Make all disks of ``layout`` from ``tree`` in ``directory``, without root. Raises UsageError, BuildError."""
    for _, _, fs in layout.parts:
        makefs.check(tool, fs)
    mounts = tuple(fs.mount for _, _, fs in layout.parts if fs.mount != "none")
    for mount in mounts:
        if mount != "/":
            metalog.add_directory(tree, f".{mount}")
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=directory) as scratch:
        for disk in layout.vdevs:
            files: list[Path | None] = []
            for number, fs in enumerate(disk.fs):
                # A disk without a table is its file system.
                path = directory / disk.file if disk.table == "none" else Path(scratch) / f"{disk.name}-{number}"
                files.append(
                    _file_system(fs, metalog.subtree(tree, fs.mount, mounts), tool, etc, path, f"{seed} {disk.name} {number}")
                )
            divide(disk, files, boot, f"{seed} {disk.name}", directory / disk.file)


def divide(disk: Vdev, files: list[Path | None], boot: BootCode, seed: str, target: Path) -> None:
    """Put the file systems ``files`` (None for room alone) behind the partition table of ``disk``, if it has one."""
    if disk.table == "mbr":
        _mbr(disk, files, boot, target)
    elif disk.table == "gpt":
        _gpt(disk, files, boot, seed, target)


def _file_system(fs: FileSystem, tree: Tree, tool: Makefs | None, etc: Path, path: Path, seed: str) -> Path | None:
    """Make one file system; a swap partition is nothing but room."""
    if fs.type == "swap":
        with path.open("wb") as file:
            file.truncate(fs.bytes)
        return None
    if fs.type == "ext2":
        makefs.ext2(fs, tree, path, seed)
    elif tool is not None:
        makefs.ufs(tool, fs, tree, etc, path, "FBROOT" if fs.mount == "/" else "FB" + fs.mount.strip("/").replace("/", "").upper())
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
                slot.paste(file, out.fileno(), begin + part.start * SECTOR)
        # Boot code and label lie in the 8 KiB that a UFS leaves free at its beginning (or before partition a).
        if disk.boot:
            out.seek(begin)
            out.write(boot.read("boot")[: 16 * SECTOR])
        out.seek(begin + _LABEL_AT)
        out.write(tables.disklabel(size, parts))
        out.seek(0)
        out.write(tables.mbr(_SLICE_START, size, code=boot.read("mbr") if disk.boot else b""))


def _gpt(disk: Vdev, files: list[Path | None], boot: BootCode, seed: str, target: Path) -> None:
    # pmbr reads all of the partition, sector by sector through the BIOS: so it is as small as the code (and 545 kB at most).
    code = boot.read("gptboot") if disk.boot else b""
    boot_sectors = -(-len(code) // SECTOR)
    if _BOOT_START + boot_sectors > 2 * _MIB:
        raise BuildError(f"/boot/gptboot of {len(code)} bytes does not fit before the first MiB")
    parts = [Part("freebsd-boot", _BOOT_START, boot_sectors, "bootfs")] if disk.boot else []
    at = 2 * _MIB if disk.boot else _MIB
    placed = []
    for fs, file in zip(disk.fs, files, strict=True):
        kind, name = {"swap": ("freebsd-swap", "swapfs"), "ext2": ("linux-data", "bootext2")}.get(
            fs.type, ("freebsd-ufs", "rootfs" if fs.mount == "/" else fs.mount.strip("/").replace("/", "-"))
        )
        parts.append(Part(kind, at, fs.size * _MIB, name))
        placed.append((file, at))
        at += fs.size * _MIB
    sectors = at + _MIB
    first, last = tables.gpt(sectors, parts, seed=seed, code=boot.read("pmbr") if disk.boot else b"")
    with target.open("wb") as out:
        out.truncate(sectors * SECTOR)
        for file, start in placed:
            if file is not None:
                slot.paste(file, out.fileno(), start * SECTOR)
        if disk.boot:
            out.seek(_BOOT_START * SECTOR)
            out.write(code)
        out.seek(0)
        out.write(first)
        out.seek(sectors * SECTOR - len(last))
        out.write(last)
