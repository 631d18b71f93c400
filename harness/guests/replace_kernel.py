# SPDX-License-Identifier: BSD-2-Clause
"""Replacing what a guest boots from: another kernel is brought in, put in place, and told from the first one."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.errors import GuestCommandFailed, UsageError
from harness.guests import bootable, hotplug
from harness.guests.guest import Guest
from harness.guests.source import GuestSource
from harness.lab import cpio
from harness.xen import pygrub
from harness.xen.config import Disk

_CARRIER = "xvdh"


@dataclass(frozen=True)
class Volume:
    """A guest's boot volume as the guest sees it: ``file`` is what gets replaced, ``what`` pygrub's word for it.

    FreeBSD replaces its kernel. The control guest replaces its ramdisk, since its kernel is compressed.
    """

    menu: str
    file: str
    what: str

    def beside(self, name: str) -> str:
        """A path on the same file system, out of the bootloader's sight."""
        return f"{self.file}.{name}"


def volume(guest: Guest) -> Volume:
    """Where it is; the control guest mounts it first."""
    if guest.profile.os == "freebsd":
        return Volume("/boot/grub/menu.lst", "/boot/kernel/kernel", "kernel")
    disk = guest.profile.disk_name(guest.config.disks[0].vdev)
    guest.sh(f"mount | grep -q ' /mnt ' || mount -t ext2 /dev/{disk} /mnt")
    return Volume("/mnt/boot/grub/menu.lst", "/mnt/boot/initrd", "ramdisk")


def identity(guest: Guest) -> str:
    """What tells the kernel that runs from its twin: FreeBSD's ident; a file of the control guest's ramdisk."""
    if guest.profile.os == "freebsd":
        return guest.sh("uname -i")
    return guest.sh("cat /etc/fxh-twin 2>/dev/null || echo A")


def spare(source: GuestSource, running: str) -> tuple[bytes, str]:
    """Another good kernel (or ramdisk) than that with the identity ``running``, and its identity."""
    if source.kernel is None:
        raise UsageError(f"{source.label} has no kernel of its own")
    if source.profile.os != "freebsd":
        if source.ramdisk is None:
            raise UsageError(f"{source.label} has no ramdisk")
        # The kernel unpacks one archive after the other (Documentation/driver-api/early-userspace/buffer-format.rst).
        mark = cpio.archive({"etc/fxh-twin": (0o644, b"B\n")})
        return source.ramdisk.read_bytes() + gzip.compress(mark, mtime=0), "B"
    kernel = source.kernel.read_bytes()
    own = bootable.ident(kernel)
    return (kernel, own) if own != running else bootable.twin(kernel)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(guest: Guest, path: str) -> str:
    """sha256 of a file as the guest reads it."""
    tool = "sha256 -q" if guest.profile.os == "freebsd" else "sha256sum"
    return guest.sh(f"{tool} {path}").split()[0]


def bring(guest: Guest, data: bytes, path: str, directory: Path) -> None:
    """Write ``data`` to ``path`` in the guest, by way of a disk that is attached for it. Raises GuestCommandFailed."""
    local = directory / "carried.img"
    # Raw devices are read in whole sectors.
    local.write_bytes(data + bytes(-len(data) % 4096))
    target = guest.host.disk(local)
    name = hotplug.disk(guest, Disk(target, _CARRIER))
    guest.sh(f"dd if=/dev/{name} bs=64k 2>/dev/null | head -c {len(data)} > {path}", 180)
    got = digest(guest, path)
    if got != sha256(data):
        raise GuestCommandFailed(guest.name, f"copy of {len(data)} bytes from /dev/{name}", 0, f"sha256 {got}, not {sha256(data)}")
    hotplug.let_go(guest, _CARRIER)
    guest.host.drop_disk(target)
    local.unlink()


def extracted(guest: Guest, what: str) -> str:
    """sha256 of what pygrub takes from the guest's first disk, by hand in dom0; "" when it finds nothing."""
    host, target = guest.host, guest.config.disks[0].target
    restrict = "pygrub-restrict" in host.capabilities
    return pygrub.run(host.transport, f"{host.directory}/pygrub", target, restrict=restrict).digest(what)


def bootloader_ran(guest: Guest, after: int) -> bool:
    """Whether the toolstack ran the bootloader for a domain later than ``after``: it leaves a log for each.

    Domids only grow (libxl), and only this guest's toolstack is at work in the time looked at.
    """
    script = 'for f in /var/log/xen/bootloader.*.log; do n=${f#*bootloader.}; n=${n%.log}; [ "$n" -gt "$1" ] 2>/dev/null && exit 0; done; exit 1'
    return guest.host.transport.run(["sh", "-c", script, "sh", str(after)], check=False).status == 0
