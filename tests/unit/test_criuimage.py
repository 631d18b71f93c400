# SPDX-License-Identifier: BSD-2-Clause
"""The memory's pages move into a file, and the rest stays. Images of an unknown format stay unchanged."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

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


def image(path: Path, *entries: bytes) -> None:
    path.write_bytes(b"\x54\x56\x43\x19MAGC" + b"".join(struct.pack("<I", len(e)) + e for e in entries))


def vma(start: int, size: int, file: int, flags: int, *, use: int = 3) -> bytes:
    return message((1, start), (2, start + size), (3, 0), (4, file), (5, use), (6, flags), (7, 65 if file else 0x201), (9, 0x4000))


def write(
    directory: Path, base: Path, *, size: int = SIZE, runs: tuple[tuple[int, int], ...] = ((HEAP, 1), (MEMORY + PAGE, 2))
) -> None:
    """A process with a heap, code of two pages and a private mapping of ``base``. Each byte of page n of its images is n."""
    other = message((1, 4), (2, 4), (3, message((1, 4), (6, b"/lib/libc.so"), (8, 99))))
    ram = message((1, 1), (2, 7), (3, message((1, 7), (2, 0), (6, str(base).encode()), (8, SIZE))))
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

    take_memory_out(images, base, SIZE, tmp_path / "ram", place)

    memory = (tmp_path / "ram").read_bytes()
    assert memory == b"\xbb" * PAGE + b"\x03" * PAGE + b"\x04" * PAGE + b"\xbb" * (5 * PAGE) + bytes(PAGE) + b"\x02" * PAGE
    assert (tmp_path / "ram").stat().st_mode & 0o777 == 0o640, "CRIU checks that a mapped file has not changed"
    assert (images / "pages-3.img").read_bytes() == b"\x01" * PAGE
    assert len(list(criuimage._entries(images / "pagemap-1000.img"))) == 2
    code = message((1, CODE), (2, CODE + 2 * PAGE), (3, SIZE), (4, 7), (5, 7), (6, 2), (7, 0x41))
    assert list(criuimage._entries(images / "mm-1000.img")) == [
        message((1, 1), (14, vma(HEAP, PAGE, 0, 34)), (14, code), (14, vma(MEMORY, SIZE, 7, 2)))
    ]
    files = list(criuimage._entries(images / "files.img"))
    assert b"/lib/libc.so" in files[0]
    assert files[1] == message((1, 1), (2, 7), (3, message((1, 7), (2, 0), (6, str(place).encode()), (8, len(memory)))))


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
    left = list(criuimage._entries(images / "pagemap-1000.img"))[1]
    assert criuimage._run(left) == (edge if edge != MEMORY else edge - PAGE, 1)


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
    with pytest.raises(Unknown, match=r"no fields \{8\}"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")
    assert {path.name: path.read_bytes() for path in images.iterdir() if path.suffix == ".img"} == before


def test_damaged_images(images: Path, base: Path, tmp_path: Path) -> None:
    for name in ("files.img", "mm-1000.img", "pagemap-1000.img", "pages-3.img"):
        write(images, base)
        data = (images / name).read_bytes()
        (images / name).write_bytes(data[:-5])
        with pytest.raises(Unknown):
            take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")
    write(images, base)
    (images / "pagemap-7.img").write_bytes((images / "pagemap-1000.img").read_bytes())
    with pytest.raises(Unknown, match="expected one"):
        take_memory_out(images, base, SIZE, tmp_path / "ram", tmp_path / "place")
