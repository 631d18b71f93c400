# SPDX-License-Identifier: BSD-2-Clause
"""Everything that a run needs of a FreeBSD disk image alone: its root device, its kernel, its version. The image is only read.

    RawDisk (diskformat) -> partitions (parttable) -> volumes (volume, ufs, zfslabel, zfsfiles) -> root (rootfs) -> Found

Nothing is booted before all of it is known; every message names the image, the partition, and what to do.
"""

from __future__ import annotations

import hashlib
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

DISK = "xbd0"
"""What FreeBSD calls the disk under Xen, as xvda."""
UEFI_ALONE = "HVM by UEFI alone (--firmware uefi): the disk has no boot code for a BIOS"
"""What to say of a disk whose only firmware is UEFI."""
# Raise when the same disk is read as something else.
_READER = 1
# Files that are hashed beside those that were read: with them a suite proves that the reader reads what the guest reads.
_WITNESSES = ("/bin/sh", "/sbin/init", "/lib/libc.so.7", "/libexec/ld-elf.so.1", "/boot/loader", "/etc/rc", "/etc/ttys")
_WITNESS_SIZE = 64 << 20


class NoFreeBSD(UsageError):
    """No file system of the disk is a system's root."""


@dataclass(frozen=True)
class Candidate:
    """A file system that a system can have as its root. ``dataset`` is the ZFS dataset's whole name, "" for a UFS."""

    volume: Volume
    files: Files
    dataset: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What --root may call it."""
        return (f"zfs:{self.dataset}",) if self.dataset else self.volume.names

    @property
    def described(self) -> str:
        return f"zfs:{self.dataset} on {self.volume.part.name}" if self.dataset else self.volume.described


@dataclass(frozen=True)
class Found:
    """The one root of a disk. ``root`` is what ``vfs.root.mountfrom`` names: ``xbd0p4``, ``gpt/rootfs``, ``zfs:zroot/ROOT/default``.

    ``firmwares``: those of ``bios`` and ``uefi`` that find something to start on the disk.
    """

    candidate: Candidate
    system: Root
    root: str
    firmwares: tuple[str, ...]


@contextmanager
def found(disk: RawDisk, root: str = "") -> Iterator[Found]:
    """The root of ``disk`` while it is open; ``root`` chooses one of several. Raises UsageError (see the module)."""
    with ExitStack() as stack:
        whole = stack.enter_context(window.opened(disk.path))
        volumes = _volumes(disk, whole)
        candidates = _roots(disk, volumes, stack)
        chosen = _choose(disk, candidates, volumes, root)
        _sound(disk, chosen)
        if not root:
            _sectors(disk, chosen.volume)
        system = rootfs.read(chosen.files)
        device = _device(disk, chosen, system, root)
        yield Found(chosen, system, device, _firmwares(whole, volumes))


def firmwares(disk: RawDisk) -> tuple[str, ...]:
    """Those of ``bios`` and ``uefi`` that find something to start on ``disk``. Raises UsageError for a table that cannot be read."""
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
    return [volume.look(whole, part) for part in parts]


def _roots(disk: RawDisk, volumes: list[Volume], stack: ExitStack) -> list[Candidate]:
    """All file systems of the disk that a system can have as its root."""
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
    """The datasets that can be a root: the pool's own, and boot environments (bectl(8): those below ROOT)."""
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
        there = ", ".join(name for item in candidates for name in item.names) or "none"
        raise UsageError(
            f"{disk.given}: --root {root} is none of the FreeBSD roots on it ({there})",
            hint="name one of these; with --kernel FILE any --root is taken as it is",
        )
    # A pool whose bootfs nobody can read here: the loader's configuration can say which boot environment is meant.
    if len(candidates) > 1:
        named = {rootfs.read(item.files).loader.get("vfs.root.mountfrom", "") for item in candidates if item.dataset}
        chosen = [item for item in candidates if item.dataset and item.names[0] in named]
        if len(chosen) == 1 and len(named) == 1:
            return chosen[0]
        raise UsageError(
            f"{disk.given}: two or more roots: {', '.join(item.described for item in candidates)}",
            hint=f"say which: --root {candidates[0].names[0]}",
        )
    if not candidates:
        raise _nothing(disk, volumes)
    return candidates[0]


def _nothing(disk: RawDisk, volumes: list[Volume]) -> UsageError:
    """Why a disk has no root that can be read."""
    for item in volumes:
        pool = item.pool
        if pool is not None and pool.state != "exported":
            return UsageError(
                f"{disk.given}: the ZFS pool {pool.name} on {item.part.name} was not cleanly exported (it is {pool.state})",
                hint=f"export it: zpool import -N {pool.name} && zpool export {pool.name}, on a system that has the disk; or boot it "
                f"as it is: --kernel FILE --root zfs:{pool.name}/ROOT/default",
            )
        if pool is not None and not pool.alone:
            return UsageError(
                f"{disk.given}: the ZFS pool {pool.name} on {item.part.name} needs more disks ({pool.layout}, {pool.vdevs} vdevs)",
                hint="a pool of one disk can be read; make an image of one",
            )
    unread = [item.part.name for item in volumes if item.part.type == "freebsd-zfs" and item.pool is None and item.kind != "geli"]
    if unread:
        return UsageError(
            f"{disk.given}: its root is in a ZFS pool on {', '.join(unread)}, and no label of a pool can be read there",
            hint="is the image whole? Otherwise name root and kernel, unread: --kernel FILE --root zfs:POOL/ROOT/default",
        )
    encrypted = [item.part.name for item in volumes if item.kind in ("geli", "LUKS (encrypted)")]
    if encrypted:
        return UsageError(
            f"{disk.given}: {', '.join(encrypted)} is encrypted (GELI), and no other root is on the disk",
            hint="give an image whose root is not encrypted; a GELI root can be neither read here nor unlocked in a run",
        )
    return NoFreeBSD(
        f"{disk.given}: no FreeBSD on it; it has {', '.join(item.described for item in volumes[:12])}",
        hint="give an image with a FreeBSD root on UFS or ZFS (an installer's CD has none); or --kernel FILE --root DEVICE, unread",
    )


def _sound(disk: RawDisk, chosen: Candidate) -> None:
    fs, name = chosen.volume.fs, chosen.volume.part.name
    if fs is not None and fs.pending:
        raise UsageError(
            f"{disk.given}: the UFS on {name} is not as it should be: {fs.pending}",
            hint=f"shut its system down cleanly before the image is taken, or run fsck_ffs -y on {name}; --kernel FILE --root {name} boots "
            "it as it is",
        )


def _sectors(disk: RawDisk, item: Volume) -> None:
    """Refuse a table that the guest would not find: Linux's and QEMU's backends give a disk that is a file sectors of 512 bytes."""
    part = item.part
    if part.sector != SECTOR:
        raise UsageError(
            f"{disk.given}: its table counts in sectors of {part.sector} bytes, and Xen gives a guest's disk that is a file sectors of "
            f"{SECTOR}: the guest would not find {item.described}",
            hint=f"copy the partitions to a disk with sectors of {SECTOR} bytes; where the hosts' storage has such sectors: --root {part.name}",
        )


def _device(disk: RawDisk, chosen: Candidate, system: Root, root: str) -> str:
    """What the kernel is told to mount: what fstab names, since `mount -uw /` of rc(8) insists on that (sbin/mount/mount.c)."""
    if chosen.dataset:
        return f"zfs:{chosen.dataset}"
    own = chosen.volume.names
    if root:
        return root.removeprefix("ufs:").removeprefix("/dev/")
    if not system.fstab:
        return own[0]
    if system.fstab in own or system.fstab.partition("/")[0] in ("gptid", "ufsid", "diskid"):
        return system.fstab
    raise UsageError(
        f"{disk.given}: its /etc/fstab has / on /dev/{system.fstab}, which a Xen guest does not have: there it is {', '.join(own)}",
        hint=f"name it by a label in the image's fstab (/dev/{own[-1]}); --root {own[0]} boots it all the same, up to single-user mode",
    )


def root_of(device: str) -> dict[str, str]:
    """The root as a manifest has it: ``root`` is a device or a dataset, ``mountfrom`` the value of vfs.root.mountfrom."""
    return {"root": device.removeprefix("zfs:"), "mountfrom": device if device.startswith("zfs:") else f"ufs:/dev/{device}"}


def root_device(disk: RawDisk, root: str = "") -> str:
    """The root device of a disk that is booted with a kernel from elsewhere: ``root`` where it is given, and nothing is read then.

    A disk without a system's root may have one that only this kernel knows: then its first UFS is taken, else the whole disk.
    Raises UsageError as :func:`found` does for all else.
    """
    if root:
        return root.removeprefix("ufs:").removeprefix("/dev/")
    try:
        with found(disk) as at:
            return at.root
    except NoFreeBSD:
        with window.opened(disk.path) as whole:
            volumes = _volumes(disk, whole)
        chosen = next((item for item in volumes if item.fs is not None), None)
        if chosen is None:
            return DISK
        _sectors(disk, chosen)
        return chosen.part.name


# -- as an image ------------------------------------------------------------------------------------------------------


def kernel_of(disk: RawDisk, at: Found, target: Path) -> KernelFile:
    """Write the kernel of a root to ``target`` and look at it. Raises UsageError for none, or one that is no FreeBSD's."""
    name = at.candidate.described
    path = at.system.kernel
    if not path:
        raise UsageError(
            f"{disk.given}: the root {name} has no kernel at {rootfs.kernels(at.system.loader)[0]}",
            hint="give one: --kernel FILE",
        )
    try:
        rootfs.extract(at.candidate.files, path, target)
    except BadFileSystem as exc:
        raise UsageError(f"{disk.given}: {path} of {name} cannot be read: {exc}", hint="give the kernel: --kernel FILE") from None
    try:
        return kernelfile.look(target)
    except UsageError as exc:
        raise UsageError(f"{disk.given}: {exc.message.replace(str(target), path)}", hint=exc.hint) from None


def types_of(disk: RawDisk, at: Found, kernel: KernelFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The guest types that a disk can run as with its own kernel, and in words why not as others. Raises UsageError for none."""
    direct, why = list(kernel.types), []
    if not direct:
        why.append(f"no PVH: FreeBSD {kernel.version}'s kernel {at.system.kernel} has no Xen ELF notes (options XENHVM)")
    elif at.candidate.dataset and not kernel.zfs:
        why.append("no PVH: the root is on ZFS, the kernel has it as a module only, and without the loader nobody loads that")
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


def take(path: Path, root: str = "") -> Image:
    """The disk image ``path`` as an image to run: read now, or known from before by its content. The file stays where it is.

    Raises UsageError for a disk that cannot be run, InfrastructureError when the store has no room.
    """
    with diskformat.opened(path) as disk:

        def make(work: Path) -> dict[str, Any]:
            begun = time.monotonic()
            with found(disk, root) as at:
                kernel = kernel_of(disk, at, work / "kernel")
                types, why = types_of(disk, at, kernel)
                return manifest(disk, at, kernel, types, why, time.monotonic() - begun)

        inputs = [Input("disk", disk.key, ""), Input("root", root, ""), Input("reader", str(_READER), "")]
        entry = entries.get_or_create("disks", key_of(*inputs), make)
        return Image(disk.given.name, entry, disk.path, disk.given)


def manifest(
    disk: RawDisk, at: Found, kernel: KernelFile, types: tuple[str, ...], why: tuple[str, ...], seconds: float
) -> dict[str, Any]:
    """The manifest of an image that is a disk with its own kernel (``kernel.path`` tells that)."""
    where = at.candidate.described
    # The kernel's hash is of what is started: no file of the guest has it where the kernel is packed.
    own = "" if at.system.kernel.endswith(".gz") else at.system.kernel
    return {
        "what": f"FreeBSD {kernel.version} of {disk.given.name}", "version": kernel.version, "branch": kernel.branch,
        "osreldate": kernel.osreldate, "machine": kernel.machine,
        "layout": "disk", "about": f"the disk {disk.given.name}, root on {where}", "types": list(types),
        **root_of(at.root), "root_device": at.candidate.volume.part.name,
        "root_label": at.candidate.volume.fs.label if at.candidate.volume.fs else "", "firmwares": list(at.firmwares) if "hvm" in types else [],
        "why_not": list(why), "modules": list(at.system.modules), "pygrub": False, "kernel": {"sha256": kernel.sha256, "path": own}, "world": "",
        "files": files(at, kernel), "disks": [{"file": "", "vdev": "xvda", "format": "raw", "slot": -1}],
        "inputs": [vars(Input("disk", disk.key, str(disk.given)))], "built": stamp.now(), "seconds": round(seconds, 2),
    }  # fmt: skip


def files(at: Found, kernel: KernelFile) -> dict[str, str]:
    """sha256 of the files that were read, and of some more, by their paths: the guest has to find the same."""
    hashes = {path: hashlib.sha256(text).hexdigest() for path, text in at.system.texts.items()}
    if not at.system.kernel.endswith(".gz"):
        hashes[at.system.kernel] = kernel.sha256
    for path in _WITNESSES:
        digest = hashlib.sha256()
        try:
            for block in at.candidate.files.blocks(path, _WITNESS_SIZE):
                digest.update(block)
        except BadFileSystem:
            continue
        hashes[path] = digest.hexdigest()
    return hashes


def check_types(image: Image, wanted: Sequence[str]) -> None:
    """Raises UsageError when a disk that was read can run as none of the ``wanted`` guest types (none: as all it can)."""
    why = image.data.get("why_not")
    if why and wanted and not any(word in image.types for word in wanted):
        raise UsageError(
            f"{image.name} cannot run as {', '.join(wanted)}: {'; '.join(why)}",
            hint=f"--type {image.types[0]}, or another kernel: --kernel FILE",
        )


def tell(image: Image) -> None:
    """Say on standard error what was found on a disk."""
    data = image.data
    on_zfs = " (ZFS)" if str(data["mountfrom"]).startswith("zfs:") else ""
    print(
        f"{image.name}: FreeBSD {data['version']} {data['machine']}, root {data['root']}{on_zfs}, {'/'.join(data['types'])}",
        file=sys.stderr,
    )
    if data["firmwares"] == ["uefi"]:
        print(f"     {UEFI_ALONE}", file=sys.stderr)
    if data["modules"] and "pvh" in data["types"]:
        print(f"     as PVH without the modules of its loader.conf: {', '.join(data['modules'])}", file=sys.stderr)
    for line in data["why_not"]:
        print(f"     {line}", file=sys.stderr)
