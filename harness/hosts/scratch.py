# SPDX-License-Identifier: BSD-2-Clause
"""Small disks with a recognisable content, created in dom0: a file behind a loop device for each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.hosts.host import XenHost

MIB = 1 << 20

# Arguments: directory, size, options of losetup, labels. Prints the loop device of each label.
_MAKE = """
set -e; d=$1 size=$2 options=$3; shift 3; mkdir -p "$d"
for label in "$@"; do
    yes "$label" | head -c "$size" > "$d/$label"
    losetup $options --show -f "$d/$label"
done
"""


@dataclass(frozen=True)
class ScratchDisk:
    """``target`` is the loop device in dom0, ``file`` its file, ``size`` in bytes, ``digest`` the md5 of its first MiB."""

    label: str
    target: str
    file: str
    size: int
    digest: str


def content(label: str, size: int) -> bytes:
    """The content of the disk ``label``: its label, one a line, ``size`` bytes in all."""
    line = label.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def create(host: XenHost, labels: Sequence[str], *, size: int = MIB, sector: int = 512) -> tuple[ScratchDisk, ...]:
    """Create a disk for each of ``labels``, which must be unique in this run: ``size`` bytes, in sectors of ``sector`` bytes."""
    directory = f"{host.directory}/scratch"
    options = f"-b {sector}" if sector != 512 else ""
    done = host.transport.run(["sh", "-c", _MAKE, "sh", directory, str(size), options, *labels], Deadline(120))
    disks = []
    for label, target in zip(labels, done.text.split(), strict=True):
        digest = hashlib.md5(content(label, min(size, MIB)), usedforsecurity=False).hexdigest()
        disks.append(ScratchDisk(label, target, f"{directory}/{label}", size, digest))
    return tuple(disks)


def resize(host: XenHost, disk: ScratchDisk, size: int) -> None:
    """Change the size to ``size`` bytes. dom0's kernel notifies the users of the loop device."""
    script = 'truncate -s "$1" "$2" && losetup -c "$3"'
    host.transport.run(["sh", "-c", script, "sh", str(size), disk.file, disk.target])


def remove(host: XenHost, disks: Sequence[ScratchDisk]) -> None:
    """Remove the loop devices and files. No guest may use them any more."""
    for disk in disks:
        host.transport.run(["sh", "-c", 'losetup -d "$1"; rm -f "$2"', "sh", disk.target, disk.file])
