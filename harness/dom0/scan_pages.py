# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0, with its Python and Xen's libxenforeignmemory: looks into the pages of a PVH or HVM domain.

    python3 peek.py DOMID FIRST END FILE WORD

Of the pages from FIRST up to END, or of those that FILE lists where it is there, prints in JSON how many there are (``pages``) and
in how many of them WORD is (``found``). Where there is no FILE yet it becomes the list of the pages that the domain does not have.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

PAGE, BATCH = 4096, 512
PROT_READ = 1


def main() -> None:
    domain, first, end, file, word = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5].encode()
    lib = ctypes.CDLL("libxenforeignmemory.so.1")
    lib.xenforeignmemory_open.restype = lib.xenforeignmemory_map.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(lib.xenforeignmemory_open(None, 0))
    wanted = json.loads(file.read_text()) if file.exists() else list(range(first, end))
    there, found, holes = 0, 0, []
    for begin in range(0, len(wanted), BATCH):
        batch = wanted[begin : begin + BATCH]
        numbers = (ctypes.c_ulong * len(batch))(*batch)
        errors = (ctypes.c_int * len(batch))()
        count = ctypes.c_size_t(len(batch))
        at = lib.xenforeignmemory_map(handle, domain, PROT_READ, count, numbers, errors)
        for n, number in enumerate(batch):
            # What is not mapped must not be touched.
            if not at or errors[n]:
                holes.append(number)
            else:
                there += 1
                found += word in ctypes.string_at(at + n * PAGE, PAGE)
        if at:
            lib.xenforeignmemory_unmap(handle, ctypes.c_void_p(at), count)
    if not file.exists():
        file.write_text(json.dumps(holes))
    print(json.dumps({"pages": there, "found": found, "holes": len(holes)}))


if __name__ == "__main__":
    main()
