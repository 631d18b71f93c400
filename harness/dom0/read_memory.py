# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: read virtual memory of an x86-64 PVH or HVM domain, through Xen's libxenforeignmemory.

    read_memory DOMID CR3 ADDRESS:SIZE.. [la57]

CR3 and the addresses are hexadecimal, the sizes decimal numbers of bytes. The program walks the page tables of CR3 (Intel SDM, volume 3,
4-level paging, or 5-level paging with ``la57``, which bit 12 of CR4 means). It prints a JSON list: the bytes of each range in
hexadecimal, cut at the first page that is not mapped. It never writes to the domain.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable

PAGE = 4096
PROT_READ = 1
PRESENT, LARGE = 1, 1 << 7
FRAME = 0x000FFFFFFFFFF000
# Bytes of all ranges together: an evidence step must stay small.
LIMIT = 64 << 20
# Pages that Memory keeps.
MOST_PAGES = 16384


class Memory:
    """Physical pages of one domain; each is mapped and copied. The last ones are kept."""

    def __init__(self, domain: int) -> None:
        self.lib = ctypes.CDLL("libxenforeignmemory.so.1")
        self.lib.xenforeignmemory_open.restype = self.lib.xenforeignmemory_map.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(self.lib.xenforeignmemory_open(None, 0))
        self.domain = domain
        self.pages: dict[int, bytes | None] = {}

    def page(self, number: int) -> bytes | None:
        """The 4096 bytes of a guest frame, or None if the domain does not have it."""
        if number not in self.pages:
            numbers, errors = (ctypes.c_ulong * 1)(number), (ctypes.c_int * 1)()
            at = self.lib.xenforeignmemory_map(self.handle, self.domain, PROT_READ, ctypes.c_size_t(1), numbers, errors)
            data = ctypes.string_at(at, PAGE) if at and not errors[0] else None
            if at:
                self.lib.xenforeignmemory_unmap(self.handle, ctypes.c_void_p(at), ctypes.c_size_t(1))
            if len(self.pages) >= MOST_PAGES:
                self.pages.clear()
            self.pages[number] = data
        return self.pages[number]


def translate(page: Callable[[int], bytes | None], cr3: int, address: int, levels: int = 4) -> int | None:
    """The physical address of a virtual one, or None. ``page`` returns the bytes of a frame."""
    table = cr3 & FRAME
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        data = page(table >> 12)
        if data is None:
            return None
        at = 8 * ((address >> shift) & 511)
        entry = int.from_bytes(data[at : at + 8], "little")
        if not entry & PRESENT:
            return None
        if level == 0 or (level < 3 and entry & LARGE):
            return (entry & FRAME & ~((1 << shift) - 1)) | (address & ((1 << shift) - 1))
        table = entry & FRAME
    return None


def read(page: Callable[[int], bytes | None], cr3: int, address: int, size: int, levels: int = 4) -> bytes:
    """Up to ``size`` bytes at a virtual address: less if a page is not mapped."""
    data = b""
    while len(data) < size:
        place = translate(page, cr3, address + len(data), levels)
        frame = page(place >> 12) if place is not None else None
        if place is None or frame is None:
            break
        data += frame[place % PAGE :][: size - len(data)]
    return data


def main() -> None:
    domain, cr3 = int(sys.argv[1]), int(sys.argv[2], 16)
    words = sys.argv[3:]
    levels = 5 if words and words[-1] == "la57" else 4
    ranges = [(int(word.split(":")[0], 16), int(word.split(":")[1])) for word in words if ":" in word]
    if sum(size for _, size in ranges) > LIMIT:
        sys.exit("more than " + str(LIMIT) + " bytes")
    memory = Memory(domain)
    print(json.dumps([read(memory.page, cr3, address, size, levels).hex() for address, size in ranges]))


if __name__ == "__main__":
    main()
