# SPDX-License-Identifier: BSD-2-Clause
"""Judges a FreeBSD kernel dump by the header before it and the copy of the header after it, at the end of the dump device.

The bytes come from a disk that the guest wrote: any of them may be wrong.
Source: sys/sys/kerneldump.h (struct kerneldumpheader, version 4 since 12.0; all numbers are big-endian), sys/kern/kern_shutdown.c
(dump_start() puts the dump at the end of the device, with a header block on each side), sbin/savecore/savecore.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIZE = 512
MAGIC = b"FreeBSD Kernel Dump"
CLEARED = b"Cleared Kernel Dump"
"""savecore writes it over :data:`MAGIC` in the trailer when it has saved the dump (KERNELDUMPMAGIC_CLEARED)."""
MINIDUMP = b"minidump FreeBSD/amd64"
"""The first bytes of a dump (sys/amd64/include/minidump.h)."""
_FORM = struct.Struct(">20s12sIIQQII64s192s175sBQ4sI")
_VERSION, _AMD64 = 4, 2
# KERNELDUMP_COMP_NONE, _GZIP, _ZSTD
_COMPRESSIONS = ("none", "gzip", "zstd")


@dataclass(frozen=True)
class Header:
    """The header of a dump.

    ``length`` is the size of the dump and ``extent`` the space that it was given, both in bytes without the headers. ``key`` is the
    size of an encryption key in bytes, ``block`` that of the header's block.
    """

    magic: bytes
    architecture: str
    version: int
    architecture_version: int
    length: int
    time: int
    key: int
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
    magic, arch, version, archversion, length, time, key, block, host, kernel, panic, compression, extent, _, _ = _FORM.unpack(
        data[:SIZE]
    )
    parity = 0
    for (word,) in struct.iter_unpack(">I", data[:SIZE]):
        parity ^= word
    texts = [value.partition(b"\0")[0].decode("utf-8", "replace") for value in (arch, host, kernel, panic)]
    return Header(
        magic.partition(b"\0")[0], texts[0], version, archversion, length, time, key, block, texts[1], texts[2], texts[3], compression,
        extent, parity == 0,
    )  # fmt: skip


def is_dump(tail: bytes) -> bool:
    """Whether ``tail``, the last block of a device, ends a dump that savecore has not cleared."""
    return len(tail) >= SIZE and parse(tail).magic == MAGIC


def header_errors(head: bytes, tail: bytes, *, sector: int, size: int) -> list[str]:
    """Return the reasons why a dump is unreadable, as lines.

    ``tail`` is the device's last block, ``head`` the block at :func:`first_header_offset`. ``sector`` and ``size`` are those of the
    device, in bytes.
    """
    if len(tail) < SIZE:
        return [f"the last block of the device has {len(tail)} bytes instead of {sector}: it ends before its size of {size} bytes"]
    last = parse(tail)
    if last.magic == CLEARED:
        return ["the trailer is cleared, as by savecore: there is no dump"]
    if last.magic != MAGIC:
        return [f"the last block of the device begins with {last.magic!r} instead of {MAGIC!r}: there is no dump"]
    wrong = []
    if not last.parity_holds:
        wrong.append("the parity of the trailer is wrong")
    if (last.architecture, last.version, last.architecture_version) != ("amd64", _VERSION, _AMD64):
        wrong.append(
            f"the trailer names {last.architecture!r}, version {last.version}.{last.architecture_version}, "
            f"instead of 'amd64', version {_VERSION}.{_AMD64}"
        )
    if last.block != sector:
        wrong.append(f"the header's block has {last.block} bytes, the device's sector {sector}")
    if last.compression >= len(_COMPRESSIONS):
        wrong.append(f"the trailer's compression is {last.compression}, not one of {', '.join(_COMPRESSIONS)}")
    if last.key:
        wrong.append(f"the trailer names an encryption key of {last.key} bytes, but the dump must not be encrypted")
    if not 0 < last.length <= size - 2 * sector:
        wrong.append(f"the trailer gives a dump of {last.length} bytes on a device of {size} bytes")
    if first_header_offset(tail, sector=sector, size=size) < 0:
        wrong.append(f"the trailer reserves {last.extent} bytes for the dump on a device of {size} bytes")
    elif last.extent < last.length <= size - 2 * sector:
        wrong.append(f"the trailer reserves only {last.extent} bytes for a dump of {last.length} bytes")
    elif head[:SIZE] != tail[:SIZE]:
        wrong.append("the header before the dump differs from the one after it")
    return wrong


def dump_errors(head: bytes, tail: bytes, *, sector: int, size: int, panic: str, release: str) -> list[str]:
    """Return the errors of a dump as lines: those of :func:`header_errors`, and another panic or kernel than expected.

    ``panic`` is the message on the console, ``release`` the release of the running kernel.
    """
    wrong = header_errors(head, tail, sector=sector, size=size)
    if not is_dump(tail):
        return wrong
    last = parse(tail)
    if last.panic != panic:
        wrong.append(f"the trailer's panic message is {last.panic!r}, the console's {panic!r}")
    if f"FreeBSD {release} " not in last.kernel + " ":
        wrong.append(
            f"the trailer's kernel is {last.kernel.splitlines()[0] if last.kernel else ''!r}, the running one is {release}"
        )
    return wrong


def first_header_offset(tail: bytes, *, sector: int, size: int) -> int:
    """Return the offset of the first header in bytes, computed from the trailer; -1 if it cannot be on the device."""
    if len(tail) < SIZE:
        return -1
    last = parse(tail)
    place = size - 2 * sector - -(-last.extent // sector) * sector
    return place if last.magic == MAGIC and 0 <= place <= size - 3 * sector else -1


def info_errors(info: str, header: Header) -> list[str]:
    """Return the fields of ``info``, savecore's file ``info.N``, that disagree with ``header``, as lines.

    Source: sbin/savecore/savecore.c, printheader()
    """
    #   Dump Length: 62058496
    rows = [line.strip().partition(": ") for line in info.splitlines()]
    fields = {name: value for name, colon, value in rows if colon}
    expected = {
        "Architecture": header.architecture,
        "Dump Length": str(header.length),
        "Blocksize": str(header.block),
        "Compression": _COMPRESSIONS[header.compression] if header.compression < len(_COMPRESSIONS) else "???",
        "Magic": MAGIC.decode(),
        "Panic String": header.panic,
        "Dump Status": "good",
    }
    return [
        f"savecore's info gives the {name} {fields.get(name, 'not at all')!r}, the header {value!r}"
        for name, value in expected.items()
        if fields.get(name) != value
    ]


def cleared(tail: bytes) -> bytes:
    """Return the header that savecore writes in place of ``tail``: with another magic and otherwise the same.

    Source: sbin/savecore/savecore.c, DoFile() after ``nuke:``
    """
    return CLEARED.ljust(20, b"\0") + tail[20:SIZE]
