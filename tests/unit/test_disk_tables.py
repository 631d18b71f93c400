# SPDX-License-Identifier: BSD-2-Clause
"""Reading partition tables as FreeBSD does: valid, moved, damaged and nested ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.images import parttable, tables, window
from harness.images.parttable import Partition
from harness.images.tables import SECTOR, MbrSlice, Part

SECTORS = 24 << 11
PARTS = [Part("freebsd-boot", 40, 200, "bootfs"), Part("freebsd-ufs", 4096, 8192, "rootfs")]


def disk(path: Path, *pieces: tuple[int, bytes], sectors: int = SECTORS) -> Path:
    """A disk with the given bytes at the given sectors."""
    with path.open("wb") as file:
        file.truncate(sectors * SECTOR)
        for at, data in pieces:
            file.seek(at * SECTOR)
            file.write(data)
    return path


def read(path: Path) -> tuple[Partition, ...]:
    with window.opened(path) as whole:
        return parttable.partitions(whole)


def names(path: Path) -> list[str]:
    return [part.name for part in read(path)]


def gpt(
    path: Path, *, count: int = 128, size: int = 128, at: int = 2, primary: bytes = b"", used: int = 1, unit: int = SECTOR
) -> Path:
    """A disk whose GPT has ``count`` entries of ``size`` bytes in sector ``at``; number ``used`` is a freebsd-ufs.

    The GPT counts in sectors of ``unit`` bytes; the size of the disk in bytes does not change.
    """
    sectors, per = SECTORS * SECTOR // unit, unit // SECTOR
    entry = struct.pack(
        "<16s16sQQQ72s", uuid_of("freebsd-ufs"), b"g" * 16, 4096 // per, 12288 // per - 1, 0, "rootfs".encode("utf-16-le")
    ).ljust(size, b"\0")
    entries = (bytes(size) * (used - 1) + entry).ljust(count * size, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        def packed(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, own, other, 2048 // per, sectors - 2048 // per, b"d" * 16, table, count, size,
                zlib.crc32(entries),
            )  # fmt: skip

        return packed(zlib.crc32(packed(0)))

    copy = sectors - 1 - -(-len(entries) // unit)
    pieces = (
        (0, tables.mbr(1, sectors - 1, kind=0xEE)), (1, primary or header(1, sectors - 1, at)), (at, entries), (copy, entries),
        (sectors - 1, header(sectors - 1, 1, copy)),
    )  # fmt: skip
    return disk(path, *((where * per, data) for where, data in pieces))


def uuid_of(kind: str) -> bytes:
    import uuid

    return uuid.UUID(tables.GPT_TYPES[kind]).bytes_le


# -- GPT --------------------------------------------------------------------------------------------------------------


def test_tables_of_the_builder_are_read_back(tmp_path: Path) -> None:
    first, last = tables.gpt(SECTORS, PARTS, seed="x", code=b"\xeb\xfe")
    path = disk(tmp_path / "d", (0, first), (SECTORS - tables.GPT_TAIL, last))
    assert read(path) == (
        Partition("xbd0p1", "freebsd-boot", 40 * SECTOR, 200 * SECTOR, "bootfs"),
        Partition("xbd0p2", "freebsd-ufs", 4096 * SECTOR, 8192 * SECTOR, "rootfs"),
    )
    with window.opened(path) as whole:
        assert parttable.boot_code(whole)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ({}, "xbd0p1"),
        ({"at": 40}, "xbd0p1"),
        ({"count": 256, "used": 200}, "xbd0p200"),
        ({"size": 256, "used": 3}, "xbd0p3"),
        ({"size": 1024, "count": 16, "used": 16}, "xbd0p16"),
        ({"count": 1}, "xbd0p1"),
        ({"count": 4096, "used": 4096, "at": 16384}, "xbd0p4096"),
        ({"count": 130, "size": 136, "at": 777, "used": 129}, "xbd0p129"),
        ({"at": SECTORS - 2000}, "xbd0p1"),
        ({"unit": 4096}, "xbd0p1"),
        ({"unit": 4096, "at": 3000, "count": 300, "used": 300, "size": 1024}, "xbd0p300"),
    ],
)
def test_gpt_entries_of_any_place_and_size(tmp_path: Path, layout: dict[str, int], name: str) -> None:
    (part,) = read(gpt(tmp_path / "d", **layout))  # type: ignore[arg-type]
    assert (part.name, part.start, part.size, part.label) == (name, 4096 * SECTOR, 8192 * SECTOR, "rootfs")
    assert (part.primary, part.sector) == (True, layout.get("unit", SECTOR))


def test_the_second_copy_in_sectors_of_4096_bytes(tmp_path: Path) -> None:
    (part,) = read(gpt(tmp_path / "d", unit=4096, primary=bytes(92)))
    assert (part.name, part.start, part.primary, part.sector) == ("xbd0p1", 4096 * SECTOR, False, 4096)
    path = gpt(tmp_path / "e", unit=4096, primary=b"EFI PART" + bytes(84))
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(92))
    with pytest.raises(
        UsageError, match=r"no copy of the disk's GPT is good \(sector 1: a header of 0 bytes; sector 6143: no header"
    ):
        read(path)


def test_labels_in_sectors_of_4096_bytes(tmp_path: Path) -> None:
    label = bytearray(tables.disklabel(2048, [Part("freebsd-ufs", 16, 1000)]))
    struct.pack_into("<I", label, 40, 4096)
    (part,) = read(disk(tmp_path / "d", (8, bytes(label))))
    assert (part.name, part.start, part.size, part.sector) == ("xbd0a", 16 * 4096, 1000 * 4096, 4096)
    path = gpt(tmp_path / "e", unit=4096)
    with path.open("r+b") as file:
        file.seek(4096 * SECTOR + 4096)
        file.write(label)
    assert [(part.name, part.start) for part in read(path)] == [("xbd0p1", 4096 * SECTOR), ("xbd0p1a", 4096 * SECTOR + 16 * 4096)]


def test_the_second_copy_where_the_first_is_damaged(tmp_path: Path) -> None:
    header = gpt(tmp_path / "h", primary=b"EFI PART" + b"x" * 504)
    entries = gpt(tmp_path / "e")
    gone = gpt(tmp_path / "g", primary=bytes(512))
    with entries.open("r+b") as file:
        file.seek(2 * SECTOR + 20)
        file.write(b"?")
    for path in (header, entries, gone):
        (part,) = read(path)
        assert (part.name, part.primary) == ("xbd0p1", False), path


def test_no_good_copy_of_a_gpt(tmp_path: Path) -> None:
    path = gpt(tmp_path / "d", primary=b"EFI PART" + b"x" * 504)
    with path.open("r+b") as file:
        file.truncate((SECTORS - 100) * SECTOR)
    with pytest.raises(
        UsageError, match=r"no copy of the disk's GPT is good \(sector 1: a header of \d+ bytes; sector \d+: no header\)"
    ):
        read(path)


def test_a_truncated_disk(tmp_path: Path) -> None:
    path = gpt(tmp_path / "d")
    with path.open("r+b") as file:
        file.truncate((SECTORS - 4000) * SECTOR)
    with pytest.raises(UsageError, match=f"its second copy is in sector {SECTORS - 1}, and the disk ends at {SECTORS - 4001}"):
        read(path)


def test_a_hybrid_mbr_does_not_hide_the_gpt(tmp_path: Path) -> None:
    path = gpt(tmp_path / "d")
    with path.open("r+b") as file:
        file.write(tables.boot_record([MbrSlice(0xEE, 1, 4095), MbrSlice(0xA5, 4096, 8192, True)]))
    assert names(path) == ["xbd0p1"]


def test_an_mbr_without_protection_is_younger_than_the_gpt(tmp_path: Path) -> None:
    path = gpt(tmp_path / "d")
    with path.open("r+b") as file:
        file.write(tables.mbr(63, 8000))
    assert names(path) == ["xbd0s1"]


@pytest.mark.parametrize("count", [0, 5000, 1 << 31])
def test_gpt_of_absurd_sizes(tmp_path: Path, count: int) -> None:
    path = gpt(tmp_path / "d")
    with path.open("r+b") as file:
        for at in (SECTOR, (SECTORS - 1) * SECTOR):
            file.seek(at)
            header = bytearray(file.read(92))
            header[80:84] = struct.pack("<I", count)
            header[16:20] = bytes(4)
            header[16:20] = struct.pack("<I", zlib.crc32(header))
            file.seek(at)
            file.write(header)
    with pytest.raises(UsageError, match=f"{count} entries of 128 bytes"):
        read(path)


# -- MBR and BSD disklabels -------------------------------------------------------------------------------------------


def labelled(parts: list[Part], size: int, base: int = 0) -> bytes:
    """A disklabel; with ``base`` all offsets are absolute, as in old labels of a slice that begins there."""
    data = bytearray(tables.disklabel(size, parts))
    for number in range(8):
        at = 148 + number * 16
        (length,) = struct.unpack_from("<I", data, at)
        if length:
            struct.pack_into("<I", data, at + 4, struct.unpack_from("<I", data, at + 4)[0] + base)
    return bytes(data)


@pytest.mark.parametrize("base", [0, 63])
def test_a_label_in_a_slice_with_relative_and_absolute_offsets(tmp_path: Path, base: int) -> None:
    label = labelled([Part("freebsd-ufs", 16, 8000), Part("freebsd-swap", 8016, 100)], 20000, base)
    path = disk(tmp_path / "d", (0, tables.mbr(63, 20000)), (64, label))
    assert [(part.name, part.type, part.start // SECTOR, part.size // SECTOR) for part in read(path)] == [
        ("xbd0s1", "freebsd", 63, 20000), ("xbd0s1a", "freebsd-ufs", 79, 8000), ("xbd0s1b", "freebsd-swap", 8079, 100),
    ]  # fmt: skip


def test_a_partition_that_begins_where_its_slice_does(tmp_path: Path) -> None:
    path = disk(tmp_path / "d", (0, tables.mbr(63, 20000)), (64, tables.disklabel(20000, [Part("freebsd-ufs", 0, 20000)])))
    assert names(path) == ["xbd0s1a"], "and not also its slice: they are one file system"


def test_a_slice_beyond_the_end_of_the_disk(tmp_path: Path) -> None:
    path = disk(tmp_path / "d", (0, tables.mbr(63, SECTORS - 63)))
    assert names(path) == ["xbd0s1"]
    path = disk(tmp_path / "d", (0, tables.mbr(63, SECTORS - 62)))
    with pytest.raises(
        UsageError, match=f"slice 1 of the MBR ends before sector {SECTORS + 1}, but the disk has {SECTORS} sectors"
    ) as caught:
        read(path)
    assert "check that the image is complete" in caught.value.hint


def test_a_label_on_the_whole_disk(tmp_path: Path) -> None:
    label = tables.disklabel(16384, [Part("freebsd-ufs", 16, 16368)])
    assert names(disk(tmp_path / "d", (1, label))) == ["xbd0a"]
    # boot1 ends with a partition table whose fourth slice is the whole disk.
    dedicated = tables.boot_record([MbrSlice(0, 0, 0)] * 3 + [MbrSlice(0xA5, 0, 50000, True)])
    assert names(disk(tmp_path / "e", (0, dedicated), (1, label))) == ["xbd0a"]


def test_a_label_within_a_gpt_partition_and_in_another_slice(tmp_path: Path) -> None:
    label = tables.disklabel(8192, [Part("freebsd-ufs", 16, 8000)])
    first, last = tables.gpt(SECTORS, [Part("freebsd", 4096, 8192)], seed="x")
    assert names(disk(tmp_path / "g", (0, first), (4097, label), (SECTORS - tables.GPT_TAIL, last))) == ["xbd0p1", "xbd0p1a"]
    record = tables.boot_record([MbrSlice(0x0C, 63, 1000), MbrSlice(0, 0, 0), MbrSlice(0xA5, 2048, 8192)])
    assert names(disk(tmp_path / "m", (0, record), (2049, label))) == ["xbd0s1", "xbd0s3", "xbd0s3a"]


def test_labels_that_freebsd_refuses(tmp_path: Path) -> None:
    good = tables.disklabel(20000, [Part("freebsd-ufs", 16, 8000)])
    far = labelled([Part("freebsd-ufs", 30000, 8000)], 20000)
    many = good[:138] + struct.pack("<H", 60000) + good[140:]
    other = good[:40] + struct.pack("<I", 4096) + good[44:]
    for label in (far, many, other, good[:4] + bytes(200)):
        assert names(disk(tmp_path / "d", (0, tables.mbr(63, 20000)), (64, label))) == ["xbd0s1"]


def test_disks_without_a_table(tmp_path: Path) -> None:
    fat = bytearray(512)
    fat[446] = 0x41  # code at the place of a table's flag
    fat[510:] = b"\x55\xaa"
    for number, data in enumerate((b"", bytes(fat), bytes(510) + b"\x55\xaa")):
        assert read(disk(tmp_path / str(number), (0, data))) == (Partition("xbd0", "", 0, SECTORS * SECTOR),)


@contextmanager
def opened(data: bytes, path: Path) -> Iterator[window.Window]:
    path.write_bytes(data)
    with window.opened(path) as whole:
        yield whole


def test_a_window_has_a_limit(tmp_path: Path) -> None:
    with opened(bytes(range(100)), tmp_path / "w") as whole:
        part = whole.part(90, 50)
        assert (part.size, part.read(5, 100), part.read(10, 1), part.read(-1, 4)) == (10, bytes(range(95, 100)), b"", b"")
    with pytest.raises(UsageError, match="No such file"), window.opened(tmp_path / "none"):
        pass
