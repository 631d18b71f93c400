# SPDX-License-Identifier: BSD-2-Clause
"""Writes partition tables: MBR, BSD disklabel, GPT, declared with construct. parttable.py reads them.

Sources: sys/sys/disk/mbr.h, sys/sys/disklabel.h and sys/disk/bsd.h, the UEFI specification 2.10, chapter 5.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from construct import Array, Bytes, Const, Default, Int8ul, Int16ul, Int32ul, Int64ul, Struct, this

SECTOR = 512
FREEBSD_SLICE = 0xA5
_GPT_ENTRIES, _GPT_ENTRY_SIZE = 128, 128
_GPT_SECTORS = _GPT_ENTRIES * _GPT_ENTRY_SIZE // SECTOR
GPT_FIRST = 2 + _GPT_SECTORS
"""The first sector after a GPT's first copy."""
GPT_TAIL = 1 + _GPT_SECTORS
"""Sectors of its second copy, at the end of the disk."""

GPT_TYPES = {
    "freebsd-boot": "83bd6b9d-7f41-11dc-be0b-001560b84f0f",
    "freebsd-ufs": "516e7cb6-6ecf-11d6-8ff8-00022d09712b",
    "freebsd-swap": "516e7cb5-6ecf-11d6-8ff8-00022d09712b",
    "freebsd-zfs": "516e7cba-6ecf-11d6-8ff8-00022d09712b",
    "efi": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
    "linux-data": "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "freebsd": "516e7cb4-6ecf-11d6-8ff8-00022d09712b",
    "ms-basic-data": "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7",
}
"""Types of GPT partitions by gpart's names: sys/sys/disk/gpt.h."""

MBR = Struct(
    "code" / Bytes(446),
    "slices" / Array(4, Struct(
        "flag" / Int8ul, "first_chs" / Bytes(3), "type" / Int8ul, "last_chs" / Bytes(3), "start" / Int32ul, "size" / Int32ul,
    )),
    "magic" / Const(b"\x55\xaa"),
)  # fmt: skip

LABEL = Struct(
    "magic" / Const(0x82564557, Int32ul), "type" / Int16ul, "subtype" / Int16ul, "typename" / Bytes(16),
    "packname" / Bytes(16), "secsize" / Int32ul, "nsectors" / Int32ul, "ntracks" / Int32ul,
    "ncylinders" / Int32ul, "secpercyl" / Int32ul, "secperunit" / Int32ul, "spares" / Bytes(4), "acylinders" / Int32ul,
    "rpm" / Int16ul, "interleave" / Int16ul, "trackskew" / Int16ul, "cylskew" / Int16ul, "headswitch" / Int32ul,
    "trkseek" / Int32ul, "flags" / Int32ul, "drivedata" / Bytes(20), "spare" / Bytes(20), "magic2" / Const(0x82564557, Int32ul),
    "checksum" / Int16ul, "npartitions" / Int16ul, "bbsize" / Int32ul, "sbsize" / Int32ul,
    "partitions" / Array(this.npartitions, Struct(
        "size" / Int32ul, "offset" / Int32ul, "fsize" / Int32ul, "fstype" / Int8ul, "frag" / Int8ul, "cpg" / Int16ul,
    )),
)  # fmt: skip

GPT_HEADER = Struct(
    "signature" / Const(b"EFI PART"), "revision" / Default(Int32ul, 0x10000), "size" / Default(Int32ul, 92), "crc" / Int32ul,
    "reserved" / Default(Int32ul, 0), "self" / Int64ul, "other" / Int64ul, "first" / Int64ul, "last" / Int64ul, "guid" / Bytes(16),
    "table" / Int64ul, "entries" / Int32ul, "entry_size" / Int32ul, "table_crc" / Int32ul,
)  # fmt: skip
GPT_ENTRY = Struct(
    "type" / Bytes(16),
    "guid" / Bytes(16),
    "first" / Int64ul,
    "last" / Int64ul,
    "flags" / Int64ul,
    "name" / Bytes(72),
)

# sys/sys/disklabel.h
_FS = {"swap": 1, "ufs": 7, "unused": 0}


@dataclass(frozen=True)
class Part:
    """``type`` is a key of GPT_TYPES; ``start`` and ``size`` in sectors."""

    type: str
    start: int
    size: int
    name: str = ""


@dataclass(frozen=True)
class MbrSlice:
    """A slice of an MBR: type byte, ``start`` and ``size`` in sectors, whether it is active."""

    kind: int
    start: int
    size: int
    active: bool = False


def mbr(start: int, size: int, *, code: bytes = b"", kind: int = FREEBSD_SLICE) -> bytes:
    """A master boot record with one slice, which is active if there is boot code (``code``), such as /boot/mbr."""
    return boot_record([MbrSlice(kind, start, size, bool(code))], code)


def boot_record(slices: Sequence[MbrSlice], code: bytes = b"") -> bytes:
    """A master boot record with up to four slices."""
    rows = [{
        "flag": 0x80 if part.active else 0, "first_chs": _chs(part.start), "type": part.kind,
        "last_chs": _chs(part.start + part.size - 1), "start": part.start, "size": part.size,
    } for part in slices]  # fmt: skip
    empty = {"flag": 0, "first_chs": bytes(3), "type": 0, "last_chs": bytes(3), "start": 0, "size": 0}
    return bytes(MBR.build({"code": code[:446].ljust(446, b"\0"), "slices": rows + [empty] * (4 - len(rows))}))


def disklabel(size: int, parts: list[Part]) -> bytes:
    """A BSD disklabel for the second sector of a slice of ``size`` sectors.

    ``parts`` are the partitions a, b, d, ... with ``start`` relative to the slice; c covers the slice.
    """
    rows = [{"size": 0, "offset": 0, "fsize": 0, "fstype": _FS["unused"], "frag": 0, "cpg": 0} for _ in range(8)]
    rows[2]["size"] = size
    for letter, part in zip((0, 1, 3, 4, 5, 6, 7), parts, strict=False):
        kind = "swap" if part.type == "freebsd-swap" else "ufs"
        rows[letter] |= {"size": part.size, "offset": part.start, "fstype": _FS[kind]}
    zero = dict.fromkeys(("subtype", "acylinders", "interleave", "trackskew", "cylskew", "headswitch", "trkseek", "flags", "checksum"), 0)  # fmt: skip
    fields = {
        **zero, "type": 0, "typename": bytes(16), "packname": bytes(16), "secsize": SECTOR, "nsectors": 63, "ntracks": 255,
        "ncylinders": max(1, size // (63 * 255)), "secpercyl": 63 * 255, "secperunit": size, "spares": bytes(4), "rpm": 3600,
        "drivedata": bytes(20), "spare": bytes(20), "npartitions": 8, "bbsize": 8192, "sbsize": 0, "partitions": rows,
    }  # fmt: skip
    # The exclusive or of all 16-bit words of a good label is 0.
    data = LABEL.build(fields)
    total = 0
    for (word,) in struct.iter_unpack("<H", data):
        total ^= word
    return bytes(LABEL.build({**fields, "checksum": total}))


def gpt(sectors: int, parts: list[Part], *, seed: str, code: bytes = b"") -> tuple[bytes, bytes]:
    """The two copies of a GPT for a disk of ``sectors``: for its start (with the protective MBR) and for its end.

    GUIDs follow from ``seed``, so the same inputs give the same disk.
    """
    entries = b"".join(
        GPT_ENTRY.build({
            "type": uuid.UUID(GPT_TYPES[part.type]).bytes_le, "guid": _guid(seed, str(number)), "first": part.start,
            "last": part.start + part.size - 1, "flags": 0, "name": part.name.encode("utf-16-le")[:72].ljust(72, b"\0"),
        })
        for number, part in enumerate(parts, 1)
    ).ljust(_GPT_ENTRIES * _GPT_ENTRY_SIZE, b"\0")  # fmt: skip
    common = {
        "first": GPT_FIRST, "last": sectors - GPT_TAIL - 1, "guid": _guid(seed, "disk"), "entries": _GPT_ENTRIES,
        "entry_size": _GPT_ENTRY_SIZE, "table_crc": zlib.crc32(entries),
    }  # fmt: skip

    def header(own: int, other: int, table: int) -> bytes:
        fields = {**common, "self": own, "other": other, "table": table}
        crc = zlib.crc32(GPT_HEADER.build({**fields, "crc": 0}))
        return bytes(GPT_HEADER.build({**fields, "crc": crc})).ljust(SECTOR, b"\0")

    protective = mbr(1, sectors - 1, code=code, kind=0xEE)
    if code:
        # No firmware needs an active protective slice, and some refuse one.
        protective = protective[:446] + b"\0" + protective[447:]
    first = protective + header(1, sectors - 1, 2) + entries
    return first, entries + header(sectors - 1, 1, sectors - 1 - _GPT_SECTORS)


def gpt_start(head: bytes, kind: str) -> int:
    """The first sector of the first partition of type ``kind`` (a key of GPT_TYPES), -1 if it is missing.

    ``head`` is the disk up to the first usable sector.
    """
    wanted = uuid.UUID(GPT_TYPES[kind]).bytes_le
    for at in range(2 * SECTOR, min(len(head), GPT_FIRST * SECTOR) - _GPT_ENTRY_SIZE + 1, _GPT_ENTRY_SIZE):
        entry = GPT_ENTRY.parse(head[at : at + _GPT_ENTRY_SIZE])
        if entry.type == wanted:
            return int(entry.first)
    return -1


def _guid(seed: str, what: str) -> bytes:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{seed} {what}").bytes_le


def _chs(sector: int) -> bytes:
    """Cylinder, head, sector for 255 heads and 63 sectors; the largest address for a larger sector."""
    cylinder, rest = divmod(sector, 255 * 63)
    head, sect = divmod(rest, 63)
    if cylinder > 1023:
        return b"\xfe\xff\xff"
    return bytes([head, (sect + 1) | (cylinder >> 2 & 0xC0), cylinder & 0xFF])
