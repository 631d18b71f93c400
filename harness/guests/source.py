# SPDX-License-Identifier: BSD-2-Clause
"""The source of a guest: a kernel, a ramdisk, disks, and its OS."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.digest import known_sha256
from harness.guests.os.base import GuestOS
from harness.images import loader_conf_slot as slots
from harness.images.debugfile import KernelSymbols
from harness.xen.firmware import BIOS, UEFI

NO_ESP_HINT = "choose an image whose layout has an EFI system partition (`fxh image layouts`), or --firmware bios"


@dataclass(frozen=True)
class DiskImage:
    """An image file on this machine and its vdev in the guest."""

    path: Path
    vdev: str = "xvda"
    format: str = "raw"
    readonly: bool = False
    slot: int = -1
    """Byte offset of the slot for kernel variables (see harness.images.loader_conf_slot), -1 if there is none."""


@dataclass(frozen=True)
class GuestSource:
    """The files of a guest. ``label`` names it in logs and domains (``freebsd-13.2``, ``control``).

    ``root`` is the guest's root: a device (``xbd0p2``), or a value of vfs.root.mountfrom (``zfs:zroot/ROOT/default``).
    """

    label: str
    os: GuestOS
    kernel: Path | None = None
    ramdisk: Path | None = None
    unpacked: tuple[Path, Path] | None = None
    """Kernel and ramdisk uncompressed: Xen's toolstack unpacks a bzImage for each domain, each guest unpacks its ramdisk."""
    disks: tuple[DiskImage, ...] = ()
    root: str = ""
    memory: int = 512
    """MiB."""
    bootloader: str = ""
    """``pygrub``: the kernel comes from the first disk; ``kernel`` is a copy of it."""
    pygrub: bool = True
    """Whether pygrub can read /boot on the first disk: not on UFS2, on ZFS, or behind another file system."""
    own_variables: tuple[tuple[str, str], ...] = ()
    """Kernel variables in the bootloader's own configuration."""
    image: str = ""
    """The image's name, if it is in the store."""
    firmwares: tuple[str, ...] = (BIOS,)
    """Firmwares that can start the first disk as HVM: ``bios``, ``uefi`` (its partition table has an EFI system partition)."""
    given: Path | None = None
    """The file given for the first disk: raw, qcow2, or either in xz."""
    symbols: tuple[Path, ...] = ()
    """Files with debugging information that the user gave."""
    world: str = ""
    """The release of the userland if it is not the kernel's, for example ``13.2`` under a kernel 15.1."""

    def disks_with(self, variables: Mapping[str, str]) -> tuple[DiskImage, ...]:
        """The disks of an HVM guest whose loader gives the kernel ``variables``. Raises UsageError if they exceed the slot."""
        if not any(disk.slot >= 0 for disk in self.disks):
            return self.disks
        return tuple(
            replace(disk, path=slots.variant(disk.path, disk.slot, variables)) if disk.slot >= 0 else disk for disk in self.disks
        )

    @property
    def why_no_uefi(self) -> str:
        """The reason why UEFI cannot start it, or ""."""
        return "" if UEFI in self.firmwares else f"{self.label}: UEFI cannot start it: its disk has no EFI system partition"

    @property
    def why_no_bios(self) -> str:
        """The reason why a BIOS cannot start it, or ""."""
        return "" if BIOS in self.firmwares else f"{self.label}: only UEFI can start it: its disk has no boot code for a BIOS"

    @cached_property
    def bits(self) -> int:
        """Of the kernel: 32 or 64; 0 if unknown."""
        return self.os.kernel_bits(self.kernel) if self.kernel else 0

    @property
    def kernel_symbols(self) -> KernelSymbols | None:
        """The symbols of its kernel, which are those of the ELF file in a compressed one; None if no kernel file is known."""
        kernel = self.unpacked[0] if self.unpacked else self.kernel
        return KernelSymbols(kernel, self.symbols) if kernel is not None else None

    def loaded(self, emulated: bool) -> tuple[Path | None, Path | None]:
        """Kernel and ramdisk for Xen's toolstack. A real dom0 gets them compressed, because it unpacks faster than it receives."""
        return self.unpacked if emulated and self.unpacked else (self.kernel, self.ramdisk)

    @property
    def key(self) -> str:
        """Identity by content: hashes of the files. A file is hashed again only if it has changed."""
        digest = hashlib.sha256(f"{self.label} {self.os.name} {self.root} {self.bootloader}\n".encode())
        for path in (self.kernel, self.ramdisk, *(disk.path for disk in self.disks)):
            if path is not None:
                digest.update(known_sha256(path).encode())
        for disk in self.disks:
            digest.update(f"{disk.vdev} {disk.format} {disk.readonly}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs of a run in reports: file names with their sha256."""

        found = {"image": self.image} if self.image else {}
        if self.world:
            found["world"] = f"{self.os.title} {self.world}"
        files = (("kernel", self.kernel), ("ramdisk", self.ramdisk), ("disk", self.given))
        for what, path in (*files, *((d.vdev, d.path) for d in self.disks)):
            if path is not None:
                found[what] = f"{path.name} sha256:{known_sha256(path)}"
        return found
