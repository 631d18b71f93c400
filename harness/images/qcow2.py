# SPDX-License-Identifier: BSD-2-Clause
"""Checks a qcow2 file before a program opens it: it must name no other file and be complete.

QEMU opens any file that an image names as its backing file, and reads zeros after the end of a truncated file.
Source: QEMU docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array
import sys
import time
from pathlib import Path
from typing import BinaryIO

from construct import Const, ConstructError, Int32ub, Int64ub, Struct

from harness.errors import UsageError

_HEADER = Struct(
    "magic" / Const(b"QFI\xfb"), "version" / Int32ub, "backing" / Int64ub, "backing_size" / Int32ub, "cluster_bits" / Int32ub,
    "size" / Int64ub, "encryption" / Int32ub, "l1_size" / Int32ub, "l1_table" / Int64ub, "refcounts" / Int64ub,
    "refcount_clusters" / Int32ub, "snapshots" / Int32ub, "snapshot_table" / Int64ub,
)  # fmt: skip
_FEATURES_AT = 72
_DIRTY_CORRUPT, _DATA_FILE, _EXTENDED = 0x3, 0x4, 0x10
_OFFSET, _COMPRESSED = 0x00FFFFFFFFFFFE00, 1 << 62
# QEMU's block/qcow2.h, QCOW_MAX_L1_SIZE; the limit for reading all tables, in seconds.
_LARGEST_L1, _PATIENCE = 32 << 20, 300
_CUT = "it is truncated: fetch or copy it again"


def check(given: Path, source: Path, largest: int) -> None:
    """Raise UsageError for a qcow2 file ``source`` that must not be read; messages name the ``given`` file.

    Reasons: it needs another file, is encrypted or truncated, or holds a disk of more than ``largest`` bytes.
    """
    with source.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(0)
        data = file.read(104)
        try:
            head = _HEADER.parse(data)
        except ConstructError:
            raise UsageError(f"{given}: a qcow2 file of {length} bytes", hint=_CUT) from None
        features = int.from_bytes(data[_FEATURES_AT : _FEATURES_AT + 8], "big") if head.version >= 3 else 0
        if head.version not in (2, 3) or not 9 <= head.cluster_bits <= 21:
            raise UsageError(f"{given}: a qcow file of version {head.version}", hint="convert it: qemu-img convert -O qcow2")
        if head.backing:
            file.seek(min(head.backing, length))
            name = file.read(min(head.backing_size, 1023)).decode("utf-8", "replace")
            raise UsageError(
                f"{given}: it holds only the differences from its backing file {name!r}",
                hint="combine both in one file: qemu-img convert -O qcow2",
            )
        if features & _DATA_FILE:
            raise UsageError(f"{given}: its data is in another file", hint="combine both in one file: qemu-img convert -O qcow2")
        if head.encryption:
            raise UsageError(f"{given}: an encrypted qcow2 file", hint="decrypt it: qemu-img convert with its secret")
        if features & _DIRTY_CORRUPT:
            raise UsageError(
                f"{given}: marked as dirty or corrupt: its machine did not stop cleanly, or still runs",
                hint="shut the machine down, then qemu-img check -r all",
            )
        if head.size > largest:
            raise UsageError(f"{given}: a disk of {head.size >> 40} TiB", hint=f"{largest >> 40} TiB at most")
        if head.l1_size * 8 > _LARGEST_L1:
            raise UsageError(f"{given}: a qcow2 file with {head.l1_size} tables", hint="check the file, or fetch it again")
        missing = _missing(given, file, length, head.l1_table, head.l1_size, head.cluster_bits, bool(features & _EXTENDED))
        if missing:
            raise UsageError(f"{given}: the file ends at byte {length}, before its {missing}", hint=_CUT)


def _missing(given: Path, file: BinaryIO, length: int, table: int, entries: int, bits: int, extended: bool) -> str:
    """The first part of a qcow2 file that is behind its end, in words; "" for a complete file."""
    if table + entries * 8 > length:
        return "table of tables"
    cluster, end = 1 << bits, time.monotonic() + _PATIENCE
    for first in {entry & _OFFSET for entry in _words(file, table, entries)} - {0}:
        if first + cluster > length:
            return f"table at byte {first}"
        if time.monotonic() > end:
            raise UsageError(
                f"{given}: its tables were not read in {_PATIENCE} s", hint="rewrite it with fewer: qemu-img convert -O qcow2"
            )
        for entry in set(_words(file, first, cluster // 8)[:: 2 if extended else 1]):
            if entry & _COMPRESSED:
                shift = 62 - (bits - 8)
                at = entry & ((1 << shift) - 1)
                sectors = (entry >> shift & ((1 << (bits - 8)) - 1)) + 1
                if (at & ~511) + sectors * 512 > -(-length // 512) * 512:
                    return f"packed cluster at byte {at}"
                continue
            at = entry & _OFFSET
            # The last cluster of a file may be incomplete, but not its last sector.
            if at and (at >= length or (at + cluster > length and length % 512)):
                return f"cluster at byte {at}"
    return ""


def _words(file: BinaryIO, at: int, count: int) -> array.array[int]:
    file.seek(at)
    found = array.array("Q")
    found.frombytes(file.read(count * 8)[: count * 8])
    if sys.byteorder == "little":
        found.byteswap()
    return found
