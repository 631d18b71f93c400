# SPDX-License-Identifier: BSD-2-Clause
"""Reads a kernel's symbols: initial values of variables, and functions by name and address."""

from __future__ import annotations

import bisect
import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Data = bytes | mmap.mmap
"""An ELF image: the content of a file, or a mapped file."""

_SHT_SYMTAB, _SHT_DYNSYM, _SHT_NOBITS = 2, 11, 8
# A FreeBSD kernel has 60,000 symbols of 24 bytes. Do not read a table of more than this many bytes.
_LARGEST_TABLE = 64 << 20
# Bytes of a name.
_LONGEST_NAME = 1024


# Symbol types (ELF, st_info). Labels in assembly may have no type.
_STT_NOTYPE, _STT_FUNC = 0, 2
_SHF_EXECINSTR = 4


@dataclass(frozen=True)
class Functions:
    """The functions of a kernel: ``names`` in the order of their addresses ``starts``.

    ``code`` has the start and end of each section with code; Linux has data in between.
    ``places`` maps every unique name to its address, including aliases, which ``names`` lacks.
    """

    starts: tuple[int, ...]
    names: tuple[str, ...]
    places: dict[str, int]
    code: tuple[tuple[int, int], ...]

    def at(self, address: int) -> tuple[str, int] | None:
        """The function that contains ``address``, and its start; None outside the kernel's code."""
        number = bisect.bisect_right(self.starts, address) - 1
        if number < 0 or not any(start <= address < end for start, end in self.code):
            return None
        return self.names[number], self.starts[number]

    def address(self, name: str) -> int | None:
        """The start of the function ``name``; None if there is none, or more than one."""
        return self.places.get(name)


@dataclass(frozen=True)
class _Section:
    """An ELF section. ``offset`` and ``size`` are in bytes of the file. ``link`` is the index of a symbol table's strings.

    ``name`` is an offset into the section with the names of sections.
    """

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


def mapped(path: Path) -> Data:
    """The content of a file, mapped: of 100 MB with debugging information, only symbols are read. Raises OSError."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return b""


def read_int(data: bytes, name: str) -> int | None:
    """The value of the C variable ``int name`` in an ELF image; None if the image has no such symbol or is damaged."""
    found = _content_of(data, name, 4)
    return int.from_bytes(found, "little", signed=True) if len(found) == 4 else None


def read_text(data: bytes, name: str) -> str:
    """The text of the C variable ``char name[]`` in an ELF image, up to 512 bytes; "" if there is none or the image is damaged."""
    text, end, _ = _content_of(data, name, 512).partition(b"\0")
    return text.decode("ascii", "replace") if end else ""


def _content_of(data: Data, name: str, size: int) -> bytes:
    """Up to ``size`` bytes of a variable; b"" if there is no such symbol.

    Reads .symtab, else .dynsym: a FreeBSD kernel has both (sys/conf/kern.pre.mk links it with --export-dynamic).
    """
    try:
        return _found(data, name.encode() + b"\0", size)
    except (struct.error, IndexError, OverflowError):
        return b""


def address_of(data: Data, name: str) -> int | None:
    """The address of the symbol ``name`` in an ELF image; None if it has none or is damaged."""
    try:
        for table, strings in _tables(_elf(data)[0]):
            found = _symbol(_content(data, table), _content(data, strings), name.encode() + b"\0", data[4] == 2)
            if found is not None:
                return found[1]
    except (struct.error, IndexError, OverflowError):
        pass
    return None


def addresses_of(data: Data, names: Iterable[str]) -> dict[str, int]:
    """The address of each function of ``names`` that exists once; nothing for a damaged image.

    Takes a tenth of the time of :func:`functions`, which reads every name.
    """
    try:
        sections, wide = _elf(data)
        for table, strings in _tables(sections):
            if found := _addresses(_content(data, table), _content(data, strings), set(names), sections, wide):
                return found
    except (struct.error, IndexError, OverflowError):
        pass
    return {}


def _addresses(table: bytes, strings: bytes, names: set[str], sections: list[_Section], wide: bool) -> dict[str, int]:
    # Linkers share string tails, so a name may be in several places, one of them at the end of another name.
    places: dict[int, str] = {}
    for name in names:
        word = name.encode() + b"\0"
        at = strings.find(word)
        while at >= 0:
            places[at] = name
            at = strings.find(word, at + 1)
    found: dict[str, set[int]] = {}
    for at, kind, index, address in _rows(table, wide):
        if at in places and _is_code(kind, index, sections):
            found.setdefault(places[at], set()).add(address)
    return {name: addresses.pop() for name, addresses in found.items() if len(addresses) == 1}


def _is_code(kind: int, index: int, sections: list[_Section]) -> bool:
    """Whether a symbol is a function, or a label in assembly code."""
    return kind & 15 in (_STT_NOTYPE, _STT_FUNC) and 0 < index < len(sections) and bool(sections[index].flags & _SHF_EXECINSTR)


def has_section(data: Data, name: str) -> bool:
    """Whether an ELF image has a section ``name`` with content; False if it is damaged."""
    try:
        sections, wide = _elf(data)
        strings = _content(data, sections[struct.unpack_from("<H", data, 62 if wide else 50)[0]])
        return any(_text(strings, section.name) == name and section.kind != _SHT_NOBITS and section.size for section in sections)
    except (struct.error, IndexError, OverflowError):
        return False


def functions(data: Data) -> Functions | None:
    """The functions of an ELF image; None if it has no symbols or is damaged. Reads .symtab, else .dynsym."""
    try:
        return _functions(data)
    except (struct.error, IndexError, OverflowError, ValueError):
        return None


def _functions(data: Data) -> Functions | None:
    found: dict[int, tuple[int, str]] = {}
    places: dict[str, int] = {}
    twice: set[str] = set()
    sections, wide = _elf(data)
    code = tuple((one.address, one.address + one.size) for one in sections if one.flags & _SHF_EXECINSTR)
    for table, strings in _tables(sections):
        names = _content(data, strings)
        for name, kind, index, address in _rows(_content(data, table), wide):
            if not _is_code(kind, index, sections):
                continue
            # A hostile image has names of megabytes, or with line breaks.
            word = names[name : name + _LONGEST_NAME].partition(b"\0")[0].decode("ascii", "replace")
            if not word or word[0] in "$." or not word.isprintable():
                continue
            if places.setdefault(word, address) != address:
                twice.add(word)
            # Prefer a function's name to a label's, and a global name to a local one.
            rank = 2 * (kind & 15 == _STT_FUNC) + bool(kind >> 4)
            if address not in found or rank > found[address][0]:
                found[address] = (rank, word)
        if found:
            break
    if not found:
        return None
    starts = tuple(sorted(found))
    unique = {name: address for name, address in places.items() if name not in twice}
    return Functions(starts, tuple(found[start][1] for start in starts), unique, code)


def _elf(data: Data) -> tuple[list[_Section], bool]:
    """The sections of a little-endian ELF image, and whether it is a 64-bit image; no sections for any other file."""
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:
        return [], False
    wide = data[4] == 2
    return _sections(data, wide), wide


def _tables(sections: list[_Section]) -> Iterator[tuple[_Section, _Section]]:
    """The symbol tables, .symtab first, each with its string section."""
    for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
        for table in sections:
            if table.kind == kind and table.size <= _LARGEST_TABLE:
                yield table, sections[table.link]


def _rows(table: bytes, wide: bool) -> Iterator[tuple[int, int, int, int]]:
    """(name, st_info, section index, address) of each symbol."""
    form = struct.Struct("<IBBHQQ" if wide else "<IIIBBH")
    for row in form.iter_unpack(table[: len(table) // form.size * form.size]):
        yield (row[0], row[1], row[3], row[4]) if wide else (row[0], row[3], row[5], row[1])


def _found(data: Data, name: bytes, size: int) -> bytes:
    sections, wide = _elf(data)
    for table, strings in _tables(sections):
        found = _symbol(_content(data, table), _content(data, strings), name, wide)
        if found is None:
            continue
        index, address = found
        section = sections[index]
        at = address - section.address
        if section.kind != _SHT_NOBITS and 0 <= at < section.size:
            return data[section.offset + at : section.offset + min(at + size, section.size)]
    return b""


def _sections(data: Data, wide: bool) -> list[_Section]:
    if wide:
        start, (size, count) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<2H", data, 58)
        form = "<II4QI"  # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link
    else:
        start, (size, count) = struct.unpack_from("<I", data, 32)[0], struct.unpack_from("<2H", data, 46)
        form = "<7I"
    rows = (struct.unpack_from(form, data, start + number * size) for number in range(count if start else 0))
    return [_Section(*row) for row in rows]


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.find(b"\0", at)].decode("ascii", "replace")


def _content(data: Data, section: _Section) -> bytes:
    return b"" if section.kind == _SHT_NOBITS else data[section.offset : section.offset + section.size]


def _symbol(table: bytes, strings: bytes, name: bytes, wide: bool) -> tuple[int, int] | None:
    """(section index, address) of a defined symbol. Linkers share string tails, so ``name`` may be the end of another name."""
    places, at = set(), strings.find(name)
    while at >= 0:
        places.add(at)
        at = strings.find(name, at + 1)
    if not places:
        return None
    for at, _, index, address in _rows(table, wide):
        if at in places and 0 < index < 0xFF00:  # neither undefined nor one of ELF's reserved indices
            return index, address
    return None
