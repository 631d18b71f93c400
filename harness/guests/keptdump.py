# SPDX-License-Identifier: BSD-2-Clause
"""``--keep dump``: a dump device for a FreeBSD guest, and the dump of a panic as evidence.

A guest dumps to the swap of its own disks if it has no such device, or if its rc.conf names another one. The harness reads these disks
in dom0, where each guest has its own copy of an image.
"""

from __future__ import annotations

import gzip
import io
import logging
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness import store
from harness.console.clean import Cleaner
from harness.console.text import decode
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, HarnessError, UsageError
from harness.guests import dumpdevice
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
"""MiB of the dump device, and of the largest dump that is kept."""
VDEV = "xvdo"
MOST = 10
"""Dumps that a worker keeps."""

# Seconds until a kernel that has printed its backtrace begins to dump, and until it ends; for one block, and for a dump to arrive.
_BEGIN, _END, _COPY = 15.0, 180.0, 240.0
# Seconds for the tables and trailers of all disks.
_SEARCH = 90.0
_PANICS = ("panic", "double-panic", "trap")
# Bytes of the console in which the messages about a dump are searched.
_TAIL = 1 << 17
# Dumping 62 out of 481 MB:..26%..51%..77%      (sys/amd64/amd64/minidump_machdep.c)
_BEGUN = re.compile(r"^Dumping (\d{1,9}) ", re.MULTILINE)
# Dump complete    Dump failed. Partition too small (about 140MB were needed this time).    ** DUMP FAILED (ERROR 5) **
_ENDED = re.compile(r"^(Dump complete|Dump failed.*|Dump aborted|\*\* DUMP FAILED.*)", re.MULTILINE)
# Automatic reboot in 15 seconds - press a key on the console to abort      (sys/kern/kern_shutdown.c, kern_reboot(): after the dump)
_OVER = re.compile(r"^(?:Automatic reboot in \d|Rebooting\.\.\.|The operating system has halted)", re.MULTILINE)

# By the header's compression: the first bytes of a dump, and the command that unpacks it.
_BEGINS = (kerneldump.MINIDUMP, b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_UNPACK = ("", "mv {0} {0}.gz && gzip -d {0}.gz", "mv {0} {0}.zst && zstd -d --rm {0}.zst")


def equip(source: GuestSource, shape: Shape) -> tuple[GuestSource, Shape]:
    """``source`` with an empty disk and ``shape`` with the variables that make it the dump device.

    Both are unchanged for an OS without dumps, and for an HVM guest whose loader does not take our variables.
    """
    variables = source.os.dump_variables(source.os.disk_name(VDEV))
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
    """The guest's dump device in dom0; "" if it has no dump device of the harness."""
    return next((disk.target for disk in guest.config.disks if disk.vdev == VDEV), "")


def save(guest: Guest, directory: Path, kept: int) -> bool:
    """Write the dump of a panicked guest to ``directory``, or the reason for its absence. Returns whether there is a dump.

    Writes ``dump-NAME.txt``, and ``NAME.vmcore.gz`` for a dump. Does nothing for an OS without dumps and for a guest that did not panic.
    ``kept`` is the number of dumps that the worker has kept: after :data:`MOST`, it keeps no more. Never raises HarnessError or OSError.
    """
    if guest.domid < 0 or not guest.os.dump_variables("") or not _panicked(guest):
        return False
    file = directory / f"{guest.name}{DUMP_SUFFIX}"
    lines: list[str] = []
    try:
        wrong = [f"this worker keeps {MOST} dumps already: run the case alone"] if kept >= MOST else []
        if not wrong:
            end = _wait_for_end(guest)
            found, wrong = _find(guest)
            if found is not None and not (wrong := _keep(found, file)):
                lines = described(kerneldump.parse(found.tail), file.name, found.name)
            else:
                lines = [f"the kernel says: {_line(end)}"]
    except HarnessError as exc:
        wrong = [exc.message]
    except OSError as exc:
        wrong = [f"{file.name}: {exc.strerror or exc}"]
    text = plain("\n".join(["no dump:", *map(_line, wrong), *lines] if wrong else lines)) + "\n"
    with suppress(OSError):
        (directory / f"dump-{guest.name}.txt").write_text(text)
    return not wrong


@dataclass(frozen=True)
class _Found:
    """A device with the trailer of a dump. ``name`` is FreeBSD's for it."""

    name: str
    device: DumpDevice
    head: bytes
    tail: bytes

    @property
    def errors(self) -> list[str]:
        return kerneldump.header_errors(self.head, self.tail, sector=self.device.sector, size=self.device.size)


def _find(guest: Guest) -> tuple[_Found | None, list[str]]:
    """The dump that the guest has written, on our device or in the swap of its disks; or why there is none, as lines."""
    wrong: list[str] = []
    if place := target(guest):
        found = _look(guest.os.disk_name(VDEV), DumpDevice(guest.host.transport, place, LIMIT * MIB))
        if kerneldump.is_dump(found.tail):
            return found, []
        wrong = found.errors
    console, deadline = _console(guest), Deadline(_SEARCH)
    dumps: list[_Found] = []
    seen: list[str] = []
    for disk in guest.config.disks:
        if disk.readonly or disk.vdev == VDEV:
            continue
        try:
            devices = dumpdevice.swaps(guest.host.transport, disk.target, guest.os.disk_name(disk.vdev), deadline)
        except UsageError as exc:
            wrong.append(exc.message)
            continue
        for found in map(_look, devices, devices.values()):
            seen.append(found.name)
            if why := _not_this(found.tail, console):
                wrong.append(f"{found.name} {why}")
            elif kerneldump.is_dump(found.tail):
                dumps.append(found)
    if dumps:
        return max(dumps, key=lambda found: kerneldump.parse(found.tail).time), []
    return None, [*wrong, f"no dump of this panic in the swap of its disks: {', '.join(seen) or 'they have none'}"]


def _look(name: str, device: DumpDevice) -> _Found:
    return _Found(name, device, *device.headers())


def _not_this(tail: bytes, console: str) -> str:
    """The reason why ``tail`` ends (or ended) another dump than that of this panic; else "".

    An image may come with a dump.
    """
    if len(tail) < kerneldump.SIZE:
        return ""
    header = kerneldump.parse(tail)
    if header.magic == kerneldump.CLEARED:
        return "has a dump that savecore has saved"
    if header.magic != kerneldump.MAGIC:
        return ""
    panic = decode(Cleaner().text(header.panic.encode())).partition("\n")[0].strip()
    if panic and f"panic: {panic}" not in console:
        return f"has an older dump, of the panic {panic!r}"
    # After compression the header has another length.
    if not header.compression and str(header.length >> 20) not in _BEGUN.findall(console):
        return f"has an older dump, of {header.length >> 20} MiB"
    return ""


def _keep(found: _Found, file: Path) -> list[str]:
    """Copy the dump to ``file``. Returns why that is impossible, as lines. Raises HarnessError and OSError."""
    if wrong := found.errors:
        return wrong
    length = kerneldump.parse(found.tail).length
    if length > LIMIT * MIB:
        return [f"{found.name} has a dump of {length // MIB} MiB; dumps of at most {LIMIT} MiB are kept"]
    return _copy(found, file)


def described(header: Header, name: str, device: str) -> list[str]:
    """The header of the dump in the file ``name``, as lines. Each text of the guest stays in its line."""
    kernel = header.kernel.splitlines()
    unpack = f" && {_UNPACK[header.compression].format(name.removesuffix('.gz'))}" if header.compression else ""
    return [
        f"{name}: a dump of {header.length} bytes, compressed by gzip",
        f"dump device: {device}",
        f"panic: {_line(header.panic)}",
        f"kernel: {_line(kernel[0]) if kernel else ''}",
        f"host name: {_line(header.hostname)}",
        f"read it with: gzip -d {name}{unpack} && kgdb kernel.debug {name.removesuffix('.gz')}",
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
        text = _console(guest).rpartition("\npanic: ")[2]
        ended = _ENDED.findall(text)
        if ended:
            return str(ended[-1]).strip()
        if not _BEGUN.search(text) and (begin.expired or _OVER.search(text) or guest.console.closed):
            return "nothing about a dump"
        raise ConditionNotMet("the kernel is writing its dump")

    try:
        return end.wait(f"{guest.name} to write its dump", poll, 0.5)
    except DeadlineExpired:
        return f"it began the dump, but did not end it within {end.seconds:.0f} s"


def _copy(found: _Found, file: Path) -> list[str]:
    """Copy the dump to ``file``, compressed. Returns why that is impossible, as lines. Leaves no file if it raises OSError."""
    header = kerneldump.parse(found.tail)
    packed = found.device.packed_dump(found.tail, _COPY)
    if wrong := _copy_errors(packed, header.length, _BEGINS[header.compression]):
        return wrong
    # A guest that was started again may use its swap.
    if found.device.headers() != (found.head, found.tail):
        return ["the headers of the dump changed while it was read"]
    part = file.with_name(f".{file.name}")  # bundles leave it out, too: it ends with DUMP_SUFFIX
    try:
        part.write_bytes(packed)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return []


def _copy_errors(packed: bytes, length: int, begin: bytes) -> list[str]:
    """The errors of a compressed dump of ``length`` bytes that begins with ``begin``, as lines. It is read in blocks, because the guest chose its length."""
    first, count = b"", 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            while count <= length and (block := stream.read(MIB)):
                first, count = first or block, count + len(block)
    except (OSError, EOFError, zlib.error) as exc:
        return [f"the copy from dom0 is damaged: {exc}"]
    if count != length:
        return [f"dom0 sent {'at least ' if count > length else ''}{count} bytes instead of {length}"]
    if not first.startswith(begin):
        return [f"it begins with {first[:24]!r} instead of {begin!r}"]
    return []
