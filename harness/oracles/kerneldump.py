# SPDX-License-Identifier: BSD-2-Clause
"""Judges a FreeBSD kernel dump by the header before it and the copy of the header after it, at the end of the dump device.

Source: sys/sys/kerneldump.h (struct kerneldumpheader, version 4 since 12.0; all numbers are big-endian), sys/kern/kern_shutdown.c
(dump_start() puts the dump at the end of the device, with a header block on each side).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIZE = 512
MAGIC = b"FreeBSD Kernel Dump"
_FORM = struct.Struct(">20s12sIIQQII64s192s175sBQ4sI")
_VERSION, _AMD64 = 4, 2


@dataclass(frozen=True)
class Header:
    """The header of a dump. ``length`` and ``extent`` are bytes without the headers; ``block`` is the header's size in bytes."""

    magic: bytes
    architecture: str
    version: int
    architecture_version: int
    length: int
    time: int
    block: int
    hostname: str
    kernel: str
    panic: str
    compression: int
    extent: int
    parity_holds: bool


def parse(data: bytes) -> Header:
    """Read a header of 512 bytes. Raises ValueError if there are fewer."""
    if len(data) < SIZE:
        raise ValueError(f"a header of {len(data)} bytes instead of {SIZE}")
    magic, arch, version, archversion, length, time, _, block, host, kernel, panic, compression, extent, _, _ = _FORM.unpack(
        data[:SIZE]
    )
    parity = 0
    for (word,) in struct.iter_unpack(">I", data[:SIZE]):
        parity ^= word
    texts = [value.partition(b"\0")[0].decode("utf-8", "replace") for value in (arch, host, kernel, panic)]
    return Header(
        magic.rstrip(b"\0"), texts[0], version, archversion, length, time, block, texts[1], texts[2], texts[3], compression, extent, parity == 0
    )  # fmt: skip


def dump_errors(head: bytes, tail: bytes, *, sector: int, size: int, panic: str, release: str) -> list[str]:
    """Return the errors of a dump as lines.

    ``tail`` is the device's last block, ``head`` the block at :func:`first_header_offset`. ``sector`` and ``size`` are those of the device, in
    bytes. ``panic`` is the message on the console, ``release`` the release of the running kernel.
    """
    last = parse(tail)
    if last.magic != MAGIC:
        return [f"the last block of the device begins with {last.magic[:20]!r} instead of {MAGIC!r}: there is no dump"]
    wrong = []
    if not last.parity_holds:
        wrong.append("the parity of the trailer is wrong")
    if (last.architecture, last.version, last.architecture_version) != ("amd64", _VERSION, _AMD64):
        wrong.append(f"the trailer names {last.architecture}, version {last.version}.{last.architecture_version}")
    if last.block != sector:
        wrong.append(f"the header's block has {last.block} bytes, the device's sector {sector}")
    if not 0 < last.length <= size - 2 * sector:
        wrong.append(f"the trailer gives a dump of {last.length} bytes on a device of {size} bytes")
    if last.panic != panic:
        wrong.append(f"the trailer's panic message is {last.panic!r}, the console's {panic!r}")
    if f"FreeBSD {release} " not in last.kernel + " ":
        wrong.append(
            f"the trailer's kernel is {last.kernel.splitlines()[0] if last.kernel else ''!r}, the running one is {release}"
        )
    if head[:SIZE] != tail[:SIZE]:
        wrong.append("the header before the dump differs from the one after it")
    return wrong


def first_header_offset(tail: bytes, *, sector: int, size: int) -> int:
    """Return the offset of the first header in bytes, computed from the trailer; -1 if it cannot be on the device."""
    last = parse(tail)
    place = size - 2 * sector - -(-last.extent // sector) * sector
    return place if last.magic == MAGIC and 0 <= place < size else -1
