"""CRIU's images of a lab's QEMU, changed in one thing: the pages of the machine's memory go into a file that is mapped.

CRIU reads every page that a process has written to, twice as slowly where a file is mapped below. A lab's machine has a few
hundred MiB of them, and each case a restored lab. As a file, mapped copy-on-write, it costs nothing but what is used.

The format: criu.org/Images and images/*.proto of CRIU's source. An image is 8 bytes of magic, then entries, each its size in 4
bytes and a protobuf message. What is not ours to know is kept as it is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from harness.lab.sparse import copy_sparse

_PAGE = 4096
_MAGIC = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# mm.proto and vma.proto: where it begins and ends, its file by number, how it is mapped.
_VMAS, _START, _END, _FILE, _FLAGS = 14, 1, 2, 4, 6
_PRIVATE = 2
# pagemap.proto: the first page's address, the number of pages (of old and now), what is known of them: all are there.
_ADDRESS, _OLD_COUNT, _COUNT, _STATE = 1, 2, 5, 4
_PRESENT = 4
# fdinfo.proto and regfile.proto: a file's number, what there is of a regular one, its name.
_NUMBER, _REGULAR, _NAME = 2, 3, 6

Field = tuple[int, int, int | bytes]
"""Number, wire type, value."""


class Unknown(ValueError):
    """The images are not as they are known here."""


def take_memory_out(images: Path, base: Path, size: int, memory: Path, place: Path) -> None:
    """Move the pages of the private mapping of ``base``, ``size`` bytes long, into a copy of it, the new file ``memory``.

    The images say then that ``place`` is mapped: it has to be brought there before they are restored. Raises Unknown, and leaves
    them as they are, where there is not exactly one such mapping, or one that is not understood; OSError.
    """
    numbers, files = _renamed(images / "files.img", str(base), str(place))
    begin = _mapping(images, numbers, size)
    pagemap = _one(images, "pagemap-*.img")
    pages = images / f"pages-{_first(pagemap)}.img"
    kept, left = [], pages.with_suffix(".new")
    copy_sparse(base, memory)
    memory.chmod(base.stat().st_mode & 0o7777)
    with pages.open("rb", buffering=0) as source, left.open("wb") as rest, memory.open("r+b", buffering=0) as target:
        for number, entry in enumerate(_entries(pagemap)):
            if number == 0:
                kept.append(entry)
                continue
            address, count = _run(entry)
            data = source.read(count * _PAGE)
            if len(data) != count * _PAGE:
                raise Unknown(f"{pages.name} ends early")
            if begin <= address and address + len(data) <= begin + size:
                os.pwrite(target.fileno(), data, address - begin)
                continue
            if address < begin + size and address + len(data) > begin:
                raise Unknown("pages of the memory and of something else are one run")
            kept.append(entry)
            rest.write(data)
    left.replace(pages)
    _write(pagemap, kept)
    _write(images / "files.img", files)


def _renamed(path: Path, old: str, new: str) -> tuple[set[int], list[bytes]]:
    """The numbers of the files of the name ``old``, and all entries, with ``new`` for it."""
    numbers, entries = set(), []
    for entry in _entries(path):
        fields = list(_fields(entry))
        for at, (number, wire, value) in enumerate(fields):
            if number == _REGULAR and isinstance(value, bytes):
                inner = list(_fields(value))
                if (_NAME, _BYTES, old.encode()) in inner:
                    inner = [(n, w, new.encode() if n == _NAME else v) for n, w, v in inner]
                    fields[at] = (number, wire, _message(inner))
                    numbers.add(_number(fields, _NUMBER))
        entries.append(_message(fields))
    return numbers, entries


def _mapping(images: Path, files: set[int], size: int) -> int:
    """Where the one private mapping of one of these files, of that size, begins."""
    whole = list(_fields(next(_entries(_one(images, "mm-*.img")))))
    found = []
    for number, _, value in whole:
        if number == _VMAS and isinstance(value, bytes):
            fields = list(_fields(value))
            begin, end = _number(fields, _START), _number(fields, _END)
            if _number(fields, _FILE) in files and _number(fields, _FLAGS) & _PRIVATE:
                found.append((begin, end - begin))
    if len(found) != 1 or found[0][1] != size:
        raise Unknown(f"mappings of the memory: {found}, one of {size} bytes was due")
    return found[0][0]


def _run(entry: bytes) -> tuple[int, int]:
    """Address and number of pages."""
    fields = list(_fields(entry))
    known = {number for number, _, _ in fields}
    if not known <= {_ADDRESS, _OLD_COUNT, _COUNT, _STATE} or (_STATE in known and not _number(fields, _STATE) & _PRESENT):
        raise Unknown(f"pages that lie elsewhere: {fields}")
    return _number(fields, _ADDRESS), _number(fields, _COUNT if _COUNT in known else _OLD_COUNT)


def _first(pagemap: Path) -> int:
    """The number of the file of its pages."""
    return _number(list(_fields(next(_entries(pagemap)))), 1)


def _one(images: Path, pattern: str) -> Path:
    found = list(images.glob(pattern))
    if len(found) != 1:
        raise Unknown(f"{pattern}: {[path.name for path in found]}, one was due")
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
