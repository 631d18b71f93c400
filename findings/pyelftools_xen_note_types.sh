#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# pyelftools gives notes of Xen the names of GNU note types.
#
# Versions:  pyelftools 0.33 (PyPI)
# Behavior:  the meaning of a note's type depends on the note's name (ELF gABI, "Note Section"). iter_notes() replaces types 1 to 5 by
#            names of GNU notes whatever the name is, so XEN_ELFNOTE_ENTRY (1) reads NT_GNU_ABI_TAG and XEN_ELFNOTE_VIRT_BASE (3)
#            reads NT_GNU_BUILD_ID. A search for NT_GNU_BUILD_ID without a check of the name finds a kernel's address.
# Output:    Xen NT_GNU_ABI_TAG
#            Xen NT_GNU_BUILD_ID
#            Xen 18
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the package cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check pyelftools==0.33 >/dev/null 2>&1 || {
  echo "cannot install pyelftools 0.33 from PyPI" >&2; exit 2; }
cat > show.py <<'PYTHON'
import io
import struct

from elftools.elf.elffile import ELFFile

notes = b"".join(struct.pack("<III4sQ", 4, 8, kind, b"Xen\0", 0x1000) for kind in (1, 3, 18))
names = b"\0.notes\0.shstrtab\0"
header, section = 64, 64
offset = header + len(notes)
table = offset + len(names)


def entry(name, kind, at, size):
    return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 4, 0)


elf = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, header, 0, 0, section, 3, 2)
elf += notes + names + bytes(section) + entry(1, 7, header, len(notes)) + entry(8, 3, offset, len(names))
for part in ELFFile(io.BytesIO(elf)).iter_sections("SHT_NOTE"):
    for note in part.iter_notes():
        print(note["n_name"], note["n_type"])
PYTHON
venv/bin/python show.py | tee seen
printf 'Xen NT_GNU_ABI_TAG\nXen NT_GNU_BUILD_ID\nXen 18\n' | cmp -s - seen
