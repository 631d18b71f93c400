# SPDX-License-Identifier: BSD-2-Clause
"""A minimal kernel module: it only says for which kernels it was built.

An amd64 module is a relocatable object (sys/kern/link_elf_obj.c); its dependencies are in the linker set ``set_modmetadata_set``
(sys/sys/module.h: struct mod_metadata, struct mod_depend).
"""

from __future__ import annotations

import struct

_SECTIONS = ("", ".data", ".rela.data", "set_modmetadata_set", ".relaset_modmetadata_set", ".symtab", ".strtab", ".shstrtab")
_PROGBITS, _SYMTAB, _STRTAB, _RELA = 1, 2, 3, 4
_WRITE_ALLOC = 3
_HEADER, _ROW = 64, 64
# Offsets in .data: the name of the dependency, the versions, the metadata.
_NAME, _DEPEND, _META = 0, 8, 24


def module(lowest: int, highest: int) -> bytes:
    """A module that depends on a kernel with ``__FreeBSD_version`` from ``lowest`` to ``highest``."""
    data = b"kernel\0\0" + struct.pack("<iii4x", lowest, lowest, highest)
    data += struct.pack("<iiQQ", 1, 1, 0, 0)  # MDTV_GENERIC, MDT_DEPEND, and the two relocated pointers
    names = b"\0".join(name.encode() for name in _SECTIONS) + b"\0"
    bodies = [
        b"",
        data,
        _relocation(_META + 8, _DEPEND) + _relocation(_META + 16, _NAME),
        bytes(8),
        _relocation(0, _META),
        bytes(24) + struct.pack("<IBBHQQ", 0, 3, 0, 1, 0, 0),  # a local symbol for the section .data
        b"\0",
        names,
    ]
    # Type, flags, link, info, size of an entry.
    kinds = [
        (0, 0, 0, 0, 0),
        (_PROGBITS, _WRITE_ALLOC, 0, 0, 0),
        (_RELA, 0, 5, 1, 24),
        (_PROGBITS, _WRITE_ALLOC, 0, 0, 0),
        (_RELA, 0, 5, 3, 24),
        (_SYMTAB, 0, 6, 2, 24),
        (_STRTAB, 0, 0, 0, 0),
        (_STRTAB, 0, 0, 0, 0),
    ]
    out, rows = bytearray(_HEADER), b""
    for name, body, (kind, flags, link, info, entry) in zip(_SECTIONS, bodies, kinds, strict=True):
        place = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        rows += struct.pack(
            "<IIQQQQIIQQ", place, kind, flags, 0, len(out) if kind else 0, len(body), link, info, 8 if kind else 0, entry
        )
        out += body + bytes(-len(body) % 8)
    ident = b"\x7fELF\x02\x01\x01\x09" + bytes(8)  # 64 bits, little endian, ELFOSABI_FREEBSD
    header = (1, 62, 1, 0, 0, len(out), 0, _HEADER, 0, 0, _ROW, len(_SECTIONS), len(_SECTIONS) - 1)  # ET_REL, EM_X86_64
    out[:_HEADER] = ident + struct.pack("<HHIQQQIHHHHHH", *header)
    return bytes(out) + rows


def _relocation(at: int, place: int) -> bytes:
    """R_X86_64_64: write the address of ``place`` in .data to ``at``."""
    return struct.pack("<QQq", at, 1 << 32 | 1, place)
