"""Layouts: which disks an image has, how they are divided, and what each part is for."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness import paths
from harness.errors import UsageError
from harness.images.inputs import combine
from harness.xen import vdev

BLOCK_SIZES = (8192, 16384, 32768, 65536)
_TYPES = ("ufs1", "ufs2", "ext2", "swap")
_ROOT_MIB = 512


@dataclass(frozen=True)
class FileSystem:
    """``mount`` is where the guest mounts it (``none`` for swap); ``size`` in MiB, ``bsize`` in bytes (UFS)."""

    mount: str
    type: str
    size: int = _ROOT_MIB
    bsize: int = 32768

    @property
    def bytes(self) -> int:
        return self.size << 20


@dataclass(frozen=True)
class Vdev:
    """One disk. ``table``: none, mbr or gpt; ``boot``: with boot code for a firmware."""

    name: str
    fs: tuple[FileSystem, ...]
    table: str = "none"
    boot: bool = False
    label_offset: int = 0
    """mbr: the sector of the slice at which partition ``a`` begins: 0 or 16."""

    @property
    def file(self) -> str:
        """Its file within an image."""
        return f"{self.name}.img"

    def device(self, number: int) -> str:
        """What FreeBSD calls the file system ``number`` of this disk, without /dev/."""
        disk = vdev.freebsd_disk(vdev.number(self.name))
        match self.table:
            case "mbr":
                return f"{disk}s1{'abdefgh'[number]}"
            case "gpt":
                return f"{disk}p{number + (2 if self.boot else 1)}"
        return disk


@dataclass(frozen=True)
class Layout:
    """``name`` of images/freebsd/layouts.toml, perhaps with other sizes."""

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
    def root(self) -> str:
        """The guest's root device, as in ``xbd0p2``."""
        return next(disk.device(number) for disk, number, fs in self.parts if fs.mount == "/")

    @property
    def root_type(self) -> str:
        return next(fs.type for _, _, fs in self.parts if fs.mount == "/")

    @property
    def firmware(self) -> bool:
        """Whether an HVM guest's firmware can start it."""
        return self.vdevs[0].boot

    @property
    def pygrub(self) -> bool:
        """Whether pygrub can read /boot of the first disk: ext2 or UFS1, and in a slice only at its first sector."""
        first = self.vdevs[0]
        return first.fs[0].type in ("ufs1", "ext2") and first.label_offset == 0

    @property
    def bytes(self) -> int:
        return sum(fs.bytes for _, _, fs in self.parts)


def available() -> dict[str, str]:
    """Names of the layouts, and what each is."""
    return {name: data["about"] for name, data in _data().items()}


def load(name: str, *, size: int = 0, bsize: int = 0) -> Layout:
    """The layout ``name``, with the root of ``size`` MiB and UFS blocks of ``bsize`` bytes where given. Raises UsageError."""
    data = _data()
    if name not in data:
        raise UsageError(f"no layout {name!r}", mend=f"there are: {', '.join(data)}")
    layout = parse(name, data[name])
    if bsize and bsize not in BLOCK_SIZES:
        raise UsageError(f"UFS blocks of {bsize} bytes", mend=f"one of {', '.join(map(str, BLOCK_SIZES))}")
    if size and not 32 <= size <= 1 << 20:
        raise UsageError(f"a root file system of {size} MiB", mend="32 at least")

    def change(fs: FileSystem) -> FileSystem:
        fs = replace(fs, size=size) if size and fs.mount == "/" else fs
        return replace(fs, bsize=bsize) if bsize and fs.type.startswith("ufs") else fs

    return replace(layout, vdevs=tuple(replace(disk, fs=tuple(map(change, disk.fs))) for disk in layout.vdevs))


def parse(name: str, data: dict[str, Any]) -> Layout:
    """Raises UsageError for a layout that cannot be."""
    try:
        vdevs = tuple(Vdev(**{**disk, "fs": tuple(FileSystem(**fs) for fs in disk["fs"])}) for disk in data["vdevs"])
        layout = Layout(name, data["about"], vdevs)
    except (KeyError, TypeError) as exc:
        raise UsageError(f"layout {name}: {exc}", mend="see images/freebsd/layouts.toml for the keys") from exc
    mounts = [fs.mount for _, _, fs in layout.parts if fs.mount != "none"]
    if mounts.count("/") != 1 or len(set(mounts)) != len(mounts):
        raise UsageError(f"layout {name} mounts {', '.join(mounts) or 'nothing'}", mend="give one / and every other once")
    if len({disk.name for disk in vdevs}) != len(vdevs):
        raise UsageError(f"layout {name} has a vdev twice")
    for disk in vdevs:
        if disk.table not in ("none", "mbr", "gpt") or disk.label_offset not in (0, 16):
            raise UsageError(f"layout {name}: table {disk.table!r}, label_offset {disk.label_offset}", mend="none, mbr, gpt; 0, 16")
        if disk.table == "none" and (len(disk.fs) != 1 or disk.boot):
            raise UsageError(f"layout {name}: {disk.name} has no table, so one file system and no boot code")
        for fs in disk.fs:
            if fs.type not in _TYPES:
                raise UsageError(f"layout {name}: file system type {fs.type!r}", mend=f"one of {', '.join(_TYPES)}")
    return layout


def _data() -> dict[str, dict[str, Any]]:
    return tomllib.loads((paths.project() / "images/freebsd/layouts.toml").read_text())
