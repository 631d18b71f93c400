# SPDX-License-Identifier: BSD-2-Clause
"""The disks of guests in dom0: a file behind a loop device, a plain file, a logical volume, or a zvol."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from harness.config.schema import STORAGE, STORAGE_HINT
from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.transport import Transport

# Seconds to copy a disk within dom0.
_COPY = 600.0

# GNU cp has options for holes and reflinks. FreeBSD's cp has not, and its file systems detect zeros.
_CP = 'cp --reflink=auto --sparse=always "$1" "$2" 2>/dev/null || cp "$1" "$2"'


class Storage(Protocol):
    """Creates and removes the disks of guests."""

    def create(self, transport: Transport, base: str, name: str) -> str:
        """Create a disk with the content of the file ``base``. Returns its target for xl.

        Raises InfrastructureError if dom0 has no space.
        """
        ...

    def remove(self, transport: Transport, target: str) -> None:
        """Remove the disk that :meth:`create` returned. Raises CommandFailed."""
        ...


@dataclass(frozen=True)
class LoopFiles:
    """A file in ``directory`` behind a loop device, for a Linux dom0: blkback serves it without a device model."""

    directory: str

    def create(self, transport: Transport, base: str, name: str) -> str:
        return transport.run(["losetup", "--show", "-f", _copy(transport, base, f"{self.directory}/{name}")]).text.strip()

    def remove(self, transport: Transport, target: str) -> None:
        # Ask the kernel for the file: the harness may have been restarted since it created the device.
        script = 'f=$(cat "/sys/block/${1#/dev/}/loop/backing_file") && losetup -d "$1" && case $f in "$2"/*) rm -f "$f";; esac'
        transport.run(["sh", "-c", script, "sh", target, self.directory])


@dataclass(frozen=True)
class PlainFiles:
    """A file in ``directory``, for a FreeBSD dom0: its blkback serves plain files (xen tools/libs/light/libxl_freebsd.c)."""

    directory: str

    def create(self, transport: Transport, base: str, name: str) -> str:
        return _copy(transport, base, f"{self.directory}/{name}")

    def remove(self, transport: Transport, target: str) -> None:
        transport.run(["rm", "-f", target])


@dataclass(frozen=True)
class Lvm:
    """A logical volume in the volume group ``group``."""

    group: str

    def create(self, transport: Transport, base: str, name: str) -> str:
        size = _size(transport, base)
        volume = f"{self.group}/{name}"
        # lvcreate rounds the size up to whole extents.
        _run(transport, ["lvcreate", "-y", "-W", "n", "-L", f"{max(1, size)}b", "-n", name, self.group], volume)
        # Write zeros, too: a new volume contains the old data of its extents.
        _run(transport, ["dd", f"if={base}", f"of=/dev/{volume}", "bs=1M", "conv=fsync", "status=none"], volume)
        return f"/dev/{volume}"

    def remove(self, transport: Transport, target: str) -> None:
        transport.run(["lvremove", "-f", target.removeprefix("/dev/")])


@dataclass(frozen=True)
class Zvol:
    """A sparse zvol below ``dataset``."""

    dataset: str

    def create(self, transport: Transport, base: str, name: str) -> str:
        size = _size(transport, base)
        volume = f"{self.dataset}/{name}"
        # The size of a zvol must be a multiple of its block size; 128 KiB is a multiple of all common ones.
        _run(transport, ["zfs", "create", "-s", "-V", str(-(-size // 131072) * 131072), volume], volume)
        _run(transport, ["dd", f"if={base}", f"of=/dev/zvol/{volume}", "bs=1048576", "conv=sparse"], volume)
        return f"/dev/zvol/{volume}"

    def remove(self, transport: Transport, target: str) -> None:
        transport.run(["zfs", "destroy", target.removeprefix("/dev/zvol/")])


def choose(kind: str, directory: str, dom0: str) -> Storage:
    """The storage for ``kind``, the ``storage`` of ``[hosts.NAME]``. ``dom0`` is linux or freebsd. Raises UsageError."""
    # file   lvm:vg0   zvol:tank/guests
    match = re.fullmatch(STORAGE, kind)
    if not match:
        raise UsageError(f"invalid storage {kind!r}", hint=STORAGE_HINT)
    if match[1]:
        return Lvm(match[2]) if match[1] == "lvm" else Zvol(match[2])
    return PlainFiles(directory) if dom0 == "freebsd" else LoopFiles(directory)


def _copy(transport: Transport, base: str, path: str) -> str:
    """Copy a file within dom0. Returns ``path``."""
    _run(transport, ["sh", "-c", _CP, "sh", base, path], path)
    return path


def _size(transport: Transport, path: str) -> int:
    """The size of a file in dom0, in bytes."""
    return int(transport.run(["sh", "-c", 'wc -c < "$1"', "sh", path]).text)


def _run(transport: Transport, argv: list[str], what: str) -> None:
    done = transport.run(argv, Deadline(_COPY), check=False)
    if done.status:
        errors = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise InfrastructureError(f"{transport.name}: cannot create the disk {what}: {errors}", hint="free some space on the host")
