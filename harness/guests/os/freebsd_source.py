# SPDX-License-Identifier: BSD-2-Clause
"""The sources of FreeBSD guests: an image of the store, or a kernel and a disk."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError
from harness.guests.os.definition import GuestDefinition, SourceRequest
from harness.guests.os.freebsd import FreeBSD
from harness.guests.source import DiskImage, GuestSource
from harness.images import diskformat, diskread, kernelfile
from harness.images.image import Image


def from_files(kernel: Path, disk: Path, *, root: str = "") -> GuestSource:
    """The source of a kernel file and a disk with its root file system (raw or qcow2, or either in xz).

    Without ``root`` the root is read from the disk. Raises UsageError for an unreadable disk, for a kernel that Xen cannot start, and
    for a root that the kernel cannot mount.
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
            f"{kernel}: FreeBSD {version.release} without ZFS, and the root is {device}: only a loader can load the module",
            hint="build it with `options ZFS`",
        )
    guest_os = FreeBSD.of(version, looked.types)
    return GuestSource(f"freebsd-{version.release}", guest_os, kernel, disks=(DiskImage(raw.path),), root=device, given=raw.given)


def from_image(image: Image, *, bootloader: str = "", root: str = "") -> GuestSource:
    """The source of an image of the store, or of an imported disk. Raises UsageError if the bootloader cannot read it."""
    if bootloader and not image.pygrub:
        raise UsageError(
            f"{image.name}: pygrub cannot read its first disk (layout {image.data['layout']})",
            hint="choose a layout such as ufs1 or ext2boot",
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


def _find(request: SourceRequest) -> GuestSource | None:
    if request.image is not None:
        return from_image(request.image, bootloader=request.bootloader, root=request.root)
    if request.kernel is None or request.disk is None:
        return None
    return from_files(request.kernel, request.disk, root=request.root)


GUEST = GuestDefinition(
    "freebsd", FreeBSD, "a FreeBSD guest", types=("pvh", "hvm", "pv"), find=_find, option="--disk IMAGE", under_test=True, uefi=True
)
