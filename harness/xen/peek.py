"""Runs in dom0, with its Python and Xen's libxenforeignmemory: how often a word is in the memory of a PVH or HVM domain.

python3 peek.py DOMID MIB WORD        looks at the first MIB MiB; prints a number
"""

from __future__ import annotations

import ctypes
import sys

PAGE, BATCH = 4096, 512
PROT_READ = 1


def main() -> None:
    domain, pages, word = int(sys.argv[1]), int(sys.argv[2]) * (1 << 20) // PAGE, sys.argv[3].encode()
    lib = ctypes.CDLL("libxenforeignmemory.so.1")
    lib.xenforeignmemory_open.restype = lib.xenforeignmemory_map.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(lib.xenforeignmemory_open(None, 0))
    found = seen = 0
    for first in range(0, pages, BATCH):
        numbers = (ctypes.c_ulong * BATCH)(*range(first, first + BATCH))
        errors = (ctypes.c_int * BATCH)()
        at = lib.xenforeignmemory_map(handle, domain, PROT_READ, ctypes.c_size_t(BATCH), numbers, errors)
        if not at:
            continue
        for n in range(BATCH):
            # There is no page everywhere, and what is not mapped must not be touched.
            if errors[n] == 0:
                found += ctypes.string_at(at + n * PAGE, PAGE).count(word)
                seen += 1
        lib.xenforeignmemory_unmap(handle, ctypes.c_void_p(at), ctypes.c_size_t(BATCH))
    if not seen:
        sys.exit(f"no page of domain {domain} could be mapped")
    print(found)


if __name__ == "__main__":
    main()
