# SPDX-License-Identifier: BSD-2-Clause
"""What is booted: a kernel, a ramdisk, disks, and the profile of what runs in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.digest import known_sha256
from harness.errors import UsageError
from harness.guests.freebsd import FreeBSD
from harness.guests.linux import Linux
from harness.guests.profile import GuestProfile
from harness.images import diskformat, diskread, kernelfile
from harness.images import loader_conf_slot as slots
from harness.images.image import Image
from harness.xen import elfnotes
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
    profile: GuestProfile
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
        """Of a FreeBSD's kernel: 32 or 64; 0 where none is known."""
        return elfnotes.read(self.kernel).bits if self.kernel and self.profile.os == "freebsd" else 0

    def loaded(self, emulated: bool) -> tuple[Path | None, Path | None]:
        """The kernel and ramdisk that Xen's toolstack is given. A real dom0 unpacks sooner than it gets five times as much."""
        return self.unpacked if emulated and self.unpacked else (self.kernel, self.ramdisk)

    @property
    def key(self) -> str:
        """Identity by content: hashes of the files, each taken again only when the file has changed."""
        digest = hashlib.sha256(f"{self.label} {self.profile.os} {self.root} {self.bootloader}\n".encode())
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
            found["world"] = f"FreeBSD {self.world}"
        files = (("kernel", self.kernel), ("ramdisk", self.ramdisk), ("disk", self.given))
        for what, path in (*files, *((d.vdev, d.path) for d in self.disks)):
            if path is not None:
                found[what] = f"{path.name} sha256:{known_sha256(path)}"
        return found


def freebsd(kernel: Path, disk: Path, *, root: str = "") -> GuestSource:
    """A FreeBSD that somebody has: a kernel and a disk with its root file system (raw or qcow2, perhaps in xz).

    Without ``root`` the disk says what its root is. Raises UsageError for a disk that cannot be read, and for a kernel that no Xen
    can start, saying which guest types it could serve.
    """
    looked = kernelfile.read(kernel)
    version = looked.os_version
    if not looked.types:
        raise UsageError(
            f"{kernel}: FreeBSD {version.release}, but without Xen's ELF notes: neither PVH nor PV can start it",
            hint="build it with `options XENHVM` and do not strip its sections; HVM boots it through the loader",
        )
    with diskformat.opened(disk) as raw:
        device = diskread.root_device(raw, root)
    if device.startswith("zfs:") and not looked.zfs:
        raise UsageError(
            f"{kernel}: FreeBSD {version.release} without ZFS, and the root is {device}: the module is loaded by a loader only",
            hint="build it with `options ZFS`",
        )
    profile = FreeBSD.of(version, looked.types)
    return GuestSource(f"freebsd-{version.release}", profile, kernel, disks=(DiskImage(raw.path),), root=device, given=raw.given)


def from_image(image: Image, *, bootloader: str = "", root: str = "") -> GuestSource:
    """An image of the store, or a disk that was imported there. Raises UsageError for a bootloader that cannot read it."""
    if bootloader and not image.pygrub:
        raise UsageError(
            f"{image.name}: pygrub cannot read its first disk (layout {image.data['layout']})",
            hint="take a layout such as ufs1 or ext2boot",
        )
    world = image.world_version if image.world_version != image.version else ""
    return GuestSource(
        f"freebsd-{image.version}{f'-on-{world}' if world else ''}",
        FreeBSD.of(image.os_version, image.types),
        image.kernel,
        disks=tuple(DiskImage(d.file, d.vdev, d.format, slot=d.slot) for d in image.disks),
        root=root or (image.root if image.mountfrom == f"ufs:/dev/{image.root}" else image.mountfrom),
        bootloader=bootloader,
        pygrub=image.pygrub,
        own_variables=tuple(image.menu_variables.items()),
        image=f"{image.name} {image.entry.key}" if image.disk is None else "",
        given=image.given,
        world=world,
        firmwares=image.firmwares,
    )


def control(directory: Path) -> GuestSource:
    """The control guest: ``directory`` holds its vmlinuz and initrd; what is built with a lab has both unpacked, too."""
    unpacked = directory / "vmlinux", directory / "initrd.cpio"
    return GuestSource(
        "control",
        Linux(),
        directory / "vmlinuz",
        directory / "initrd",
        memory=96,
        unpacked=unpacked if all(path.exists() for path in unpacked) else None,
    )
