# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: search the pages of a PVH or HVM domain for a word, through Xen's libxenforeignmemory.

    scan_pages DOMID FIRST END FILE WORD

If FILE does not exist, the program scans the pages from FIRST to END - 1. It writes to FILE the numbers of the pages that the
domain lacks. If FILE exists, it scans the pages that FILE lists.

It prints three counts in JSON: the pages that the domain has (``pages``), those that contain WORD (``found``), and the missing ones
(``holes``).
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
    library = ctypes.CDLL("libxenforeignmemory.so.1")
    library.xenforeignmemory_open.restype = library.xenforeignmemory_map.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.xenforeignmemory_open(None, 0))
    numbers = json.loads(file.read_text()) if file.exists() else list(range(first, end))
    pages, found, holes = 0, 0, []
    for begin in range(0, len(numbers), BATCH):
        batch = numbers[begin : begin + BATCH]
        frames = (ctypes.c_ulong * len(batch))(*batch)
        errors = (ctypes.c_int * len(batch))()
        count = ctypes.c_size_t(len(batch))
        address = library.xenforeignmemory_map(handle, domain, PROT_READ, count, frames, errors)
        for index, number in enumerate(batch):
            # Reading a page that is not mapped would kill this process.
            if not address or errors[index]:
                holes.append(number)
            else:
                pages += 1
                found += word in ctypes.string_at(address + index * PAGE, PAGE)
        if address:
            library.xenforeignmemory_unmap(handle, ctypes.c_void_p(address), count)
    if not file.exists():
        file.write_text(json.dumps(holes))
    print(json.dumps({"pages": pages, "found": found, "holes": len(holes)}))


if __name__ == "__main__":
    main()
