# SPDX-License-Identifier: BSD-2-Clause
"""Small partitioned disks, built in memory: MBR slices, or GPT. Sectors are 512 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.images import tables
from harness.images.tables import FREEBSD_SLICE, GPT_TAIL, SECTOR, Part

__all__ = ["FREEBSD_BOOT", "FREEBSD_SLICE", "FREEBSD_UFS", "Slice", "gpt", "mbr"]

_ALIGN = 64
FREEBSD_UFS, FREEBSD_BOOT = "freebsd-ufs", "freebsd-boot"


@dataclass(frozen=True)
class Slice:
    """An MBR partition: type byte, content, and whether it is the active one."""

    kind: int
    data: bytes
    active: bool = False


def mbr(slices: Sequence[Slice]) -> bytes:
    """A disk with up to four primary slices, each at a multiple of 64 sectors."""
    rows, body, at = [], b"", _ALIGN
    for part in slices:
        data = _padded(part.data)
        rows.append(tables.MbrSlice(part.kind, at, len(data) // SECTOR, part.active))
        body += data
        at += len(data) // SECTOR
    return tables.boot_record(rows).ljust(_ALIGN * SECTOR, b"\0") + body


def gpt(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """A GPT disk with its protective MBR. Types as in :data:`harness.images.tables.GPT_TYPES`."""
    rows, body, at = [], b"", _ALIGN
    for kind, raw in parts:
        data = _padded(raw)
        rows.append(Part(kind, at, len(data) // SECTOR))
        body += data
        at += len(data) // SECTOR
    first, last = tables.gpt(at + GPT_TAIL, rows, seed="partitions")
    return first.ljust(_ALIGN * SECTOR, b"\0") + body + last


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % (_ALIGN * SECTOR))
