# SPDX-License-Identifier: BSD-2-Clause
"""Reads partition tables as FreeBSD does: the partitions of a disk, with their FreeBSD names.

Source: sys/geom/part/g_part_gpt.c, g_part_mbr.c and g_part_bsd.c (15.1), their probe and read functions.
"""

from __future__ import annotations

import uuid
import zlib
from dataclasses import dataclass, replace
from typing import Any

from construct import ConstructError

from harness.errors import UsageError
from harness.images import tables
from harness.images.tables import SECTOR
from harness.images.window import Readable

# g_part_gpt.c: gps_maxent and MAXENTSIZE.
_MOST_ENTRIES, _LARGEST_ENTRY = 4096, 1024
# g_part_bsd.c: gps_minent and gps_maxent. The raw partition c covers the whole provider.
_LABEL_PARTS, _RAW_PART = (8, 20), 2
_PROTECTIVE = 0xEE
# On a disk with sectors of 4096 bytes the table is at another offset and counts in other units.
_SECTORS = (SECTOR, 4096)
_TYPES = {uuid.UUID(value).bytes_le: name for name, value in tables.GPT_TYPES.items()}
_MBR_TYPES = {tables.FREEBSD_SLICE: "freebsd", 0xEF: "efi", 0x83: "linux-data"}
# sys/sys/disklabel.h, FSTYPENAMES
_LABEL_TYPES = {1: "freebsd-swap", 7: "freebsd-ufs", 27: "freebsd-zfs"}


@dataclass(frozen=True)
class Partition:
    """``name`` is FreeBSD's below /dev: ``xbd0`` (a disk without a table), ``xbd0p2``, ``xbd0s1``, ``xbd0s1a``, ``xbd0a``.

    ``start`` and ``size`` are in bytes from the start of the disk. ``type`` is gpart's name for it, or the table's value.
    ``label`` is the GPT's; FreeBSD also has the partition as ``gpt/LABEL``.
    """

    name: str
    type: str
    start: int
    size: int
    label: str = ""
    primary: bool = True
    """False if the GPT's first copy is damaged and the second was read."""
    sector: int = SECTOR
    """Bytes per sector of its table. FreeBSD finds the table only on a disk with sectors of this size."""


def partitions(disk: Readable, name: str = "xbd0") -> tuple[Partition, ...]:
    """The partitions of ``disk`` in the order of their tables, including nested ones; the disk itself if it has no table.

    Of partitions that begin at the same byte (a slice, and the partition ``a`` of its label) only the innermost is listed.
    Raises UsageError for a GPT without a readable copy, and for a slice of an MBR beyond the end of the disk.
    """
    found = _within(disk, name)
    if not found:
        return (Partition(name, "", 0, disk.size),)
    return tuple(part for part in found if not any(_nested(other, part) for other in found))


def _nested(inner: Partition, outer: Partition) -> bool:
    return inner is not outer and inner.start == outer.start and inner.name.startswith(outer.name) and inner.name[-1].isalpha()


def _within(disk: Readable, name: str) -> list[Partition]:
    sector = disk.read(0, SECTOR)
    slices = _slices(sector)
    protective = sector[510:512] == b"\x55\xaa" and any(sector[446 + n * 16 + 4 : 446 + n * 16 + 5] == b"\xee" for n in range(4))
    unit = next((unit for unit in _SECTORS if _has_gpt(disk, unit)), 0)
    # FreeBSD prefers a GPT with protective MBR, and a disklabel, to an MBR; and an MBR to a GPT without protective MBR.
    if protective and unit:
        return _gpt(disk, name, unit)
    for size in _SECTORS:
        if label := _label(disk, name, size):
            return label
    if slices:
        found = []
        for number, slice_ in slices:
            end = slice_.start + slice_.size
            if end > disk.size // SECTOR:
                # sys/geom/part/g_part.c, g_part_check_integrity(): FreeBSD would find no slice at all.
                raise UsageError(
                    f"slice {number} of the MBR ends before sector {end}, but the disk has {disk.size // SECTOR} sectors",
                    hint="check that the image is complete; fetch or copy it again",
                )
            part = _clipped(f"{name}s{number}", _MBR_TYPES.get(slice_.type, f"{slice_.type:#04x}"), slice_.start, slice_.size, disk)
            found += [part, *_nested_label(disk, part)]
        return found
    return _gpt(disk, name, unit) if unit else []


def _clipped(
    name: str, kind: str, first: int, sectors: int, disk: Readable, label: str = "", primary: bool = True, unit: int = SECTOR
) -> Partition:
    begin = min(first * unit, disk.size)
    return Partition(name, kind, begin, min(sectors * unit, disk.size - begin), label, primary, unit)


def _nested_label(disk: Readable, part: Partition) -> list[Partition]:
    """The partitions of a disklabel inside ``part``."""
    found = _label(disk.part(part.start, part.size), part.name, part.sector)
    return [replace(inner, start=inner.start + part.start) for inner in found]


# -- MBR --------------------------------------------------------------------------------------------------------------


def _slices(sector: bytes) -> list[tuple[int, Any]]:
    """The used entries of an MBR with their numbers, from 1."""
    try:
        table = tables.MBR.parse(sector)
    except ConstructError:
        return []
    if any(entry.flag not in (0, 0x80) for entry in table.slices):
        return []  # a boot sector, such as a FAT's
    return [
        (number, entry)
        for number, entry in enumerate(table.slices, 1)
        if entry.type not in (0, _PROTECTIVE) and entry.start and entry.size
    ]


def boot_code(disk: Readable) -> bool:
    """Whether a BIOS finds boot code in the first sector."""
    sector = disk.read(0, SECTOR)
    return sector[510:512] == b"\x55\xaa" and any(sector[:440])


# -- BSD disklabel ----------------------------------------------------------------------------------------------------


def _label(provider: Readable, name: str, unit: int) -> list[Partition]:
    """The partitions of a disklabel in the second sector of ``provider``.

    Offsets count from the start of the raw partition c. FreeBSD's labels are relative (c begins at 0); older ones in a slice are
    absolute (c begins at the start of the slice).
    """
    sector = provider.read(unit, SECTOR)
    if not _LABEL_PARTS[0] <= int.from_bytes(sector[138:140], "little") <= _LABEL_PARTS[1]:
        return []
    try:
        label = tables.LABEL.parse(sector)
    except ConstructError:
        return []
    if label.secsize != unit or not 1 <= label.nsectors <= 255 or not 1 <= label.ntracks <= 255 or not label.secperunit:
        return []
    base, last, found = label.partitions[_RAW_PART].offset, provider.size // unit - 1, []
    for number, entry in enumerate(label.partitions):
        if not entry.size or entry.offset < base:
            continue
        if entry.offset - base > last:
            return []  # FreeBSD: invalid disklabel
        if number != _RAW_PART:
            kind = _LABEL_TYPES.get(entry.fstype, f"!{entry.fstype}")
            found.append(_clipped(f"{name}{chr(ord('a') + number)}", kind, entry.offset - base, entry.size, provider, unit=unit))
    return found


# -- GPT --------------------------------------------------------------------------------------------------------------


def _has_gpt(disk: Readable, unit: int) -> bool:
    at_end = (disk.size // unit - 1) * unit
    return disk.size >= 6 * unit and any(disk.read(at, 8) == b"EFI PART" for at in (unit, at_end))


def _gpt(disk: Readable, name: str, unit: int) -> list[Partition]:
    last, wrong = disk.size // unit - 1, []
    for at, primary in ((1, True), (last, False)):
        try:
            entries = _gpt_entries(disk, at, last, unit)
        except (ValueError, ConstructError) as exc:
            wrong.append(f"sector {at}: {exc}")
            continue
        found = []
        for number, entry in enumerate(entries, 1):
            if entry.type == bytes(16) or entry.last < entry.first:
                continue
            kind = _TYPES.get(entry.type, str(uuid.UUID(bytes_le=entry.type)))
            label = entry.name.decode("utf-16-le", "replace").partition("\0")[0]
            part = _clipped(f"{name}p{number}", kind, entry.first, entry.last - entry.first + 1, disk, label, primary, unit)
            found += [part, *_nested_label(disk, part)]
        return found
    raise UsageError(
        f"no copy of the disk's GPT is good ({'; '.join(wrong)})", hint="check that the image is complete; fetch or copy it again"
    )


def _gpt_entries(disk: Readable, at: int, last: int, unit: int) -> list[Any]:
    """The entries of the copy whose header is in sector ``at``. Raises ValueError with the reason why FreeBSD would reject it."""
    sector = disk.read(at * unit, unit)
    if sector[:8] != b"EFI PART":
        raise ValueError("no header")
    header = tables.GPT_HEADER.parse(sector)
    if not 92 <= header.size <= unit:
        raise ValueError(f"a header of {header.size} bytes")
    if zlib.crc32(sector[:16] + bytes(4) + sector[20 : header.size]) != header.crc:
        raise ValueError("its header has another checksum")
    if header.revision < 0x10000 or header.self != at or header.other == at:
        raise ValueError(f"a header for sector {header.self}")
    if header.other > last:
        raise ValueError(f"its second copy is in sector {header.other}, and the disk ends at {last}")
    size = header.entries * header.entry_size
    if (
        not header.entries
        or header.entries > _MOST_ENTRIES
        or not 128 <= header.entry_size <= _LARGEST_ENTRY
        or header.entry_size & 7
    ):
        raise ValueError(f"{header.entries} entries of {header.entry_size} bytes")
    if header.table < 2 or header.table + -(-size // unit) - 1 > last:
        raise ValueError(f"its entries are in sector {header.table}, and the disk ends at {last}")
    data = disk.read(header.table * unit, size)
    if zlib.crc32(data) != header.table_crc:
        raise ValueError("its entries have another checksum")
    return [tables.GPT_ENTRY.parse(data[n * header.entry_size :][:128]) for n in range(header.entries)]
