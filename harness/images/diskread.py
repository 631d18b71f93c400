# SPDX-License-Identifier: BSD-2-Clause
"""Reads root device, kernel and version from a FreeBSD disk image. Opens the image for reading only.

    RawDisk (diskformat) -> partitions (parttable) -> volumes (volume, ufs, zfslabel, zfsfiles) -> root (rootfs) -> FoundRoot

All errors come before a guest boots. Each names the image, the partition and the fix.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import stamp
from harness.errors import UsageError
from harness.images import diskformat, entries, kernelfile, parttable, rootfs, volume, window, zfsfiles
from harness.images.diskformat import RawDisk
from harness.images.image import Image
from harness.images.inputs import Input, key_of
from harness.images.kernelfile import KernelFile
from harness.images.rootfs import Root
from harness.images.tables import SECTOR
from harness.images.ufs import BadFileSystem, Ufs
from harness.images.volume import Files, Volume
from harness.images.window import Window
from harness.safetext import plain

DISK = "xbd0"
"""FreeBSD's name of the disk xvda under Xen."""
UEFI_ONLY = "HVM by UEFI only (--firmware uefi): the disk has no boot code for a BIOS"
"""The note on a disk that only UEFI can start."""
# Raise when the same disk gives another manifest.
_READER = 1
# Files that are hashed in addition to those that were read: a suite compares them with the hashes that the guest computes.
_EXTRA_FILES = ("/bin/sh", "/sbin/init", "/lib/libc.so.7", "/libexec/ld-elf.so.1", "/boot/loader", "/etc/rc", "/etc/ttys")
_EXTRA_SIZE = 64 << 20


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


# -- as an image ------------------------------------------------------------------------------------------------------


def kernel_of(disk: RawDisk, at: FoundRoot, target: Path) -> KernelFile:
    """Write the kernel of a root to ``target`` and read it. Raises UsageError if it is missing or not FreeBSD's."""
    name = at.candidate.described
    path = at.system.kernel
    if not path:
        raise UsageError(
            f"{disk.given}: the root {name} has no kernel at {rootfs.kernels(at.system.loader)[0]}",
            hint="add --kernel FILE",
        )
    try:
        rootfs.extract(at.candidate.files, path, target)
    except BadFileSystem as exc:
        raise UsageError(f"{disk.given}: {path} of {name} cannot be read: {exc}", hint="add --kernel FILE") from None
    try:
        return kernelfile.read(target)
    except UsageError as exc:
        raise UsageError(
            f"{disk.given}: {exc.message.replace(str(target), path)}",
            hint="use an image of FreeBSD for amd64 with a complete kernel, or add --kernel FILE",
        ) from None


def types_of(disk: RawDisk, at: FoundRoot, kernel: KernelFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The guest types that the disk's own kernel supports, and the reasons against the others. Raises UsageError for none."""
    direct, why = list(kernel.types), []
    if not direct:
        why.append(f"no PVH: FreeBSD {kernel.version}'s kernel {at.system.kernel} has no Xen ELF notes (options XENHVM)")
    elif at.candidate.dataset and not kernel.zfs:
        why.append("no PVH: the root is on ZFS, and the kernel has ZFS as a module only, which needs the loader")
        direct = []
    hvm = bool(at.firmwares) and at.system.serial
    if not at.firmwares:
        why.append("no HVM: the disk has neither boot code nor an EFI system partition")
    elif not hvm:
        why.append("no HVM: its loader does not use the serial port (console or boot_multicons in /boot/loader.conf)")
    types = (*direct, *(["hvm"] if hvm else []))
    if not types:
        raise UsageError(
            f"{disk.given}: nothing can start it here: {'; '.join(why)}",
            hint="give a kernel with XENHVM" + (" and ZFS" if at.candidate.dataset else "") + ": --kernel FILE",
        )
    return types, tuple(why)


def read_image(path: Path, root: str = "") -> Image:
    """The disk image ``path`` as an image to run: read now, or found in the store by its content. The file is not copied.

    Raises UsageError for a disk that cannot run, InfrastructureError when the store's disk is full.
    """
    with diskformat.opened(path) as disk:

        def fill(work: Path) -> dict[str, Any]:
            started = time.monotonic()
            with open_root(disk, root) as at:
                kernel = kernel_of(disk, at, work / "kernel")
                types, why = types_of(disk, at, kernel)
                return manifest(disk, at, kernel, types, why, time.monotonic() - started)

        inputs = [Input("disk", disk.key, ""), Input("root", root, ""), Input("reader", str(_READER), "")]
        entry = entries.get_or_create("disks", key_of(*inputs), fill)
        return Image(disk.given.name, entry, disk.path, disk.given)


def manifest(
    disk: RawDisk, at: FoundRoot, kernel: KernelFile, types: tuple[str, ...], why: tuple[str, ...], seconds: float
) -> dict[str, Any]:
    """The manifest of an image that is a disk with its own kernel."""
    where = at.candidate.described
    # The hash is of the kernel that starts. If the disk has it compressed, no file of the guest has this hash.
    own = "" if at.system.kernel.endswith(".gz") else at.system.kernel
    return {
        "what": f"FreeBSD {kernel.version} of {disk.given.name}", "version": kernel.version, "branch": kernel.branch,
        "osreldate": kernel.osreldate, "machine": kernel.machine,
        "layout": "disk", "about": f"the disk {disk.given.name}, root on {where}", "types": list(types),
        **root_of(at.root), "root_device": at.candidate.volume.part.name,
        "root_label": at.candidate.volume.fs.label if at.candidate.volume.fs else "", "firmwares": list(at.firmwares) if "hvm" in types else [],
        "why_not": list(why), "modules": list(at.system.modules), "pygrub": False, "kernel": {"sha256": kernel.sha256, "path": own}, "world": "",
        "files": file_hashes(at, kernel), "disks": [{"file": "", "vdev": "xvda", "format": "raw", "slot": -1}],
        "inputs": [vars(Input("disk", disk.key, str(disk.given)))], "built": stamp.now(), "seconds": round(seconds, 2),
    }  # fmt: skip


def file_hashes(at: FoundRoot, kernel: KernelFile) -> dict[str, str]:
    """sha256 by path of the files that were read, and of some others: the running guest must compute the same."""
    hashes = {path: hashlib.sha256(text).hexdigest() for path, text in at.system.texts.items()}
    if not at.system.kernel.endswith(".gz"):
        hashes[at.system.kernel] = kernel.sha256
    for path in _EXTRA_FILES:
        digest = hashlib.sha256()
        try:
            for block in at.candidate.files.blocks(path, _EXTRA_SIZE):
                digest.update(block)
        except BadFileSystem:
            continue
        hashes[path] = digest.hexdigest()
    return hashes


def check_types(image: Image, wanted: Sequence[str]) -> None:
    """Raise UsageError if a disk cannot run as any of the ``wanted`` guest types (empty: all types are fine)."""
    why = image.data.get("why_not")
    if why and wanted and not any(word in image.types for word in wanted):
        raise UsageError(
            f"{image.name} cannot run as {', '.join(wanted)}: {'; '.join(why)}",
            hint=f"--type {image.types[0]}, or another kernel: --kernel FILE",
        )


def print_summary(image: Image) -> None:
    """Print the result of reading a disk on standard error."""
    data = image.data
    on_zfs = " (ZFS)" if str(data["mountfrom"]).startswith("zfs:") else ""
    print(
        f"{image.name}: FreeBSD {data['version']} {data['machine']}, root {data['root']}{on_zfs}, {'/'.join(data['types'])}",
        file=sys.stderr,
    )
    if data["firmwares"] == ["uefi"]:
        print(f"     {UEFI_ONLY}", file=sys.stderr)
    if data["modules"] and "pvh" in data["types"]:
        print(f"     as PVH without the modules of its loader.conf: {', '.join(data['modules'])}", file=sys.stderr)
    for line in data["why_not"]:
        print(plain(f"     {line}"), file=sys.stderr)
