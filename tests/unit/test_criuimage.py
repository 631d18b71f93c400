# SPDX-License-Identifier: BSD-2-Clause
"""Edits of CRIU's images: memory pages move to a file, all other content stays, and unsupported images stay unchanged."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from harness.lab import criuimage
from harness.lab.criuimage import Unknown, take_memory_out

PAGE, SIZE = 4096, 8 * 4096
HEAP, CODE, MEMORY = 0x7F0000000000, 0x7F3000000000, 0x7F3800000000


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    return b"".join(
        varint(n << 3) + varint(v) if isinstance(v, int) else varint(n << 3 | 2) + varint(len(v)) + v for n, v in fields
    )


def fields(data: bytes, *messages: int) -> list[tuple[int, object]]:
    """Number and value of each field of a message, sorted by number. ``messages`` are the numbers of nested messages."""
    found = [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(data))]
    return sorted(((n, fields(v) if n in messages else v) for n, v in found), key=lambda field: field[0])


def image(path: Path, *entries: bytes) -> None:
    path.write_bytes(b"\x54\x56\x43\x19MAGC" + b"".join(struct.pack("<I", len(e)) + e for e in entries))


def vma(start: int, size: int, file: int, flags: int, *, use: int = 3) -> bytes:
    return message((1, start), (2, start + size), (3, 0), (4, file), (5, use), (6, flags), (7, 65 if file else 0x201), (9, 0x4000))


def write(
    directory: Path, base: Path, *, size: int = SIZE, runs: tuple[tuple[int, int], ...] = ((HEAP, 1), (MEMORY + PAGE, 2))
) -> None:
    """Images of a process with a heap, two pages of code and a private mapping of ``base``. Page n has bytes of value n."""
    other = message((1, 4), (2, 4), (3, message((1, 4), (6, b"/lib/libc.so"), (8, 99))))
    ram = message((1, 1), (2, 7), (3, message((1, 7), (2, 0), (6, os.fsencode(base)), (8, SIZE))))
    image(directory / "files.img", other, ram)
    space = message((1, 1), (14, vma(HEAP, PAGE, 0, 34)), (14, vma(CODE, 2 * PAGE, 0, 34, use=7)), (14, vma(MEMORY, size, 7, 2)))
    image(directory / "mm-1000.img", space)
    entries = [message((1, 3))] + [message((1, address), (2, 0), (4, 4), (5, count)) for address, count in runs]
    image(directory / "pagemap-1000.img", *entries)
    count = sum(count for _, count in runs)
    (directory / "pages-3.img").write_bytes(b"".join(bytes([n]) * PAGE for n in range(1, count + 1)))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(b"\xbb" * SIZE)
    path.chmod(0o640)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


def test_memory_and_code_become_a_file(images: Path, base: Path, tmp_path: Path) -> None:
    write(images, base, runs=((HEAP, 1), (CODE + PAGE, 1), (MEMORY + PAGE, 2)))
    place = tmp_path / "a place with a longer name than before" / "ram"
    other = criuimage._entries(images / "files.img")[0]

    take_memory_out(images, base, SIZE, tmp_path / "ram", place)

    memory = (tmp_path / "ram").read_bytes()
    assert memory == b"\xbb" * PAGE + b"\x03" * PAGE + b"\x04" * PAGE + b"\xbb" * (5 * PAGE) + bytes(PAGE) + b"\x02" * PAGE
    assert (tmp_path / "ram").stat().st_mode & 0o777 == 0o640, "CRIU checks that a mapped file has not changed"
    assert (images / "pages-3.img").read_bytes() == b"\x01" * PAGE
    assert len(criuimage._entries(images / "pagemap-1000.img")) == 2
    code = message((1, CODE), (2, CODE + 2 * PAGE), (3, SIZE), (4, 7), (5, 7), (6, 2), (7, 0x41))
    (space,) = criuimage._entries(images / "mm-1000.img")
    expected = message((1, 1), (14, vma(HEAP, PAGE, 0, 34)), (14, code), (14, vma(MEMORY, SIZE, 7, 2)))
    assert fields(space, 14) == fields(expected, 14)
    files = criuimage._entries(images / "files.img")
    assert files[0] == other, "the entry of another file has the same bytes"
    renamed = message((1, 1), (2, 7), (3, message((1, 7), (2, 0), (6, str(place).encode()), (8, len(memory)))))
    assert fields(files[1], 3) == fields(renamed, 3)


def test_a_restored_process_is_saved_again(images: Path, base: Path, tmp_path: Path) -> None:
    """Pages that were written to since the restore are in CRIU's images, the others in the old file."""
    write(images, base, runs=((CODE, 2),))
    take_memory_out(images, base, SIZE, tmp_path / "one", tmp_path / "one")
    (images / "pages-3.img").write_bytes(b"\x05" * PAGE + b"\x06" * PAGE)
    image(images / "pagemap-1000.img", message((1, 3)), message((1, CODE + PAGE), (2, 1)), message((1, MEMORY), (2, 1)))

    take_memory_out(images, tmp_path / "one", SIZE, tmp_path / "two", tmp_path / "two")

    assert (tmp_path / "two").read_bytes() == b"\x06" * PAGE + b"\xbb" * (7 * PAGE) + b"\x01" * PAGE + b"\x05" * PAGE


def test_code_stays_in_the_images_on_a_noexec_file_system(
    images: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(images, base, runs=((CODE, 1), (MEMORY, 1)))
    before = (images / "mm-1000.img").read_bytes()
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))

    take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "ram")

    assert (images / "mm-1000.img").read_bytes() == before
    assert (images / "pages-3.img").read_bytes() == b"\x01" * PAGE
    assert (tmp_path / "ram").read_bytes() == b"\x02" * PAGE + b"\xbb" * (7 * PAGE)


@pytest.mark.parametrize("edge", [MEMORY, MEMORY + SIZE])
def test_pages_of_memory_and_other_pages_in_one_run(images: Path, base: Path, tmp_path: Path, edge: int) -> None:
    write(images, base, runs=((edge - PAGE, 2),))

    take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")

    outside, inside = (1, 2) if edge == MEMORY else (2, 1)
    assert (images / "pages-3.img").read_bytes() == bytes([outside]) * PAGE
    assert bytes([inside]) * PAGE in (tmp_path / "ram").read_bytes()
    kept = criuimage._entries(images / "pagemap-1000.img")[1]
    assert criuimage._page_run(kept) == (edge if edge != MEMORY else edge - PAGE, 1)


def test_images_of_an_unknown_format_stay_unchanged(images: Path, base: Path, tmp_path: Path) -> None:
    write(images, base, size=SIZE // 2)
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(Unknown, match="mappings of the memory"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")
    assert {path.name: path.read_bytes() for path in images.iterdir() if path.suffix == ".img"} == before


def test_a_file_without_a_size(images: Path, base: Path, tmp_path: Path) -> None:
    write(images, base)
    image(images / "files.img", message((1, 1), (2, 7), (3, message((1, 7), (6, str(base).encode())))))
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(Unknown, match="has no size of"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")
    assert {path.name: path.read_bytes() for path in images.iterdir() if path.suffix == ".img"} == before


def test_damaged_images(images: Path, base: Path, tmp_path: Path) -> None:
    for name in ("files.img", "mm-1000.img", "pagemap-1000.img", "pages-3.img"):
        for cut in (5, 1):
            write(images, base)
            data = (images / name).read_bytes()
            (images / name).write_bytes(data[:-cut])
            with pytest.raises(Unknown, match="truncated"):
                take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")
    write(images, base)
    (images / "pagemap-7.img").write_bytes((images / "pagemap-1000.img").read_bytes())
    with pytest.raises(Unknown, match="expected one"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")


@pytest.mark.parametrize("name", ["files.img", "mm-1000.img", "pagemap-1000.img"])
def test_images_that_end_within_a_size_or_have_no_entries(images: Path, base: Path, tmp_path: Path, name: str) -> None:
    for content in (b"", b"MAGIC---", b"MAGIC---\x01\x00"):
        write(images, base)
        (images / name).write_bytes(content)
        with pytest.raises(Unknown):
            take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")


@pytest.mark.parametrize("name", ["files.img", "mm-1000.img", "pagemap-1000.img"])
@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"\x08", id="no value"),
        pytest.param(b"\x08\x80", id="varint ends early"),
        pytest.param(b"\x08" + b"\xff" * 10 + b"\x01", id="varint of 11 bytes"),
        pytest.param(b"\x72\x05a", id="bytes end early"),
        pytest.param(b"\x0d\x00", id="fixed32 ends early"),
        pytest.param(b"\x0e", id="wire type 6"),
        pytest.param(b"\x0c", id="end of a group"),
        pytest.param(b"\x00\x00", id="field 0"),
    ],
)
def test_a_damaged_message(images: Path, base: Path, tmp_path: Path, name: str, damaged: bytes) -> None:
    write(images, base)
    entries = criuimage._entries(images / name)
    image(images / name, *entries[:-1], entries[-1] + damaged)
    before = {path.name: path.read_bytes() for path in images.iterdir()}

    with pytest.raises(Unknown, match=r"damaged (file|mm|pagemap)_entry"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")

    assert {path.name: path.read_bytes() for path in images.iterdir() if path.suffix == ".img"} == before


@pytest.mark.parametrize(("name", "number"), [("files.img", 3), ("mm-1000.img", 14)])
def test_a_damaged_inner_message(images: Path, base: Path, tmp_path: Path, name: str, number: int) -> None:
    write(images, base)
    *others, last = criuimage._entries(images / name)
    image(images / name, *others, last + message((number, b"\x08")))
    with pytest.raises(Unknown, match="damaged"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")


@pytest.mark.parametrize(
    ("name", "entry", "missing"),
    [
        ("files.img", message((1, 1)), "file_entry without id"),
        ("files.img", message((2, 7), (3, message((8, 1)))), "file_entry without reg.name"),
        ("mm-1000.img", message((14, message((1, 4096)))), r"mm_entry without vmas\[0\].end, vmas\[0\].pgoff"),
        ("pagemap-1000.img", message((2, 1)), "pagemap_head without pages_id"),
    ],
)
def test_a_missing_field(images: Path, base: Path, tmp_path: Path, name: str, entry: bytes, missing: str) -> None:
    write(images, base)
    image(images / name, entry)
    with pytest.raises(Unknown, match=missing):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(message((1, HEAP), (2, 1), (3, 1)), id="in the parent's images"),
        pytest.param(message((1, HEAP), (2, 0), (4, 2), (5, 1)), id="not present"),
        pytest.param(message((1, HEAP), (2, 1), (99, b"new")), id="unknown field"),
        pytest.param(message((1, HEAP), (4, 4)), id="no number of pages"),
    ],
)
def test_pages_that_are_not_in_the_pages_file(images: Path, base: Path, tmp_path: Path, entry: bytes) -> None:
    write(images, base)
    image(images / "pagemap-1000.img", message((1, 3)), entry)
    with pytest.raises(Unknown, match="not in the pages file"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")


def test_unknown_fields_stay_unchanged(images: Path, base: Path, tmp_path: Path) -> None:
    """protobuf writes them after the known fields, with the same bytes and in the same order. CRIU accepts any order of fields."""
    largest = (1 << 64) - 1
    fixed = varint(70 << 3 | 1) + b"8 bytes." + varint(71 << 3 | 5) + b"4 by"
    # 13: a packed or repeated list; 60: a negative number, twice; 61: a number that is longer than necessary.
    unknown = message((60, largest), (1, 1), (13, 1), (13, 0), (13, 1 << 63), (60, 3)) + varint(61 << 3) + b"\x81\x00" + fixed
    inner = message((8, 1), (10, 0o2), (90, b"\xff\x00"))
    name = os.fsencode(base)
    write(images, base, runs=((CODE, 1),))
    reg = message((1, 7)) + inner.replace(message((8, 1)), b"") + message((6, name), (8, SIZE))
    image(images / "files.img", unknown + message((2, 7), (3, reg)))
    code = inner + vma(CODE, 2 * PAGE, 0, 34, use=7)
    image(images / "mm-1000.img", unknown + message((14, code), (14, vma(MEMORY, SIZE, 7, 2))))

    take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "ram")

    new_code = message((1, CODE), (2, CODE + 2 * PAGE), (3, SIZE), (4, 7), (5, 7), (6, 2), (7, 0x41)) + inner
    assert criuimage._entries(images / "mm-1000.img") == [message((14, new_code), (14, vma(MEMORY, SIZE, 7, 2))) + unknown]
    new_reg = message((6, os.fsencode(tmp_path / "ram")), (8, SIZE + 2 * PAGE), (1, 7)) + inner.replace(message((8, 1)), b"")
    assert criuimage._entries(images / "files.img") == [message((2, 7), (3, new_reg)) + unknown]


def test_large_numbers(images: Path, base: Path, tmp_path: Path) -> None:
    """Numbers of all 64 bits, also in fields that CRIU declares as uint32."""
    high = 1 << 63
    write(images, base, runs=((high + CODE, 1), ((1 << 64) - 2 * PAGE, 1)))
    code = vma(high + CODE, PAGE, 0, high | 34, use=7)
    last = message((1, (1 << 64) - 2 * PAGE), (2, (1 << 64) - PAGE), (3, 0), (4, 0), (5, high), (6, high | 34), (7, high))
    image(images / "mm-1000.img", message((14, code), (14, vma(MEMORY, SIZE, 7, 2)), (14, last)))

    take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "ram")

    new_code = message((1, high + CODE), (2, high + CODE + PAGE), (3, SIZE), (4, 7), (5, 7), (6, high | 2), (7, 0x41))
    assert criuimage._entries(images / "mm-1000.img") == [message((14, new_code), (14, vma(MEMORY, SIZE, 7, 2)), (14, last))]
    assert criuimage._page_run(criuimage._entries(images / "pagemap-1000.img")[1]) == ((1 << 64) - 2 * PAGE, 1)
    assert (tmp_path / "ram").read_bytes()[SIZE:] == b"\x01" * PAGE


def test_a_path_that_is_not_utf8(images: Path, tmp_path: Path) -> None:
    base = tmp_path / os.fsdecode(b"base-\xff")
    base.write_bytes(bytes(SIZE))
    write(images, base)
    take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / os.fsdecode(b"ram-\xfe"))
    assert b"/ram-\xfe" in (images / "files.img").read_bytes()


def test_protobuf_is_not_imported_at_start_up() -> None:
    """The import costs time, and only the save of a hot checkpoint needs it."""
    code = "import sys, harness.cli.main, harness.plugin, harness.lab.criu; harness.cli.main.make_app(); sys.exit('google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
