# SPDX-License-Identifier: BSD-2-Clause
"""What is booted: a kernel, a ramdisk, disks, and the profile of what runs in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.digest import known_sha256
from harness.guests.os.base import GuestOS
from harness.images import loader_conf_slot as slots
from harness.xen.firmware import BIOS, UEFI

NO_ESP_MEND = "take an image whose layout has an EFI system partition (`fxh image layouts`), or --firmware bios"


@dataclass(frozen=True)
class DiskImage:
    """An image file on this machine and where the guest shall find it."""

    path: Path
    vdev: str = "xvda"
    format: str = "raw"
    readonly: bool = False
    slot: int = -1
    """Byte offset of the place for kernel variables (see harness.images.loader_conf_slot), -1 where there is none."""


@dataclass(frozen=True)
class GuestSource:
    """A guest to be: ``label`` names it in logs and domains (``freebsd-13.2``, ``control``).

    ``root`` is the guest's root: a device (``xbd0p2``), or a value of vfs.root.mountfrom (``zfs:zroot/ROOT/default``).
    """

    label: str
    profile: GuestOS
    kernel: Path | None = None
    ramdisk: Path | None = None
    unpacked: tuple[Path, Path] | None = None
    """Kernel and ramdisk as they are in memory: a bzImage Xen's toolstack unpacks anew for each domain, a ramdisk each guest."""
    disks: tuple[DiskImage, ...] = ()
    root: str = ""
    memory: int = 512
    """MiB."""
    bootloader: str = ""
    """``pygrub``: the kernel comes from the first disk, ``kernel`` is only known to be the same."""
    pygrub: bool = True
    """False when pygrub cannot read /boot on the first disk (UFS2, ZFS, a file system behind another)."""
    own_variables: tuple[tuple[str, str], ...] = ()
    """Kernel variables that the bootloader's configuration gives by itself."""
    image: str = ""
    """The image's name, where it is one of the store's."""
    firmwares: tuple[str, ...] = (BIOS,)
    """Firmwares that can start the first disk as HVM: ``bios``, ``uefi`` (its partition table has an EFI system partition)."""
    given: Path | None = None
    """The file that the first disk came in, where somebody gave it: raw, qcow2, perhaps in xz."""
    world: str = ""
    """The release of the guest's programs where it is not the kernel's, for example ``13.2`` under a kernel 15.1."""

    def disks_with(self, variables: Mapping[str, str]) -> tuple[DiskImage, ...]:
        """The disks for an HVM guest: its loader gives the kernel ``variables``. Raises UsageError when there is no place."""
        if not any(disk.slot >= 0 for disk in self.disks):
            return self.disks
        return tuple(
            replace(disk, path=slots.variant(disk.path, disk.slot, variables)) if disk.slot >= 0 else disk for disk in self.disks
        )

    @property
    def why_no_uefi(self) -> str:
        """Why no UEFI firmware can start it, or ""."""
        return "" if UEFI in self.firmwares else f"{self.label}: UEFI cannot start it: its disk has no EFI system partition"

    @property
    def why_no_bios(self) -> str:
        """Why no BIOS can start it, or ""."""
        return "" if BIOS in self.firmwares else f"{self.label}: only UEFI can start it: its disk has no boot code for a BIOS"

    @cached_property
    def bits(self) -> int:
        """Of the kernel: 32 or 64; 0 if unknown."""
        return self.profile.kernel_bits(self.kernel) if self.kernel else 0

    def loaded(self, emulated: bool) -> tuple[Path | None, Path | None]:
        """The kernel and ramdisk that Xen's toolstack is given. A real dom0 unpacks sooner than it gets five times as much."""
        return self.unpacked if emulated and self.unpacked else (self.kernel, self.ramdisk)

    @property
    def key(self) -> str:
        """Identity by content: hashes of the files, each taken again only when the file has changed."""
        digest = hashlib.sha256(f"{self.label} {self.profile.name} {self.root} {self.bootloader}\n".encode())
        for path in (self.kernel, self.ramdisk, *(disk.path for disk in self.disks)):
            if path is not None:
                digest.update(known_sha256(path).encode())
        for disk in self.disks:
            digest.update(f"{disk.vdev} {disk.format} {disk.readonly}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def inputs(self) -> dict[str, str]:
        """What reports say this is made of: file names with their sha256."""
        found = {"image": self.image} if self.image else {}
        if self.world:
            found["world"] = f"{self.profile.title} {self.world}"
        files = (("kernel", self.kernel), ("ramdisk", self.ramdisk), ("disk", self.given))
        for what, path in (*files, *((d.vdev, d.path) for d in self.disks)):
            if path is not None:
                found[what] = f"{path.name} sha256:{known_sha256(path)}"
        return found
