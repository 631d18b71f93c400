# SPDX-License-Identifier: BSD-2-Clause
"""``--keep dump``: a dump device for a FreeBSD guest, and the dump of a panic as evidence."""

from __future__ import annotations

import gzip
import io
import logging
import re
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness import store
from harness.console.clean import Cleaner
from harness.console.text import decode
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, HarnessError
from harness.guests.dumpdevice import DumpDevice
from harness.guests.guest import Guest
from harness.guests.shape import Shape
from harness.guests.source import DiskImage, GuestSource
from harness.oracles import kerneldump
from harness.oracles.kerneldump import Header
from harness.results.model import DUMP_SUFFIX
from harness.safetext import plain

log = logging.getLogger("fxh.evidence")

MIB = 1 << 20
LIMIT = 256
"""MiB of the dump device, and thus of the largest dump."""
VDEV = "xvdo"
MOST = 10
"""Dumps that a worker keeps."""

# Seconds until a kernel that has printed its backtrace begins to dump, and until it ends; for one block, and for a dump to arrive.
_BEGIN, _END, _COPY = 15.0, 180.0, 240.0
_PANICS = ("panic", "double-panic", "trap")
# Bytes of the console in which the messages about a dump are searched.
_TAIL = 1 << 17
# Dumping 62 out of 481 MB:..26%..51%..77%      (sys/amd64/amd64/minidump_machdep.c)
_BEGUN = re.compile(r"^Dumping \d+ ", re.MULTILINE)
# Dump complete    Dump failed. Partition too small (about 140MB were needed this time).    ** DUMP FAILED (ERROR 5) **
_ENDED = re.compile(r"^(Dump complete|Dump failed.*|Dump aborted|\*\* DUMP FAILED.*)", re.MULTILINE)


def equip(source: GuestSource, shape: Shape) -> tuple[GuestSource, Shape]:
    """``source`` with an empty disk and ``shape`` with the variables that make it the dump device.

    Both are unchanged for an OS without dumps, and for an HVM guest whose loader does not take our variables.
    """
    variables = source.profile.dump_variables(source.profile.disk_name(VDEV))
    if not variables or (shape.type == "hvm" and not any(disk.slot >= 0 for disk in source.disks)):
        return source, shape
    disk = DiskImage(store.get_or_create("volumes", f"dump-{LIMIT}.img", _empty_disk, step="an empty disk for dumps"), VDEV)
    return replace(source, disks=(*source.disks, disk)), replace(shape, variables=(*variables.items(), *shape.variables))


def _empty_disk(work: Path) -> Path:
    path = work / f"dump-{LIMIT}.img"
    with path.open("wb") as file:
        file.truncate(LIMIT * MIB)
    return path


def target(guest: Guest) -> str:
    """The guest's dump device in dom0; "" if it has none of ours."""
    return next((disk.target for disk in guest.config.disks if disk.vdev == VDEV), "")


def save(guest: Guest, directory: Path, kept: int) -> bool:
    """Leave the dump of a panicked guest in ``directory``, or the reason why there is none. Returns whether there is one.

    Writes ``dump-NAME.txt``, and ``NAME.vmcore.gz`` for a dump. Does nothing for a guest without our dump device and for one that
    did not panic. ``kept`` is the number of dumps that the worker has kept: after :data:`MOST`, it keeps no more. Never raises
    HarnessError or OSError.
    """
    place = target(guest)
    if not place or guest.domid < 0 or not _panicked(guest):
        return False
    device = DumpDevice(guest.host.transport, place, LIMIT * MIB)
    file = directory / f"{guest.name}{DUMP_SUFFIX}"
    lines: list[str] = []
    try:
        wrong = [f"this worker keeps {MOST} dumps already: run the case alone"] if kept >= MOST else []
        if not wrong:
            end = _wait_for_end(guest)
            head, tail = device.headers()
            wrong = kerneldump.header_errors(head, tail, sector=device.sector, size=device.size) or _copy(device, tail, file)
            lines = [f"the kernel says: {_line(end)}"] if wrong else described(kerneldump.parse(tail), file.name)
    except HarnessError as exc:
        wrong = [exc.message]
    except OSError as exc:
        wrong = [f"{file.name}: {exc.strerror or exc}"]
    text = plain("\n".join(["no dump:", *wrong, *lines] if wrong else lines)) + "\n"
    with suppress(OSError):
        (directory / f"dump-{guest.name}.txt").write_text(text)
    return not wrong


def described(header: Header, name: str) -> list[str]:
    """The header of the dump in the file ``name``, as lines. Each text of the guest stays in its line."""
    kernel = header.kernel.splitlines()
    return [
        f"{name}: a dump of {header.length} bytes, compressed by gzip",
        f"panic: {_line(header.panic)}",
        f"kernel: {_line(kernel[0]) if kernel else ''}",
        f"host name: {_line(header.hostname)}",
        f"read it with: gzip -d {name} && kgdb kernel.debug {name.removesuffix('.gz')}",
    ]


def _line(text: str) -> str:
    """``text`` in one line."""
    return " ".join(text.split())


def _panicked(guest: Guest) -> bool:
    """Whether the console shows a panic, or the dump of a kernel whose panic the harness did not see."""
    death = guest.console.death
    return (death is not None and death.kind in _PANICS) or bool(_BEGUN.search(_console(guest)))


def _console(guest: Guest) -> str:
    """The end of the console, without control sequences."""
    return decode(Cleaner().text(guest.console.since(max(0, guest.console.offset - _TAIL))))


def _wait_for_end(guest: Guest) -> str:
    """Wait until the kernel has written its dump. Returns its last line about it, or what is missing."""
    begin, end = Deadline(_BEGIN * guest.scale), Deadline(_END * guest.scale)

    def poll() -> str:
        text = _console(guest)
        ended = _ENDED.findall(text)
        if ended:
            return str(ended[-1]).strip()
        if not _BEGUN.search(text) and begin.expired:
            return "nothing about a dump"
        raise ConditionNotMet("the kernel is writing its dump")

    try:
        return end.wait(f"{guest.name} to write its dump", poll, 0.5)
    except DeadlineExpired:
        return f"that it begins to dump, but not within {end.seconds:.0f} s that it ends"


def _copy(device: DumpDevice, tail: bytes, file: Path) -> list[str]:
    """Copy the dump to ``file``, compressed. Returns why that is impossible, as lines. Raises OSError, and then leaves no file."""
    packed = device.packed_dump(tail, _COPY)
    wrong = _copy_errors(packed, kerneldump.parse(tail).length)
    if wrong:
        return wrong
    part = file.with_name(f".{file.name}")  # bundles leave it out, too: it ends with DUMP_SUFFIX
    try:
        part.write_bytes(packed)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return []


def _copy_errors(packed: bytes, length: int) -> list[str]:
    """The errors of a compressed dump of ``length`` bytes, as lines. It is read in blocks, because the guest chose its length."""
    first, count = b"", 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            while count <= length and (block := stream.read(MIB)):
                first, count = first or block, count + len(block)
    except (OSError, EOFError, zlib.error) as exc:
        return [f"the copy from dom0 is damaged: {exc}"]
    if count != length:
        return [f"dom0 sent {'at least ' if count > length else ''}{count} bytes instead of {length}"]
    if not first.startswith(kerneldump.MINIDUMP):
        return [f"it begins with {first[:24]!r} instead of {kerneldump.MINIDUMP!r}"]
    return []
