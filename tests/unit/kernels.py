# SPDX-License-Identifier: BSD-2-Clause
"""Small ELF files that look like a FreeBSD kernel: a version text, ``osreldate`` as a symbol, and Xen's note."""

from __future__ import annotations

import struct

SYMTAB, DYNSYM, NOBITS = 2, 11, 8


def kernel(
    name: str = "14.0-STABLE XENA",
    osreldate: int = 1400507,
    *,
    bits: int = 64,
    table: int = SYMTAB,
    names: bytes = b"\0getosreldate\0version\0",
    data_kind: int = 1,
    ident: str = "",
) -> bytes:
    """An ELF image. ``names`` is the string table; ``table`` the section type of its symbols, 0 for none.

    ``osreldate`` is the tail of another name, as linkers write it. PHYS32_ENTRY is Xen's note for PVH. ``ident`` is kern_ident.
    """
    wide = bits == 64
    header_size, section_size = (64, 64) if wide else (52, 40)
    address = 0xFFFFFFFF80200000 if wide else 0xC0100000
    data = struct.pack("<ii", -1, osreldate) + b"FreeBSD " + name.encode() + b"\0" + ident.encode() + b"\0"
    names += b"kern_ident\0" if ident else b""
    note = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", 0x1000)

    def symbol(at: int, index: int, value: int) -> bytes:
        return struct.pack("<IBBHQQ", at, 17, 0, index, value, 4) if wide else struct.pack("<IIIBBH", at, value, 4, 17, 0, index)

    # A null symbol, an undefined one of the same name and one in another section, which the reader must skip; then the right ones.
    at = names.find(b"osreldate\0")
    rows = [(0, 0, 0), (at, 0, 0), (max(names.find(b"version\0"), 0), 1, address), (at, 1, address + 4)]
    rows += [(names.find(b"kern_ident\0"), 1, address + 17 + len(name))] if ident else []
    symbols = b"".join(symbol(*row) for row in rows if row[0] >= 0)
    contents = [data, symbols, names, note]
    kinds = [data_kind, table, 3, 7]
    offsets, end = [], header_size
    for content in contents:
        offsets.append(end)
        end += len(content)
    sections = [(0,) * 10]
    for number, (kind, content, offset) in enumerate(zip(kinds, contents, offsets, strict=True), 1):
        sections.append((0, kind, 0, address if number == 1 else 0, offset, len(content), 3 if kind == table else 0, 0, 4, 0))
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    machine = 62 if wide else 3
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        2,
        machine,
        1,
        0,
        0,
        end,
        0,
        header_size,
        0,
        0,
        section_size,
        len(sections),
        0,
    )
    return head + b"".join(contents) + b"".join(struct.pack("<IIQQQQIIQQ" if wide else "<10I", *row) for row in sections)
