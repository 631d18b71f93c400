# SPDX-License-Identifier: BSD-2-Clause
"""Identifies the format of a disk image file and gives its content as a raw file. Only reads the given file.

The first bytes identify a format. A qcow2 with a backing file is refused, because an image from elsewhere could name any file of this
machine. Formats other than raw, qcow2 and xz are refused, because a truncated file would go unnoticed.
Sources: magics of other formats in QEMU's block/; the xz file format 1.2.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from harness import store
from harness.digest import known, known_sha256
from harness.errors import InfrastructureError, UsageError
from harness.images import entries, qcow2
from harness.images.inputs import content_hash

_SMALLEST = 1 << 20
# The free space that the store's disk keeps, the largest disk, the memory for xz (bytes); the time for a conversion (s).
_RESERVE, _LARGEST, _XZ_MEMORY, _PATIENCE = 256 << 20, 16 << 40, 1 << 30, 1800
_BLOCK = 1 << 20
# Raise when the same file gives another raw disk.
_READER = 1

# Formats by (offset, magic), with qemu-img's name if it has one.
_MAGICS = (
    (0, b"\xfd7zXZ\0", "xz"), (0, b"QFI\xfb", "qcow2"), (0, b"conectix", "vpc"), (0, b"vhdxfile", "vhdx"),
    (64, b"\x7f\x10\xda\xbe", "vdi"), (0, b"KDMV", "vmdk"), (0, b"COWD", "vmdk"), (0, b"\xbe\xba\xfe\xca\0\0\0\0", "vmdk"),
    (0, b"QED\0", "qed"), (0, b"WithoutFreeSpace", "parallels"), (0, b"WithouFreSpacExt", "parallels"), (0, b"Bochs Virtual HD Image", "bochs"),
)  # fmt: skip
_PACKED = (
    (0, b"\x1f\x8b", "gzip", "gunzip"), (0, b"BZh", "bzip2", "bunzip2"), (0, b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (0, b"\x04\x22\x4d\x18", "lz4", "unlz4"), (0, b"\x02\x21\x4c\x18", "lz4", "unlz4"), (0, b"LZIP", "lzip", "lunzip"),
    (0, b"\x89LZO\0\r\n", "lzop", "lzop -d"), (0, b"\x1f\x9d", "compress", "uncompress"), (0, b"\x5d\0\0\x80\0\xff", "lzma", "unlzma"),
    (0, b"\x5d\0\0\0\4\xff", "lzma", "unlzma"), (0, b"PK\x03\x04", "zip", "unzip"), (0, b"7z\xbc\xaf\x27\x1c", "7z", "7z x"),
    (257, b"ustar", "tar", "tar xf (release sets: fxh image build --dist; an OVA has a VMDK in it)"),
)  # fmt: skip
# Frames without data of zstd and lz4, which pzstd writes first: 0x184D2A50 to 0x184D2A5F.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
# The descriptor of a VMDK; blank lines and other comments can precede its settings (QEMU's block/vmdk.c).
_DESCRIPTOR = re.compile(rb"(?:[ \t]*(?:#[^\n]*|\r?)\n)*[ \t]*(?:# *disk *descriptor *file|version *= *\d)", re.IGNORECASE)
_NAMES = {
    "vpc": "VHD",
    "vhdx": "VHDX",
    "vdi": "VDI",
    "vmdk": "VMDK",
    "qed": "QED",
    "parallels": "Parallels",
    "bochs": "Bochs",
    "dmg": "DMG",
}


@dataclass(frozen=True)
class RawDisk:
    """``path`` is the raw content: the ``given`` file itself, or a file of the store. ``fresh``: this process unpacked it."""

    given: Path
    path: Path
    fresh: bool = False

    @property
    def key(self) -> str:
        """A hash of the given file's content. The first use reads all of it, except the holes of a raw file."""
        return known(self.given, content_hash) if self.path == self.given else known_sha256(self.given)

    def drop(self) -> None:
        """Remove the file from the store if this process unpacked it and nothing uses it."""
        if self.fresh and self.path.exists():
            store.remove(self.path.parent)


def identify(path: Path) -> str:
    """The format of an image file: ``raw``, ``xz``, or qemu-img's name.

    Raises UsageError for a file that is not a disk image, or has a format to convert first; the hint gives the command.
    """
    try:
        mode = path.stat().st_mode
        # On FreeBSD disks are character devices.
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and sys.platform == "linux"):
            # To open a pipe would take for ever.
            raise UsageError(f"{path}: neither a file nor a disk", hint="save the disk image in a file, and give its path")
        with path.open("rb") as file:
            head, size = file.read(512), file.seek(0, 2)
            file.seek(max(0, size - 512))
            tail = file.read(512)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a disk image that can be read") from exc
    packed = [(name, tool) for at, magic, name, tool in _PACKED if head[at : at + len(magic)] == magic]
    if not packed and _SKIPPABLE.match(head):
        packed = [("zstd or lz4", "unzstd, or unlz4,")]
    for name, tool in packed:
        # lz, lzma and lzop are spelled out when read aloud.
        article = "an" if name.startswith("lz") else "a"
        raise UsageError(f"{path}: {article} {name} file, not a disk image", hint=f"unpack it first: {tool} {path.name}")
    if head[:4] == b"\x7fELF":
        raise UsageError(f"{path}: an ELF file, not a disk image", hint="for a kernel: --kernel FILE, with --disk DISK")
    found = next((name for at, magic, name in _MAGICS if head[at : at + len(magic)] == magic), "")
    if not found and _DESCRIPTOR.match(head):
        found = "vmdk"
    if not found:
        found = _by_tail(tail)
    if found in _NAMES:
        raise UsageError(
            f"{path}: a {_NAMES[found]} file, and only raw and qcow2 disks are supported",
            hint=f"qemu-img convert -f {found} -O qcow2 {path.name} disk.qcow2; FreeBSD publishes each image also as raw and qcow2",
        )
    if found == "raw" and (size < _SMALLEST or size % 512):
        raise UsageError(
            f"{path}: a file of {size} bytes is not a disk image",
            hint="give a raw or qcow2 image, or one in .xz; check that the file is complete",
        )
    return found


def _by_tail(tail: bytes) -> str:
    """The format of a file, from its last 512 bytes."""
    # A fixed-size VHD is the raw disk followed by one sector; with Virtual PC 2004 and older, by 511 bytes.
    if b"conectix" in (tail[:8], tail[1:9]):
        return "vpc"
    return "dmg" if tail[:4] == b"koly" else "raw"


def raw(path: Path) -> RawDisk:
    """The disk in the file ``path`` as a raw file. Another format is unpacked once, into the store.

    Raises UsageError for an incomplete or unsupported file, InfrastructureError when the store's disk is full.
    """
    path = path.expanduser().absolute()
    kind = identify(path)
    if kind == "raw":
        return RawDisk(path, path)

    def fill(work: Path) -> dict[str, Any]:
        started = time.monotonic()
        _unpack(path, path, kind, work, work / "disk.raw")
        return {"what": f"the disk in {path.name}", "seconds": round(time.monotonic() - started, 2)}

    key = f"{known_sha256(path)[:16]}-{_READER}"
    fresh = entries.find("raws", key) is None
    entry = entries.get_or_create("raws", key, fill)
    return RawDisk(path, entry.directory / "disk.raw", fresh)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[RawDisk]:
    """As :func:`raw`; if the body raises, remove the unpacked file."""
    disk = raw(path)
    try:
        yield disk
    except BaseException:
        disk.drop()
        raise


def _unpack(given: Path, source: Path, kind: str, work: Path, target: Path) -> None:
    """Write the raw content of ``source`` to ``target``; messages name the ``given`` file."""
    if kind == "raw":
        source.rename(target)
        return
    if kind == "qcow2":
        qcow2.check(given, source, _LARGEST)
        _convert(given, source, target)
        return
    inner = work / "unpacked"
    _xz(given, source, inner)
    try:
        found = identify(inner)
    except UsageError as exc:
        raise UsageError(exc.message.replace(str(inner), f"{given}, unpacked"), hint=exc.hint) from None
    if found == "xz":
        raise UsageError(f"{given}: an xz file within an xz file", hint="unpack it once: unxz")
    _unpack(given, inner, found, work, target)
    inner.unlink(missing_ok=True)


# -- xz ---------------------------------------------------------------------------------------------------------------


def _xz(given: Path, source: Path, target: Path) -> None:
    room = _room(target)
    with source.open("rb") as packed, target.open("wb") as out:
        size = written = 0
        for block in _streams(given, packed):
            size += len(block)
            if block.count(0) == len(block):
                out.seek(len(block), 1)
            else:
                out.write(block)
                written += len(block)
            if written > room or size > _LARGEST:
                raise _too_large(given, target, room)
        out.truncate(size)


def _streams(given: Path, packed: BinaryIO) -> Iterator[bytes]:
    """The content of all xz streams of a file, in blocks."""
    damaged = UsageError(f"{given}: the xz file ends too early", hint="it is truncated: fetch it again")
    data = packed.read(_BLOCK)
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        while not stream.eof:
            try:
                block = stream.decompress(data, _BLOCK)
            except lzma.LZMAError as exc:
                raise UsageError(f"{given}: a damaged xz file ({exc})", hint="fetch it again") from exc
            if block:
                yield block
            data = packed.read(_BLOCK) if stream.needs_input and not stream.eof else b""
            if not data and stream.needs_input and not stream.eof:
                raise damaged
        # Padding between streams: zeros, a multiple of four.
        data = stream.unused_data or packed.read(_BLOCK)
        while data and not data.strip(b"\0"):
            data = packed.read(_BLOCK)
        data = data.lstrip(b"\0")


# -- qcow2 ------------------------------------------------------------------------------------------------------------


def _convert(given: Path, source: Path, target: Path) -> None:
    """Write the disk of a qcow2 file to ``target``. Stops when the output needs more than the free space."""
    room = _room(target)
    status, output = _qemu_img(given, ["convert", "-f", "qcow2", "-O", "raw", str(source), str(target)], target, room)
    if status:
        if _room(target) <= 0:
            raise _too_large(given, target, room)
        raise UsageError(
            f"{given}: {output.strip()[-400:].replace(str(source), str(given))}",
            hint="check that the file is complete, or fetch it again",
        )
    if target.stat().st_size < _SMALLEST:
        raise UsageError(
            f"{given}: a disk of {target.stat().st_size} bytes is too small", hint="give an image with a FreeBSD on it"
        )


def _qemu_img(given: Path, words: list[str], target: Path, room: int) -> tuple[int, str]:
    """The exit status of qemu-img and the start of its stderr. Raises InfrastructureError when ``target`` outgrows ``room`` bytes."""
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(["qemu-img", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        except FileNotFoundError as exc:
            raise UsageError(f"{given}: this machine lacks qemu-img, which reads qcow2 files", hint="fxh setup") from exc
        end = time.monotonic() + _PATIENCE
        try:
            while process.poll() is None:
                if target.exists() and target.stat().st_blocks * 512 > room:
                    raise _too_large(given, target, room)
                if time.monotonic() > end:
                    raise InfrastructureError(f"{given}: qemu-img {words[0]} has not ended in {_PATIENCE} s", hint="run it by hand")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        return process.returncode, os.pread(log.fileno(), 4096, 0).decode(errors="replace")


def _room(where: Path) -> int:
    return shutil.disk_usage(where.parent).free - _RESERVE


def _too_large(given: Path, where: Path, room: int) -> InfrastructureError:
    return InfrastructureError(
        f"{given}: the unpacked disk needs more than the {max(room, 0) >> 20} MiB that are free at {where.parent.parent}",
        hint="free some space (`fxh store gc`), or point FXH_STORE at a larger disk",
    )
