# SPDX-License-Identifier: BSD-2-Clause
"""Finds the root of a FreeBSD disk image. Opens the image for reading only.

    RawDisk (diskformat) -> partitions (parttable) -> volumes (volume, ufs, zfslabel, zfsfiles) -> root (rootfs) -> FoundRoot

All errors come before a guest boots. Each names the image, the partition and the fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from harness.errors import UsageError
from harness.images import parttable, rootfs, volume, window, zfsfiles
from harness.images.diskformat import RawDisk
from harness.images.rootfs import Root
from harness.images.tables import SECTOR
from harness.images.ufs import Ufs
from harness.images.volume import Files, Volume
from harness.images.window import Window

DISK = "xbd0"
"""FreeBSD's name of the disk xvda under Xen."""


class NoFreeBSD(UsageError):
    """No file system of the disk is a root."""


@dataclass(frozen=True)
class Candidate:
    """A file system that can be a root. ``dataset`` is the full name of a ZFS dataset, "" for a UFS."""

    volume: Volume
    files: Files
    dataset: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The values of --root that select it."""
        return (f"zfs:{self.dataset}",) if self.dataset else self.volume.names

    @property
    def described(self) -> str:
        return f"zfs:{self.dataset} on {self.volume.part.name}" if self.dataset else self.volume.described


@dataclass(frozen=True)
class FoundRoot:
    """The root of a disk. ``root`` is the name for ``vfs.root.mountfrom``: ``xbd0p4``, ``gpt/rootfs``, ``zfs:zroot/ROOT/default``.

    ``firmwares`` is a subset of ``("bios", "uefi")``: the firmwares that can start the disk.
    """

    candidate: Candidate
    system: Root
    root: str
    firmwares: tuple[str, ...]


@contextmanager
def open_root(disk: RawDisk, root: str = "") -> Iterator[FoundRoot]:
    """Yield the root of ``disk``, open for reading; ``root`` selects one of several. Raises UsageError if none can be read."""
    with ExitStack() as stack:
        whole = stack.enter_context(window.opened(disk.path))
        volumes = _volumes(disk, whole)
        candidates = _roots(disk, volumes, stack)
        chosen = _choose(disk, candidates, volumes, root)
        _check_complete(disk, chosen.volume)
        _check_clean(disk, chosen)
        if not root:
            _check_sectors(disk, chosen.volume)
        system = rootfs.read(chosen.files)
        device = _device(disk, chosen, system, root)
        yield FoundRoot(chosen, system, device, _firmwares(whole, volumes))


def firmwares(disk: RawDisk) -> tuple[str, ...]:
    """The firmwares of ``("bios", "uefi")`` that can start ``disk``. Raises UsageError for an unreadable partition table."""
    with window.opened(disk.path) as whole:
        return _firmwares(whole, _volumes(disk, whole))


def _firmwares(whole: Window, volumes: list[Volume]) -> tuple[str, ...]:
    uefi = any(item.part.type == "efi" and item.kind == "FAT" for item in volumes)
    return (*(["bios"] if parttable.boot_code(whole) else []), *(["uefi"] if uefi else []))


def _volumes(disk: RawDisk, whole: Window) -> list[Volume]:
    try:
        parts = parttable.partitions(whole, DISK)
    except UsageError as exc:
        raise UsageError(f"{disk.given}: {exc.message}", hint=exc.hint) from None
    return [volume.inspect(whole, part) for part in parts]


def _roots(disk: RawDisk, volumes: list[Volume], stack: ExitStack) -> list[Candidate]:
    """All file systems of the disk that can be a root."""
    candidates: list[Candidate] = []
    for item in volumes:
        if item.fs is not None:
            files = Ufs(item.window, item.fs)
            if rootfs.is_root(files):
                candidates.append(Candidate(item, files))
        elif item.pool is not None and item.pool.state == "exported" and item.pool.alone:
            top = stack.enter_context(zfsfiles.opened(disk.path, item.window, item.part, item.part.name == DISK))
            candidates += [
                Candidate(item, files, f"{item.pool.name}/{files.dataset}".rstrip("/"))
                for files in _datasets(top)
                if rootfs.is_root(files)
            ]
    return candidates


def _datasets(top: zfsfiles.ZfsFiles) -> Iterator[zfsfiles.ZfsFiles]:
    """The datasets that can be a root: the top one of the pool, and boot environments (those below ROOT; bectl(8))."""
    yield top
    if "ROOT" in top.datasets():
        parent = zfsfiles.ZfsFiles(top.image, top.device, "ROOT")
        for name in parent.datasets():
            yield zfsfiles.ZfsFiles(top.image, top.device, f"ROOT/{name}")


def _choose(disk: RawDisk, candidates: list[Candidate], volumes: list[Volume], root: str) -> Candidate:
    wanted = root.removeprefix("ufs:").removeprefix("/dev/")
    if wanted:
        chosen = [item for item in candidates if wanted in item.names]
        if len(chosen) == 1:
            return chosen[0]
        names = ", ".join(name for item in candidates for name in item.names) or "none"
        raise UsageError(
            f"{disk.given}: --root {root} is not a FreeBSD root of this disk ({names})",
            hint="name one of these; with --kernel FILE the harness does not check --root",
        )
    # The bootfs property of a pool cannot be read here. The loader's configuration can name the boot environment.
    if len(candidates) > 1:
        named = {rootfs.read(item.files).loader.get("vfs.root.mountfrom", "") for item in candidates if item.dataset}
        chosen = [item for item in candidates if item.dataset and item.names[0] in named]
        if len(chosen) == 1 and len(named) == 1:
            return chosen[0]
        raise UsageError(
            f"{disk.given}: two or more roots: {', '.join(item.described for item in candidates)}",
            hint=f"select one: --root {candidates[0].names[0]}",
        )
    if not candidates:
        raise _no_root_error(disk, volumes)
    return candidates[0]


def _no_root_error(disk: RawDisk, volumes: list[Volume]) -> UsageError:
    """The reason why no root of the disk can be read."""
    for item in volumes:
        _check_complete(disk, item)
        pool = item.pool
        if pool is not None and pool.state != "exported":
            return UsageError(
                f"{disk.given}: the ZFS pool {pool.name} on {item.part.name} was not cleanly exported (it is {pool.state})",
                hint=f"export it: zpool import -N {pool.name} && zpool export {pool.name}, on a system that has the disk; or skip "
                f"this check: --kernel FILE --root zfs:{pool.name}/ROOT/default",
            )
        if pool is not None and not pool.alone:
            return UsageError(
                f"{disk.given}: the ZFS pool {pool.name} on {item.part.name} needs more disks ({pool.layout}, {pool.vdevs} vdevs)",
                hint="use an image of a pool with one disk",
            )
    unread = [item.part.name for item in volumes if item.part.type == "freebsd-zfs" and item.pool is None and item.kind != "geli"]
    if unread:
        return UsageError(
            f"{disk.given}: its root is in a ZFS pool on {', '.join(unread)}, which has no readable label",
            hint="check that the image is complete; or skip this check: --kernel FILE --root zfs:POOL/ROOT/default",
        )
    encrypted = [item.part.name for item in volumes if item.kind in ("geli", "LUKS (encrypted)")]
    if encrypted:
        return UsageError(
            f"{disk.given}: {', '.join(encrypted)} is encrypted (GELI), and no other root is on the disk",
            hint="use an image whose root is not encrypted: the harness can neither read nor unlock GELI",
        )
    return NoFreeBSD(
        f"{disk.given}: no FreeBSD on it; it has {', '.join(item.described for item in volumes[:12])}",
        hint="use an image with a FreeBSD root on UFS or ZFS (an installer's CD has none); or skip this check: --kernel FILE --root DEVICE",
    )


def _check_complete(disk: RawDisk, item: Volume) -> None:
    """Raise UsageError for a UFS that is larger than its partition or than the image: then files are missing."""
    if item.fs is not None and item.fs.size > item.window.size:
        raise UsageError(
            f"{disk.given}: the UFS on {item.part.name} has {item.fs.size >> 10} KiB, but the image has only {item.window.size >> 10} KiB of it",
            hint=f"the image is truncated: fetch or copy it again; or skip this check: --kernel FILE --root {item.part.name}",
        )


def _check_clean(disk: RawDisk, chosen: Candidate) -> None:
    """Raise UsageError for a UFS that was not unmounted, or whose journal was not replayed."""
    fs, name = chosen.volume.fs, chosen.volume.part.name
    if fs is not None and fs.pending:
        raise UsageError(
            f"{disk.given}: the UFS on {name} is not clean: {fs.pending}",
            hint=f"shut its system down cleanly before you take the image, or run fsck_ffs -y on {name}; or skip this check: "
            f"--kernel FILE --root {name}",
        )


def _check_sectors(disk: RawDisk, item: Volume) -> None:
    """Raise UsageError for sectors other than 512 bytes, which the backends of Linux and QEMU give a file-backed disk."""
    part = item.part
    if part.sector != SECTOR:
        raise UsageError(
            f"{disk.given}: its table is for sectors of {part.sector} bytes. A file-backed disk has sectors of {SECTOR} in a Xen guest, "
            f"so the guest would not find {item.described}",
            hint=f"copy the partitions to a disk with sectors of {SECTOR} bytes; if the hosts' storage has sectors of {part.sector}: --root {part.name}",
        )


def _device(disk: RawDisk, chosen: Candidate, system: Root, root: str) -> str:
    """The name of the root for the kernel: that of fstab, because `mount -uw /` in rc(8) requires it (sbin/mount/mount.c)."""
    if chosen.dataset:
        return _checked(disk, f"zfs:{chosen.dataset}", chosen)
    own = chosen.volume.names
    if root:
        return root.removeprefix("ufs:").removeprefix("/dev/")
    if not system.fstab:
        return own[0]
    if system.fstab in own or system.fstab.partition("/")[0] in ("gptid", "ufsid", "diskid"):
        return _checked(disk, system.fstab, chosen)
    raise UsageError(
        f"{disk.given}: its /etc/fstab has / on /dev/{system.fstab}, which a Xen guest does not have: there it is {', '.join(own)}",
        hint=f"write /dev/{own[-1]} into the image's fstab; --root {own[0]} boots it up to single-user mode",
    )


# gpt/rootfs    gptid/65bff1a1-9fd6-11ef    zfs:zroot/ROOT/default    gpt/EFI%20System
_ROOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+@%-]{0,254}")


def _checked(disk: RawDisk, device: str, chosen: Candidate) -> str:
    """``device``. Raises UsageError for a name that vfs.root.mountfrom cannot have (sys/kern/vfs_mountroot.c)."""
    if not _ROOT_NAME.fullmatch(device):
        raise UsageError(
            f"{disk.given}: the kernel cannot be told the root {device[:255]!r}: its name has other characters than letters, digits and _.:/+@%-",
            hint="rename it in the image" + ("" if chosen.dataset else f"; --root {chosen.volume.part.name} boots it"),
        )
    return device


def root_of(device: str) -> dict[str, str]:
    """The root in a manifest: ``root`` is a device or dataset, ``mountfrom`` the value of vfs.root.mountfrom."""
    return {"root": device.removeprefix("zfs:"), "mountfrom": device if device.startswith("zfs:") else f"ufs:/dev/{device}"}


def root_device(disk: RawDisk, root: str = "") -> str:
    """The root device of a disk that boots with another kernel. Returns ``root`` unread if it is given.

    A disk without a known root may have one that only this kernel supports. The result is then its first UFS, or else the whole
    disk. Raises UsageError as :func:`open_root` does in all other cases.
    """
    if root:
        return root.removeprefix("ufs:").removeprefix("/dev/")
    try:
        with open_root(disk) as at:
            return at.root
    except NoFreeBSD:
        with window.opened(disk.path) as whole:
            volumes = _volumes(disk, whole)
        chosen = next((item for item in volumes if item.fs is not None), None)
        if chosen is None:
            return DISK
        _check_sectors(disk, chosen)
        return chosen.part.name
