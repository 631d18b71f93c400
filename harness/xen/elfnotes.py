# SPDX-License-Identifier: BSD-2-Clause
"""Reads the ELF notes of a kernel: the guest types that it supports (xen/include/public/elfnote.h), and its build-id."""

from __future__ import annotations

import mmap
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

_ENTRY, _FEATURES, _PHYS32_ENTRY = 1, 10, 18
_GNU_BUILD_ID = 3
_SHT_NOTE, _PT_NOTE = 7, 4
_LARGEST = 512 << 20
# The areas with notes that are read, and the bytes of one: a kernel has less than ten, of some hundred bytes.
_AREAS, _AREA = 256, 64 << 10


@dataclass(frozen=True)
class Notes:
    """The Xen notes of a kernel: pairs of type and raw content. ``bits`` is 32 or 64."""

    bits: int
    notes: tuple[tuple[int, bytes], ...]

    @property
    def guest_types(self) -> tuple[str, ...]:
        """The guest types: pvh if there is a PHYS32_ENTRY, pv if there is an ENTRY.

        FreeBSD 12 and later has an ENTRY but requires auto_translated_physmap: that is the first version of PVH, not PV.
        """
        found = dict(self.notes)
        required = found.get(_FEATURES, b"").rstrip(b"\0").split(b"|")
        types = ["pvh"] if _PHYS32_ENTRY in found else []
        return (*types, "pv") if _ENTRY in found and b"auto_translated_physmap" not in required else tuple(types)


def read(path: Path) -> Notes:
    """The Xen notes of an ELF file. Raises UsageError for an unreadable or truncated file, and for any other file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # To open a pipe would take for ever.
            raise UsageError(f"{path}: not a regular file", hint="give the path of a kernel")
        if path.stat().st_size > _LARGEST:
            raise UsageError(
                f"{path}: {path.stat().st_size >> 20} MiB is too large for a kernel", hint="give the kernel, not a disk image"
            )
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a readable kernel") from exc
    try:
        return parse(data)
    except ValueError as exc:
        raise UsageError(f"{path}: {exc}", hint="give an uncompressed ELF kernel such as /boot/kernel/kernel") from None


def parse(data: bytes) -> Notes:
    """The Xen notes in an ELF image, from note sections and PT_NOTE segments. FreeBSD's are only in a section.

    Raises ValueError for a truncated file, and for any other file.
    """
    found = ((kind, content) for owner, kind, content in _notes(data) if owner == b"Xen\0")
    return Notes(64 if data[4] == 2 else 32, tuple(dict.fromkeys(found)))


def build_id(path: Path) -> str:
    """The GNU build-id of an ELF file in hex, as ``sysctl kern.build_id`` and ``xl info`` print it; "" if it has none.

    A kernel may contain other ELF images with build-ids (Linux's vDSO), so only its own notes count. Raises OSError.
    """
    with path.open("rb") as file:
        try:
            # A file with debugging information has 100 MB: read only its headers and notes.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                notes = _notes(data)
        except ValueError:  # empty, truncated or no ELF file
            return ""
    return next((content.hex() for owner, kind, content in notes if (owner, kind) == (b"GNU\0", _GNU_BUILD_ID)), "")


def _notes(data: bytes | mmap.mmap) -> list[tuple[bytes, int, bytes]]:
    """(owner, type, content) of each note, those of sections first: a file without code has wrong offsets in its segments."""
    if data[:4] != b"\x7fELF":
        raise ValueError("not an ELF file" + (" (gzip: unpack it first)" if data[:2] == b"\x1f\x8b" else ""))
    if len(data) < 64 or data[4] not in (1, 2) or data[5] != 1:
        raise ValueError("a truncated or big-endian ELF file")
    try:
        if data[4] == 2:
            phoff, shoff = struct.unpack_from("<QQ", data, 32)
            phentsize, phnum, shentsize, shnum = struct.unpack_from("<4H", data, 54)
            segments = [struct.unpack_from("<II6Q", data, phoff + n * phentsize) for n in range(phnum)]
            sections = [struct.unpack_from("<II4Q", data, shoff + n * shentsize) for n in range(shnum if shoff else 0)]
            areas = [(s[4], s[5]) for s in sections if s[1] == _SHT_NOTE] + [(s[2], s[5]) for s in segments if s[0] == _PT_NOTE]
        else:
            phoff, shoff = struct.unpack_from("<II", data, 28)
            phentsize, phnum, shentsize, shnum = struct.unpack_from("<4H", data, 42)
            segments = [struct.unpack_from("<8I", data, phoff + n * phentsize) for n in range(phnum)]
            sections = [struct.unpack_from("<6I", data, shoff + n * shentsize) for n in range(shnum if shoff else 0)]
            areas = [(s[4], s[5]) for s in sections if s[1] == _SHT_NOTE] + [(s[1], s[4]) for s in segments if s[0] == _PT_NOTE]
        return [note for offset, size in areas[:_AREAS] for note in _area(data[offset : offset + min(size, _AREA)])]
    except (struct.error, OverflowError):
        raise ValueError("a truncated ELF file: its headers point past its end") from None


def _area(data: bytes) -> list[tuple[bytes, int, bytes]]:
    found, at = [], 0
    while at + 12 <= len(data):
        namesz, descsz, kind = struct.unpack_from("<III", data, at)
        start = at + 12 + (namesz + 3 & ~3)
        found.append((data[at + 12 : at + 12 + namesz], kind, data[start : start + descsz]))
        at = start + (descsz + 3 & ~3)
    return found
