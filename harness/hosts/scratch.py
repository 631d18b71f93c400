# SPDX-License-Identifier: BSD-2-Clause
"""Small disks whose content says which is which, made in dom0: a file each, behind a loop device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.hosts.host import XenHost

MIB = 1 << 20

# Directory, size, options of losetup, labels. The loop device's name is printed for each.
_MAKE = """
set -e; d=$1 size=$2 how=$3; shift 3; mkdir -p "$d"
for label in "$@"; do
    yes "$label" | head -c "$size" > "$d/$label"
    losetup $how --show -f "$d/$label"
done
"""


@dataclass(frozen=True)
class ScratchDisk:
    """``target`` is the block device in dom0, ``file`` what stands behind it, ``digest`` the md5 of its first MiB."""

    label: str
    target: str
    file: str
    size: int
    digest: str


def content(label: str, size: int) -> bytes:
    """What the disk ``label`` holds."""
    line = label.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def make(host: XenHost, labels: Sequence[str], *, size: int = MIB, sector: int = 512) -> tuple[ScratchDisk, ...]:
    """A disk for each of ``labels`` (unlike in this run at any time), ``size`` bytes, in sectors of ``sector`` bytes."""
    directory = f"{host.directory}/scratch"
    how = f"-b {sector}" if sector != 512 else ""
    done = host.transport.run(["sh", "-c", _MAKE, "sh", directory, str(size), how, *labels], Deadline(120))
    disks = []
    for label, target in zip(labels, done.text.split(), strict=True):
        digest = hashlib.md5(content(label, min(size, MIB)), usedforsecurity=False).hexdigest()
        disks.append(ScratchDisk(label, target, f"{directory}/{label}", size, digest))
    return tuple(disks)


def resize(host: XenHost, disk: ScratchDisk, size: int) -> None:
    """Make it ``size`` bytes long; what uses the loop device is told by the kernel."""
    script = 'truncate -s "$1" "$2" && losetup -c "$3"'
    host.transport.run(["sh", "-c", script, "sh", str(size), disk.file, disk.target])


def drop(host: XenHost, disks: Sequence[ScratchDisk]) -> None:
    """Give the loop devices and the files back; nobody uses them any more."""
    for disk in disks:
        host.transport.run(["sh", "-c", 'losetup -d "$1"; rm -f "$2"', "sh", disk.target, disk.file])
