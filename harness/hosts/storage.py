# SPDX-License-Identifier: BSD-2-Clause
"""Where a guest's disk lives in dom0: a file behind a loop device, a plain file, a logical volume, a zvol."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.transport import Transport

# Copying a disk within dom0.
_COPY = 600.0

# GNU's cp knows holes and reflinks, FreeBSD's neither (its file systems find zeros by themselves).
_CP = 'cp --reflink=auto --sparse=always "$1" "$2" 2>/dev/null || cp "$1" "$2"'


class Storage(Protocol):
    """``make`` gives a guest a disk of its own with the content of the file ``base``; ``drop`` takes it back."""

    def make(self, transport: Transport, base: str, name: str) -> str:
        """Returns the disk's target as xl takes it. Raises InfrastructureError when there is no space."""
        ...

    def drop(self, transport: Transport, target: str) -> None: ...


@dataclass(frozen=True)
class LoopFiles:
    """A file in ``directory`` behind a loop device: blkback serves it without a device model (a Linux dom0)."""

    directory: str

    def make(self, transport: Transport, base: str, name: str) -> str:
        path = f"{self.directory}/{name}"
        _run(transport, ["sh", "-c", _CP, "sh", base, path], path)
        return transport.run(["losetup", "--show", "-f", path]).text.strip()

    def drop(self, transport: Transport, target: str) -> None:
        # The file is asked of the kernel: what we remember may be from before a restart.
        script = 'f=$(cat "/sys/block/${1#/dev/}/loop/backing_file") && losetup -d "$1" && case $f in "$2"/*) rm -f "$f";; esac'
        transport.run(["sh", "-c", script, "sh", target, self.directory])


@dataclass(frozen=True)
class PlainFiles:
    """A file in ``directory``: FreeBSD's blkback serves files as they are (xen tools/libs/light/libxl_freebsd.c)."""

    directory: str

    def make(self, transport: Transport, base: str, name: str) -> str:
        path = f"{self.directory}/{name}"
        _run(transport, ["sh", "-c", _CP, "sh", base, path], path)
        return path

    def drop(self, transport: Transport, target: str) -> None:
        transport.run(["rm", "-f", target])


@dataclass(frozen=True)
class Lvm:
    """A logical volume in the volume group ``group``."""

    group: str

    def make(self, transport: Transport, base: str, name: str) -> str:
        size = int(transport.run(["sh", "-c", 'wc -c < "$1"', "sh", base]).text)
        volume = f"{self.group}/{name}"
        # lvcreate rounds up to whole extents.
        _run(transport, ["lvcreate", "-y", "-W", "n", "-L", f"{max(1, size)}b", "-n", name, self.group], volume)
        # Not sparse: a volume begins with what its extents held before.
        _run(transport, ["dd", f"if={base}", f"of=/dev/{volume}", "bs=1M", "conv=fsync", "status=none"], volume)
        return f"/dev/{volume}"

    def drop(self, transport: Transport, target: str) -> None:
        transport.run(["lvremove", "-f", target.removeprefix("/dev/")])


@dataclass(frozen=True)
class Zvol:
    """A zvol below ``dataset``, sparse."""

    dataset: str

    def make(self, transport: Transport, base: str, name: str) -> str:
        size = int(transport.run(["sh", "-c", 'wc -c < "$1"', "sh", base]).text)
        volume = f"{self.dataset}/{name}"
        # A zvol's size is a multiple of its block size.
        _run(transport, ["zfs", "create", "-s", "-V", str(-(-size // 131072) * 131072), volume], volume)
        _run(transport, ["dd", f"if={base}", f"of=/dev/zvol/{volume}", "bs=1048576", "conv=sparse"], volume)
        return f"/dev/zvol/{volume}"

    def drop(self, transport: Transport, target: str) -> None:
        transport.run(["zfs", "destroy", target.removeprefix("/dev/zvol/")])


def choose(kind: str, directory: str, dom0: str) -> Storage:
    """``kind`` as in ``[hosts.NAME]``; ``dom0`` is linux or freebsd. Raises UsageError."""
    # lvm:vg0   zvol:tank/guests
    match = re.fullmatch(r"(lvm|zvol):([A-Za-z0-9][A-Za-z0-9_.+/-]*)", kind)
    if match:
        return Lvm(match[2]) if match[1] == "lvm" else Zvol(match[2])
    if kind != "file":
        raise UsageError(f"storage {kind!r}", hint="file, lvm:VOLUME-GROUP or zvol:DATASET")
    return PlainFiles(directory) if dom0 == "freebsd" else LoopFiles(directory)


def _run(transport: Transport, argv: list[str], what: str) -> None:
    done = transport.run(argv, Deadline(_COPY), check=False)
    if done.status:
        words = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise InfrastructureError(f"{transport.name}: no disk {what} was made: {words}", hint="is there space on the host?")
