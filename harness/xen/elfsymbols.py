"""A variable's initial value, read from a kernel file by the variable's name."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SHT_SYMTAB, _SHT_DYNSYM, _SHT_NOBITS = 2, 11, 8
# A FreeBSD kernel has 60,000 symbols of 24 bytes. A table above this many bytes is not a kernel's and is not read.
_LARGEST_TABLE = 64 << 20


@dataclass(frozen=True)
class _Section:
    """``offset`` and ``size`` in bytes within the file; ``link`` is the index of a symbol table's strings."""

    kind: int
    address: int
    offset: int
    size: int
    link: int


def read_int(data: bytes, name: str) -> int | None:
    """The value of the C variable ``int name`` in an ELF image; None if the image has no such symbol or is damaged."""
    found = _content_of(data, name, 4)
    return int.from_bytes(found, "little", signed=True) if len(found) == 4 else None


def read_text(data: bytes, name: str) -> str:
    """The text of the C variable ``char name[]`` in an ELF image, up to 512 bytes; "" as for None of :func:`read_int`."""
    text, end, _ = _content_of(data, name, 512).partition(b"\0")
    return text.decode("ascii", "replace") if end else ""


def _content_of(data: bytes, name: str, size: int) -> bytes:
    """Up to ``size`` bytes of a variable; b"" where there is no such symbol.

    Reads .symtab, else .dynsym: a FreeBSD kernel has both (sys/conf/kern.pre.mk links it with --export-dynamic).
    """
    try:
        return _found(data, name.encode() + b"\0", size)
    except (struct.error, IndexError, OverflowError):
        return b""


def _found(data: bytes, name: bytes, size: int) -> bytes:
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:
        return b""
    wide = data[4] == 2
    sections = _sections(data, wide)
    for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
        for table in sections:
            if table.kind != kind or table.size > _LARGEST_TABLE:
                continue
            strings = sections[table.link]
            found = _symbol(_content(data, table), _content(data, strings), name, wide)
            if found is None:
                continue
            index, address = found
            section = sections[index]
            at = address - section.address
            if section.kind != _SHT_NOBITS and 0 <= at < section.size:
                return data[section.offset + at : section.offset + min(at + size, section.size)]
    return b""


def _sections(data: bytes, wide: bool) -> list[_Section]:
    if wide:
        start, (size, count) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<2H", data, 58)
        form = "<II4QI"  # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link
    else:
        start, (size, count) = struct.unpack_from("<I", data, 32)[0], struct.unpack_from("<2H", data, 46)
        form = "<7I"
    rows = (struct.unpack_from(form, data, start + number * size) for number in range(count if start else 0))
    return [_Section(kind, address, offset, length, link) for _, kind, _, address, offset, length, link in rows]


def _content(data: bytes, section: _Section) -> bytes:
    return b"" if section.kind == _SHT_NOBITS else data[section.offset : section.offset + section.size]


def _symbol(table: bytes, strings: bytes, name: bytes, wide: bool) -> tuple[int, int] | None:
    """(section index, address) of a defined symbol. Linkers share tails of strings, so a name may be the end of another."""
    places, at = set(), strings.find(name)
    while at >= 0:
        places.add(at)
        at = strings.find(name, at + 1)
    if not places:
        return None
    form = struct.Struct("<IBBHQQ" if wide else "<IIIBBH")
    whole = table[: len(table) // form.size * form.size]
    for row in form.iter_unpack(whole):
        if row[0] in places:
            index, address = (row[3], row[4]) if wide else (row[5], row[1])
            if 0 < index < 0xFF00:  # neither undefined nor one of ELF's reserved indices
                return index, address
    return None
