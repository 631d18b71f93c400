# SPDX-License-Identifier: BSD-2-Clause
"""Files of a guest: copy one in, and hash it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.errors import GuestCommandFailed
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.xen.config import Disk

# The vdev of the disk by which files are copied into a guest.
_CARRIER = "xvdh"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(guest: Guest, path: str) -> str:
    """The sha256 of a file in the guest."""
    return guest.sh(guest.os.sha256_command(path)).split()[0]


def put(guest: Guest, data: bytes, path: str, directory: Path) -> None:
    """Copy ``data`` to ``path`` in the guest by a disk that is attached for it. Raises GuestCommandFailed."""
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
