"""Partition tables around file systems, as images: MBR slices, a BSD label in one, GPT. Sectors are 512 bytes."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

SECTOR = 512
_ALIGN = 64
FREEBSD_SLICE, LINUX_SLICE = 0xA5, 0x83
FREEBSD_UFS = uuid.UUID("516e7cb6-6ecf-11d6-8ff8-00022d09712b")
FREEBSD_BOOT = uuid.UUID("83bd6b9d-7f41-11dc-be0b-001560b84f0f")


@dataclass(frozen=True)
class Slice:
    """An MBR partition: type byte, content, whether it is the active one."""

    kind: int
    data: bytes
    active: bool = False


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % (_ALIGN * SECTOR))


def mbr(slices: Sequence[Slice]) -> bytes:
    """A disk with up to four primary slices, each at a multiple of 64 sectors."""
    entries, body, at = b"", b"", _ALIGN
    for part in slices:
        data = _padded(part.data)
        sectors = len(data) // SECTOR
        entries += struct.pack("<B3sB3sII", 0x80 if part.active else 0, b"\0\0\0", part.kind, b"\0\0\0", at, sectors)
        body += data
        at += sectors
    first = bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"
    return first.ljust(_ALIGN * SECTOR, b"\0") + body


def gpt(parts: Sequence[tuple[uuid.UUID, bytes]]) -> bytes:
    """A GPT disk with its protective MBR; the backup table is left out, for no reader here wants it."""
    entries, body, at = b"", b"", _ALIGN
    for n, (kind, raw) in enumerate(parts):
        data = _padded(raw)
        last = at + len(data) // SECTOR - 1
        entries += kind.bytes_le + uuid.UUID(int=n + 1).bytes_le + struct.pack("<QQQ", at, last, 0) + bytes(72)
        body += data
        at = last + 1
    entries = entries.ljust(128 * 128, b"\0")
    total = at
    fields = (
        b"EFI PART",
        0x10000,
        92,
        0,
        0,
        1,
        total - 1,
        _ALIGN,
        total - 1,
        uuid.UUID(int=99).bytes_le,
        2,
        128,
        128,
        zlib.crc32(entries),
    )
    packed = struct.pack("<8sIIIIQQQQ16sQIII", *fields)
    header = packed[:16] + struct.pack("<I", zlib.crc32(packed)) + packed[20:]
    protective = struct.pack("<B3sB3sII", 0, b"\0\0\0", 0xEE, b"\0\0\0", 1, total - 1)
    first = (bytes(446) + protective.ljust(64, b"\0") + b"\x55\xaa").ljust(SECTOR, b"\0")
    return (first + header.ljust(SECTOR, b"\0") + entries).ljust(_ALIGN * SECTOR, b"\0") + body
