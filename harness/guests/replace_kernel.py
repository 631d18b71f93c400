# SPDX-License-Identifier: BSD-2-Clause
"""Finds another kernel for a guest, and identifies the kernel that runs."""

from __future__ import annotations

from harness.errors import UsageError
from harness.guests.guest import Guest
from harness.guests.os.values import BootVolume
from harness.guests.source import GuestSource
from harness.xen import listing, pygrub


def volume(guest: Guest) -> BootVolume:
    """The guest's boot volume; the control guest mounts it."""
    return guest.os.boot_volume(guest.sh, guest.os.disk_name(guest.config.disks[0].vdev))


def identity(guest: Guest) -> str:
    """The mark of the kernel that runs: FreeBSD's ident; a file of the control guest's ramdisk."""
    return guest.os.build_mark(guest.sh)


def spare(source: GuestSource, running: str) -> tuple[bytes, str]:
    """Another good kernel (or ramdisk) than the one with the mark ``running``, and its mark. Raises UsageError."""
    if source.kernel is None:
        raise UsageError(f"{source.label} has no kernel file")
    ramdisk = source.ramdisk.read_bytes() if source.ramdisk else None
    return source.os.alternate(source.kernel.read_bytes(), ramdisk, running)


def extracted(guest: Guest, what: str) -> str:
    """The sha256 of the file that pygrub extracts from the guest's first disk when it is run in dom0; "" if it finds none."""
    host, target = guest.host, guest.config.disks[0].target
    restrict = "pygrub-restrict" in host.capabilities
    return pygrub.run(host.transport, f"{host.directory}/pygrub", target, restrict=restrict).digest(what)


def bootloader_ran(guest: Guest, after: int) -> bool:
    """Whether the toolstack ran the bootloader for a domain of this guest with a domid above ``after``, also for one that it failed to build.

    Each run leaves a log, named by the domid. Logs of other guests on this host do not count.
    """
    row = guest.state()
    present = guest.domid if row is None else row.domid
    failed = listing.failed_domids(guest.host.toolstack.log(guest.name))
    logs = [f"/var/log/xen/bootloader.{domid}.log" for domid in sorted({present, *failed}) if domid > after]
    return bool(logs) and bool(guest.host.transport.run(["ls", *logs], check=False).text)
