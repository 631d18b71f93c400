# SPDX-License-Identifier: BSD-2-Clause
"""Edit CRIU's images of a lab's QEMU: move the machine's memory and the translated code into a file that is mapped.

At each restore, CRIU reads every page that the process had written to: some hundred MiB of memory, and as much translated code. A
file that is mapped copy-on-write costs only the pages that are used.

The format is described in criu.org/Images and images/*.proto of CRIU's source. An image has 8 bytes of magic, then entries: 4 bytes
of size and a protobuf message. Unknown fields stay unchanged.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.lab.sparse import copy_sparse

_PAGE = 4096
_MAGIC = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# mm.proto and vma.proto: start, end, offset in the file, number of the file, protection, flags, CRIU's status, madvise.
_VMAS, _START, _END, _OFFSET, _FILE, _PROTECTION, _FLAGS, _STATUS, _ADVICE = 14, 1, 2, 3, 4, 5, 6, 7, 9
_PRIVATE, _ANONYMOUS = 0x02, 0x20
_READ_WRITE_EXECUTE = 7
# criu/include/image.h: VMA_AREA_REGULAR, with VMA_ANON_PRIVATE or VMA_FILE_PRIVATE.
_ANONYMOUS_AREA, _FILE_AREA = 0x201, 0x41
# pagemap.proto: address of the first page, number of pages (field of old and of new versions), flags.
_ADDRESS, _OLD_COUNT, _COUNT, _STATE = 1, 2, 5, 4
_PRESENT = 4
# fdinfo.proto and regfile.proto: number of a file, the message of a regular file, its name and size.
_NUMBER, _REGULAR, _NAME, _SIZE = 2, 3, 6, 8

Field = tuple[int, int, int | bytes]
"""Number, wire type, value."""


class Unknown(ValueError):
    """The images have a format that is not known here."""


@dataclass(frozen=True)
class _Region:
    """The process's memory from ``begin`` to ``end`` is at ``offset`` of the file."""

    begin: int
    end: int
    offset: int


def take_memory_out(images: Path, base: Path, size: int, memory: Path, place: Path) -> None:
    """Move pages of CRIU's ``images`` into ``memory``, a new file: private mappings of ``base``, and anonymous executable memory.

    The new file is a copy of ``base``, whose first ``size`` bytes are the machine's memory, with the executable memory at its end.
    The images then map ``place``: the caller has to move the file there before a restore. Raises OSError, and Unknown if the format
    is not known; then the images are unchanged.
    """
    files = images / "files.img"
    numbers = _numbers(files, str(base))
    spaces = _one(images, "mm-*.img")
    # Code in a file cannot run from a file system that is mounted noexec.
    executable = not os.statvfs(images).f_flag & os.ST_NOEXEC
    space, regions = _mapped(spaces, numbers, base.stat().st_size, code=executable)
    if [(region.offset, region.end - region.begin) for region in regions if region.offset < size] != [(0, size)]:
        raise Unknown(f"mappings of the memory: {regions}, expected one of {size} bytes")
    whole = max(region.offset + region.end - region.begin for region in regions)
    renamed = list(_renamed(files, str(base), str(place), whole))
    pagemap = _one(images, "pagemap-*.img")
    pages = images / f"pages-{_first(pagemap)}.img"
    kept, left = [], pages.with_suffix(".new")
    copy_sparse(base, memory)
    memory.chmod(base.stat().st_mode & 0o7777)
    with pages.open("rb", buffering=0) as source, left.open("wb") as rest, memory.open("r+b", buffering=0) as target:
        target.truncate(whole)
        for number, entry in enumerate(_entries(pagemap)):
            if number == 0:
                kept.append(entry)
                continue
            for address, count, region in _parts(*_run(entry), regions):
                data = source.read(count * _PAGE)
                if len(data) != count * _PAGE:
                    raise Unknown(f"{pages.name} ends early")
                if region:
                    os.pwrite(target.fileno(), data, region.offset + address - region.begin)
                else:
                    kept.append(_moved(entry, address, count))
                    rest.write(data)
    left.replace(pages)
    _write(pagemap, kept)
    _write(spaces, [space])
    _write(files, renamed)


def _parts(address: int, count: int, regions: list[_Region]) -> Iterator[tuple[int, int, _Region | None]]:
    """Split a run of pages where a region begins or ends. Yields address, number of pages and region of each part."""
    end = address + count * _PAGE
    cuts = sorted({address, end} | {cut for r in regions for cut in (r.begin, r.end) if address < cut < end})
    for begin, stop in itertools.pairwise(cuts):
        yield begin, (stop - begin) // _PAGE, next((r for r in regions if r.begin <= begin < r.end), None)


def _regular(entry: bytes) -> tuple[list[Field], list[Field]]:
    """The fields of an entry of files.img, and those of its regular file (empty for another kind of file)."""
    fields = list(_fields(entry))
    inner = next((value for number, _, value in fields if number == _REGULAR and isinstance(value, bytes)), b"")
    return fields, list(_fields(inner))


def _numbers(path: Path, name: str) -> set[int]:
    """The numbers of the files with that name."""
    return {_number(fields, _NUMBER) for fields, inner in map(_regular, _entries(path)) if (_NAME, _BYTES, name.encode()) in inner}


def _renamed(path: Path, old: str, new: str, size: int) -> Iterator[bytes]:
    """All entries, with the file ``new`` of ``size`` bytes in place of ``old``."""
    for entry in _entries(path):
        fields, inner = _regular(entry)
        if (_NAME, _BYTES, old.encode()) in inner:
            message = _message(_set(inner, {_NAME: new.encode(), _SIZE: size}))
            entry = _message(_set(fields, {_REGULAR: message}))
        yield entry


def _mapped(path: Path, files: set[int], end: int, *, code: bool) -> tuple[bytes, list[_Region]]:
    """The new message of the process's memory, and the regions of it that are in ``files``, which are ``end`` bytes long now.

    With ``code``, anonymous executable memory is appended to them.
    """
    fields, regions = list(_fields(next(_entries(path)))), []
    for at, (number, wire, value) in enumerate(fields):
        if number != _VMAS or not isinstance(value, bytes):
            continue
        vma = list(_fields(value))
        begin, size = _number(vma, _START), _number(vma, _END) - _number(vma, _START)
        if _number(vma, _FILE) in files and _number(vma, _FLAGS) & _PRIVATE:
            regions.append(_Region(begin, begin + size, _number(vma, _OFFSET)))
        elif code and files and (_number(vma, _PROTECTION), _number(vma, _STATUS)) == (_READ_WRITE_EXECUTE, _ANONYMOUS_AREA):
            regions.append(_Region(begin, begin + size, end))
            flags = _number(vma, _FLAGS) & ~_ANONYMOUS
            vma = _set(vma, {_OFFSET: end, _FILE: min(files), _FLAGS: flags, _STATUS: _FILE_AREA})
            fields[at] = (number, wire, _message([field for field in vma if field[0] != _ADVICE]))
            end += size
    return _message(fields), regions


def _run(entry: bytes) -> tuple[int, int]:
    """Address and number of pages of an entry. Raises Unknown for pages that are not in the pages file."""
    fields = list(_fields(entry))
    known = {number for number, _, _ in fields}
    if not known <= {_ADDRESS, _OLD_COUNT, _COUNT, _STATE} or (_STATE in known and not _number(fields, _STATE) & _PRESENT):
        raise Unknown(f"pages that are not in the pages file: {fields}")
    return _number(fields, _ADDRESS), _number(fields, _COUNT if _COUNT in known else _OLD_COUNT)


def _moved(entry: bytes, address: int, count: int) -> bytes:
    """A copy of the entry for other pages."""
    fields = list(_fields(entry))
    counted = _COUNT if any(number == _COUNT for number, _, _ in fields) else _OLD_COUNT
    return _message(_set(fields, {_ADDRESS: address, counted: count}))


def _set(fields: list[Field], values: dict[int, int | bytes]) -> list[Field]:
    """A copy with other values. Raises Unknown for a missing field."""
    if missing := values.keys() - {number for number, _, _ in fields}:
        raise Unknown(f"no fields {missing} in {fields}")
    return [(number, wire, values.get(number, value)) for number, wire, value in fields]


def _first(pagemap: Path) -> int:
    """The number of the file with the pages of ``pagemap``."""
    return _number(list(_fields(next(_entries(pagemap)))), 1)


def _one(images: Path, pattern: str) -> Path:
    found = list(images.glob(pattern))
    if len(found) != 1:
        raise Unknown(f"{pattern}: {[path.name for path in found]}, expected one file")
    return found[0]


def _entries(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    at = _MAGIC
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise Unknown(f"{path.name} ends early")
        yield data[at : at + size]
        at += size


def _write(path: Path, entries: list[bytes]) -> None:
    magic = path.read_bytes()[:_MAGIC]
    path.write_bytes(magic + b"".join(struct.pack("<I", len(entry)) + entry for entry in entries))


def _number(fields: list[Field], number: int) -> int:
    for found, _, value in fields:
        if found == number and isinstance(value, int):
            return value
    raise Unknown(f"no field {number} in {fields}")


def _fields(message: bytes) -> Iterator[Field]:
    at = 0
    try:
        while at < len(message):
            key, at = _varint(message, at)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, at = _varint(message, at)
                yield number, wire, value
                continue
            if wire == _BYTES:
                size, at = _varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise Unknown(f"wire type {wire}")
            if at + size > len(message):
                raise Unknown("a message ends early")
            yield number, wire, message[at : at + size]
            at += size
    except IndexError:
        raise Unknown("a message ends early") from None


def _message(fields: list[Field]) -> bytes:
    out = bytearray()
    for number, wire, value in fields:
        out += _as_varint(number << 3 | wire)
        if isinstance(value, int):
            out += _as_varint(value)
        else:
            out += (_as_varint(len(value)) if wire == _BYTES else b"") + value
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
