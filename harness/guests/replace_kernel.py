# SPDX-License-Identifier: BSD-2-Clause
"""Replaces the kernel that a guest boots, and identifies the kernel that runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.errors import GuestCommandFailed, UsageError
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.guests.os.values import BootVolume
from harness.guests.source import GuestSource
from harness.xen import pygrub
from harness.xen.config import Disk

# The vdev of the disk by which files are copied into a guest.
_CARRIER = "xvdh"


def volume(guest: Guest) -> BootVolume:
    """The guest's boot volume; the control guest mounts it."""
    return guest.profile.boot_volume(guest.sh, guest.profile.disk_name(guest.config.disks[0].vdev))


def identity(guest: Guest) -> str:
    """The mark of the kernel that runs: FreeBSD's ident; a file of the control guest's ramdisk."""
    return guest.profile.build_mark(guest.sh)


def spare(source: GuestSource, running: str) -> tuple[bytes, str]:
    """Another good kernel (or ramdisk) than the one with the mark ``running``, and its mark. Raises UsageError."""
    if source.kernel is None:
        raise UsageError(f"{source.label} has no kernel file")
    ramdisk = source.ramdisk.read_bytes() if source.ramdisk else None
    return source.profile.alternate(source.kernel.read_bytes(), ramdisk, running)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(guest: Guest, path: str) -> str:
    """The sha256 of a file in the guest."""
    return guest.sh(guest.profile.sha256_command(path)).split()[0]


def bring(guest: Guest, data: bytes, path: str, directory: Path) -> None:
    """Copy ``data`` to ``path`` in the guest, through a disk that is attached temporarily. Raises GuestCommandFailed."""
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
    """The sha256 of the file that pygrub extracts from the guest's first disk when it is run in dom0; "" if it finds none."""
    host, target = guest.host, guest.config.disks[0].target
    restrict = "pygrub-restrict" in host.capabilities
    return pygrub.run(host.transport, f"{host.directory}/pygrub", target, restrict=restrict).digest(what)


def bootloader_ran(guest: Guest, after: int) -> bool:
    """Whether the toolstack ran the bootloader for the guest's present domain, whose domid must be above ``after``.

    Each run leaves a log. Those of other guests on this host do not count.
    """
    row = guest.state()
    domid = guest.domid if row is None else row.domid
    log = f"/var/log/xen/bootloader.{domid}.log"
    return domid > after and guest.host.transport.run(["test", "-e", log], check=False).status == 0
