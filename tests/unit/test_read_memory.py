# SPDX-License-Identifier: BSD-2-Clause
"""The page table walk of the program that reads a domain's memory, on tables of our own."""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace

import pytest

from harness.dom0 import read_memory
from harness.dom0.read_memory import LARGE, PAGE, PRESENT, read, translate

VIRTUAL = 0xFFFFFFFF81234568


class Machine:
    """Page tables in a dictionary of frames: frame 1 is the root."""

    def __init__(self) -> None:
        self.frames: dict[int, bytearray] = {}

    def page(self, number: int) -> bytes | None:
        frame = self.frames.get(number)
        return bytes(frame) if frame is not None else None

    def entry(self, table: int, index: int, value: int) -> None:
        struct.pack_into("<Q", self.frames.setdefault(table, bytearray(PAGE)), 8 * index, value)

    def map(self, address: int, frame: int, *, levels: int = 4, last: int = 0) -> None:
        """Map the page of ``address`` to ``frame``; a ``last`` of 1 or 2 ends the walk at a large page."""
        table = 1
        for level in range(levels - 1, -1, -1):
            index = (address >> (12 + 9 * level)) & 511
            if level == last:
                self.entry(table, index, frame << 12 | PRESENT | (LARGE if level else 0) | 1 << 63)
                return
            self.entry(table, index, (table + 1) << 12 | PRESENT)
            table += 1


@pytest.mark.parametrize("levels", [4, 5])
def test_a_page_is_found_through_all_levels(levels: int) -> None:
    machine = Machine()
    machine.map(VIRTUAL, 0x4711, levels=levels)
    assert translate(machine.page, 1 << 12, VIRTUAL, levels) == 0x4711 << 12 | 0x568


@pytest.mark.parametrize(("last", "size"), [(1, 2 << 20), (2, 1 << 30)])
def test_large_pages_end_the_walk(last: int, size: int) -> None:
    machine = Machine()
    machine.map(VIRTUAL, (7 * size) >> 12, last=last)
    assert translate(machine.page, 1 << 12, VIRTUAL) == 7 * size + VIRTUAL % size


def test_a_read_crosses_pages_and_ends_at_the_first_that_is_missing() -> None:
    machine = Machine()
    base = VIRTUAL & ~(PAGE - 1)
    machine.map(base, 0x100)
    machine.entry(4, ((base >> 12) + 1) & 511, 0x200 << 12 | PRESENT)
    machine.frames[0x100], machine.frames[0x200] = bytearray(b"a" * PAGE), bytearray(b"b" * PAGE)
    assert read(machine.page, 1 << 12, base + PAGE - 2, 4) == b"aabb"
    assert read(machine.page, 1 << 12, base + 2 * PAGE - 3, 100) == b"bbb"
    assert read(machine.page, 1 << 12, base + 5 * PAGE, 4) == b""


def test_tables_that_the_domain_does_not_have_end_the_walk() -> None:
    machine = Machine()
    machine.entry(1, (VIRTUAL >> 39) & 511, 0x999 << 12 | PRESENT)
    assert translate(machine.page, 1 << 12, VIRTUAL) is None
    assert translate(machine.page, 0x555 << 12, VIRTUAL) is None


def test_the_kept_pages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_memory, "MOST_PAGES", 3)
    memory = object.__new__(read_memory.Memory)
    memory.lib = SimpleNamespace(xenforeignmemory_map=lambda *words: None)  # type: ignore[assignment]
    memory.handle, memory.domain, memory.pages = ctypes.c_void_p(), 1, {}
    for number in range(10):
        assert memory.page(number) is None
        assert number in memory.pages
        assert len(memory.pages) <= 3
