# SPDX-License-Identifier: BSD-2-Clause
"""The boot environment of a ZFS pool: loader variables outside the pool's data.

Each label of a vdev has a block of 8 KiB with an nvlist. The loader, under BIOS and UEFI, sets every string of its
``freebsd:nvstore`` as a variable (zfs_attach_nvstore() in stand/libsa/zfs/zfs.c) and passes its variables to the kernel. The block
contains its own checksum, so it can be replaced without a change to the pool, whose other checksums are in parent blocks.

Sources: sys/contrib/openzfs/include/sys/vdev_impl.h (vdev_boot_envblock_t), zfs_bootenv.h and zio_checksum.h (zio_eck_t);
module/nvpair/nvpair.c for an nvlist in XDR.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from harness.errors import UsageError

OFFSET = 8192
"""The offset (bytes) in a vdev of the first label's block, which is the one that the loader reads."""
SIZE = 8192

_VB_NVLIST = 1
_STORE = "freebsd:nvstore"
# zio_eck_t: a magic number and four words of a checksum, at the end of the block.
_TRAILER = struct.Struct("<5Q")
_MAGIC = 0x210DA7AB10C7A11
_ROOM = SIZE - 8 - _TRAILER.size

# sys/nvpair.h: data types and the flag of a list whose names are unique.
_UINT64, _STRING, _NVLIST = 8, 9, 19
_UNIQUE_NAME = 1
# Sizes in memory, which a pair in XDR contains in addition to its own: sizeof(nvpair_t) and sizeof(nvlist_t).
_PAIR, _LIST = 16, 24


def block(variables: Mapping[str, str]) -> bytes:
    """The block of the first label with ``variables``. Raises UsageError if they do not fit.

    >>> len(block({"kern.hz": "100"}))
    8192
    """
    names = [_pair(name, _STRING, _text(value), _align(len(value.encode()) + 1, 8)) for name, value in variables.items()]
    pairs = [
        _pair("version", _UINT64, struct.pack(">Q", _VB_NVLIST), 8),
        _pair(_STORE, _NVLIST, _list(names), _LIST),
    ]
    # The header: XDR encoding (1), written by a little-endian machine (1).
    data = b"\1\1\0\0" + _list(pairs)
    if len(data) > _ROOM:
        raise UsageError(f"kernel variables of {len(data)} bytes", hint=f"the boot environment of a ZFS pool holds {_ROOM}")
    return seal(struct.pack(">Q", _VB_NVLIST) + data.ljust(_ROOM, b"\0"))


def seal(content: bytes) -> bytes:
    """``content`` (SIZE - 40 bytes) with its checksum: a SHA-256 of the block with its offset in place of the checksum."""
    digest = hashlib.sha256(content + _TRAILER.pack(_MAGIC, OFFSET, 0, 0, 0)).digest()
    return content + _TRAILER.pack(_MAGIC, *struct.unpack(">4Q", digest))


def is_block(data: bytes) -> bool:
    """Whether ``data`` begins with the block of a first label and a valid checksum."""
    return len(data) >= SIZE and data[:SIZE] == seal(data[: SIZE - _TRAILER.size])


def _list(pairs: list[bytes]) -> bytes:
    return struct.pack(">II", 0, _UNIQUE_NAME) + b"".join(pairs) + bytes(8)


def _pair(name: str, kind: int, value: bytes, decoded: int) -> bytes:
    """A pair: its size in XDR and in memory, name, type, number of elements, value."""
    body = _text(name) + struct.pack(">II", kind, 1) + value
    in_memory = _align(_PAIR + len(name.encode()) + 1, 8) + _align(decoded, 8)
    return struct.pack(">II", len(body) + 8, in_memory) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data.ljust(_align(len(data), 4), b"\0")


def _align(size: int, unit: int) -> int:
    return -(-size // unit) * unit
