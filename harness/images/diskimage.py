# SPDX-License-Identifier: BSD-2-Clause
"""A FreeBSD disk image as an image to run: its kernel, guest types and hashes. The disk is opened for reading only."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import stamp
from harness.errors import UsageError
from harness.images import diskformat, diskread, entries, kernelfile, rootfs
from harness.images.diskformat import RawDisk
from harness.images.diskread import FoundRoot
from harness.images.image import Image
from harness.images.inputs import Input, key_of
from harness.images.kernelfile import KernelFile
from harness.images.ufs import BadFileSystem
from harness.safetext import plain

UEFI_ONLY = "HVM by UEFI only (--firmware uefi): the disk has no boot code for a BIOS"
"""The note on a disk that only UEFI can start."""
# Raise when the same disk gives another manifest.
_READER = 1
# Files that are hashed in addition to those that were read: a suite compares them with the hashes that the guest computes.
_EXTRA_FILES = ("/bin/sh", "/sbin/init", "/lib/libc.so.7", "/libexec/ld-elf.so.1", "/boot/loader", "/etc/rc", "/etc/ttys")
_EXTRA_SIZE = 64 << 20


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
            with diskread.open_root(disk, root) as at:
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
        **diskread.root_of(at.root), "root_device": at.candidate.volume.part.name,
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
