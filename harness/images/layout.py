# SPDX-License-Identifier: BSD-2-Clause
"""Layouts: the disks of an image, their partitions, and the use of each."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness import paths
from harness.errors import UsageError
from harness.images.inputs import combine
from harness.xen import vdev

BLOCK_SIZES = (8192, 16384, 32768, 65536)
_TYPES = ("ufs1", "ufs2", "ext2", "zfs", "efi", "boot", "swap")
_GPT_ONLY = ("zfs", "efi", "boot")
_ROOT_MIB = 512
# release/tools/vmimage.subr makes an ESP of 33292 KiB, the smallest FAT32 with clusters of one sector (tools/boot/install-boot.sh).
_SIZES = {"efi": 33, "boot": 0}
# Names of GPT partitions in release/tools/vmimage.subr (13.2, 14.2). 15.1 calls the ESP efiboot0.
_LABELS = {"efi": "efiesp", "boot": "bootfs", "swap": "swapfs", "ext2": "bootext2"}


@dataclass(frozen=True)
class FileSystem:
    """A file system, or a partition with another use.

    ``mount`` is where the guest mounts it (``none`` for ``swap`` and ``boot``), ``bsize`` the block size of a UFS in bytes.
    """

    mount: str
    type: str
    """ufs1, ufs2, ext2, zfs, efi (a FAT with loader.efi), boot (freebsd-boot: gptboot or gptzfsboot), or swap."""
    size: int = _ROOT_MIB
    """MiB; 0 for ``boot``, whose size is that of its code."""
    bsize: int = 32768
    softupdates: bool = False
    pool: str = ""
    """zfs: the name of the pool."""
    bootfs: str = ""
    """zfs: the dataset that is the root, without the name of the pool."""
    datasets: tuple[str, ...] = ()
    """zfs: ``DATASET[;PROPERTY=VALUE]...`` without the name of the pool, as for ``makefs -t zfs -o fs=``."""

    @property
    def bytes(self) -> int:
        return self.size << 20

    @property
    def label(self) -> str:
        """The name of its GPT partition, as in ``/dev/gpt/rootfs``."""
        if self.mount == "/":
            return "rootfs"
        return _LABELS.get(self.type) or self.mount.strip("/").replace("/", "-")


@dataclass(frozen=True)
class Vdev:
    """One disk. ``table``: none, mbr or gpt; ``boot``: an MBR disk has boot code (a GPT disk has a partition for it)."""

    name: str
    fs: tuple[FileSystem, ...]
    table: str = "none"
    boot: bool = False
    label_offset: int = 0
    """mbr: the sector of the slice at which partition ``a`` begins: 0 or 16."""
    packed: bool = False
    """gpt: partitions follow each other without a gap, as with mkimg(1); otherwise they start at whole MiB."""
    labels: bool = False
    """gpt: fstab and the root's name use /dev/gpt/LABEL."""

    @property
    def file(self) -> str:
        """Its file name in an image."""
        return f"{self.name}.img"

    def device(self, number: int) -> str:
        """FreeBSD's name of the file system ``number`` of this disk, without /dev/."""
        disk = vdev.freebsd_disk(vdev.number(self.name))
        match self.table:
            case "mbr":
                return f"{disk}s1{'abdefgh'[number]}"
            case "gpt":
                return f"{disk}p{number + 1}"
        return disk

    def node(self, number: int) -> str:
        """The path below /dev/ of the file system ``number`` in the guest's fstab.

        An ESP always has its label there. The disk is ada0 in an HVM guest without PV disks, and a missing file system of fstab
        stops the boot.
        """
        fs = self.fs[number]
        return f"gpt/{fs.label}" if self.labels or fs.type == "efi" else self.device(number)

    @property
    def boots(self) -> bool:
        """Whether a BIOS can start it."""
        return self.boot or any(fs.type == "boot" for fs in self.fs)


@dataclass(frozen=True)
class Layout:
    """A layout of images/freebsd/layouts.toml, possibly with other sizes."""

    name: str
    about: str
    vdevs: tuple[Vdev, ...]

    @property
    def key(self) -> str:
        return combine([asdict(disk) for disk in self.vdevs])

    @property
    def parts(self) -> tuple[tuple[Vdev, int, FileSystem], ...]:
        return tuple((disk, number, fs) for disk in self.vdevs for number, fs in enumerate(disk.fs))

    @property
    def _root(self) -> tuple[Vdev, int, FileSystem]:
        return next(part for part in self.parts if part[2].mount == "/")

    @property
    def root(self) -> str:
        """The guest's root: a device (``xbd0p2``), or a dataset (``zroot/ROOT/default``)."""
        disk, number, fs = self._root
        return f"{fs.pool}/{fs.bootfs}" if fs.type == "zfs" else disk.device(number)

    @property
    def root_device(self) -> str:
        """The device that holds the root file system or its pool (``xbd0p2``)."""
        disk, number, _ = self._root
        return disk.device(number)

    @property
    def mountfrom(self) -> str:
        """The value of vfs.root.mountfrom: ``ufs:/dev/xbd0p2``, ``ufs:/dev/gpt/rootfs``, ``zfs:zroot/ROOT/default``."""
        disk, number, fs = self._root
        return f"zfs:{self.root}" if fs.type == "zfs" else f"ufs:/dev/{disk.node(number)}"

    @property
    def root_type(self) -> str:
        return self._root[2].type

    @property
    def root_label(self) -> str:
        """The volume label of a UFS root (/dev/ufs/LABEL), "" for ZFS. The official VM images have ``rootfs``."""
        disk, _, fs = self._root
        return "" if fs.type == "zfs" else "rootfs" if disk.labels else "FBROOT"

    @property
    def zfs(self) -> bool:
        return self.root_type == "zfs"

    @property
    def firmware(self) -> bool:
        """Whether a BIOS can start it."""
        return self.vdevs[0].boots

    @property
    def uefi(self) -> bool:
        """Whether UEFI can start it: its first disk has an EFI system partition."""
        return any(fs.type == "efi" for fs in self.vdevs[0].fs)

    @property
    def firmwares(self) -> tuple[str, ...]:
        """The firmwares that can start it as an HVM guest: a subset of ``("bios", "uefi")``."""
        return tuple(name for name, able in (("bios", self.firmware), ("uefi", self.uefi)) if able)

    @property
    def pygrub(self) -> bool:
        """Whether pygrub can read /boot of the first disk: ext2 or UFS1, in a slice only at its first sector."""
        first = self.vdevs[0]
        return first.fs[0].type in ("ufs1", "ext2") and first.label_offset == 0

    @property
    def bytes(self) -> int:
        return sum(fs.bytes for _, _, fs in self.parts)


def available() -> dict[str, str]:
    """The layouts by name, each with its description."""
    return {name: data["about"] for name, data in _data().items()}


def on_zfs(name: str) -> bool:
    """Whether the layout ``name`` has its root on ZFS; False for an unknown name."""
    data = _data()
    return name in data and parse(name, data[name]).zfs


def load(name: str, *, size: int = 0, bsize: int = 0) -> Layout:
    """The layout ``name``; ``size`` (MiB) changes the root, ``bsize`` (bytes) the blocks of each UFS. Raises UsageError."""
    data = _data()
    if name not in data:
        raise UsageError(f"no layout {name!r}", hint=f"valid names: {', '.join(data)}")
    layout = parse(name, data[name])
    if bsize and bsize not in BLOCK_SIZES:
        raise UsageError(f"UFS blocks of {bsize} bytes are not supported", hint=f"valid values: {', '.join(map(str, BLOCK_SIZES))}")
    if size and not 32 <= size <= 1 << 20:
        raise UsageError(f"the size of the root file system is invalid: {size} MiB", hint="give 32 or more")

    def change(fs: FileSystem) -> FileSystem:
        fs = replace(fs, size=size) if size and fs.mount == "/" else fs
        return replace(fs, bsize=bsize) if bsize and fs.type.startswith("ufs") else fs

    return replace(layout, vdevs=tuple(replace(disk, fs=tuple(map(change, disk.fs))) for disk in layout.vdevs))


def parse(name: str, data: dict[str, Any]) -> Layout:
    """The layout ``name`` from its table. Raises UsageError for an invalid one."""
    try:
        vdevs = tuple(Vdev(**{**disk, "fs": tuple(map(_file_system, disk["fs"]))}) for disk in data["vdevs"])
        layout = Layout(name, data["about"], vdevs)
    except (KeyError, TypeError) as exc:
        raise UsageError(f"layout {name}: {exc}", hint="see images/freebsd/layouts.toml for the keys") from exc
    mounts = [fs.mount for _, _, fs in layout.parts if fs.mount != "none"]
    if mounts.count("/") != 1 or len(set(mounts)) != len(mounts):
        raise UsageError(f"layout {name} mounts {', '.join(mounts) or 'nothing'}", hint="mount / and each other mount point once")
    if len({disk.name for disk in vdevs}) != len(vdevs):
        raise UsageError(f"layout {name} has a vdev twice")
    for disk in vdevs:
        if disk.table not in ("none", "mbr", "gpt") or disk.label_offset not in (0, 16):
            raise UsageError(
                f"layout {name}: invalid table {disk.table!r} or label_offset {disk.label_offset}",
                hint="use none, mbr or gpt; 0 or 16",
            )
        if disk.table == "none" and (len(disk.fs) != 1 or disk.boot):
            raise UsageError(f"layout {name}: {disk.name} has no table, so it takes one file system and no boot code")
        if disk.boot and disk.table == "gpt":
            raise UsageError(f"layout {name}: {disk.name} has a GPT, which boots from a partition", hint='add an fs of type "boot"')
        if (disk.packed or disk.labels) and disk.table != "gpt":
            raise UsageError(f"layout {name}: {disk.name} has no GPT: packed and labels need one")
        for fs in disk.fs:
            _check(name, disk, fs)
    return layout


def _file_system(data: dict[str, Any]) -> FileSystem:
    size = _SIZES.get(str(data.get("type")), _ROOT_MIB)
    return FileSystem(**{"size": size, **data, "datasets": tuple(data.get("datasets", ()))})


def _check(name: str, disk: Vdev, fs: FileSystem) -> None:
    """Raise UsageError for a file system that ``disk`` cannot have."""
    if fs.type not in _TYPES:
        raise UsageError(f"layout {name}: unknown file system type {fs.type!r}", hint=f"valid values: {', '.join(_TYPES)}")
    if fs.type in _GPT_ONLY and disk.table != "gpt":
        raise UsageError(f"layout {name}: {fs.type} on {disk.name}, which has no GPT", hint='table = "gpt"')
    if fs.type == "zfs" and not (fs.mount == "/" and fs.pool and fs.bootfs):
        raise UsageError(
            f"layout {name}: a ZFS on {fs.mount} without pool or bootfs, or not on /", hint="mount it at / and give pool and bootfs"
        )


def _data() -> dict[str, dict[str, Any]]:
    return tomllib.loads((paths.project() / "images/freebsd/layouts.toml").read_text())
