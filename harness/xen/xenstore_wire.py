# SPDX-License-Identifier: BSD-2-Clause
"""xenstore's messages (xen/include/public/io/xs_wire.h; docs/misc/xenstore.txt)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

# Type, request, transaction, and the length of the payload, all in the guest's byte order.
_HEADER = struct.Struct("<IIII")
HEADER = _HEADER.size
PAYLOAD_MAX = 4096
"""Bytes. A longer payload is an error of the protocol (XENSTORE_PAYLOAD_MAX)."""


class Kind(IntEnum):
    """The type of a message; a reply has the type of its request, or ERROR."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16


@dataclass(frozen=True)
class Message:
    """A message. ``kind`` is a plain number if :class:`Kind` does not have it."""

    kind: int
    body: bytes
    request: int = 0
    transaction: int = 0

    def packed(self) -> bytes:
        return _HEADER.pack(self.kind, self.request, self.transaction, len(self.body)) + self.body

    @property
    def words(self) -> tuple[str, ...]:
        """The parts of the body that end with NUL or with the body."""
        return tuple(part.decode("utf-8", "replace") for part in self.body.removesuffix(b"\0").split(b"\0"))

    def __str__(self) -> str:
        name = Kind(self.kind).name if self.kind in set(Kind) else f"type {self.kind}"
        shown = self.body if len(self.body) <= 40 else self.body[:40] + b"..."
        return f"{name} {shown!r}"


def split(data: bytes) -> tuple[list[Message], bytes]:
    """The whole messages at the beginning of ``data``, and the rest. Raises ValueError for a message that is too long."""
    found, rest = list[Message](), data
    while len(rest) >= HEADER:
        kind, request, transaction, length = _HEADER.unpack_from(rest)
        if length > PAYLOAD_MAX:
            raise ValueError(f"a message of type {kind} with {length} bytes after {len(found)} messages: {rest[:64].hex(' ')}")
        if length > len(rest) - HEADER:
            break
        found.append(Message(kind, rest[HEADER : HEADER + length], request, transaction))
        rest = rest[HEADER + length :]
    return found, rest


def unpack(data: bytes) -> list[Message]:
    """The messages in ``data``. Raises ValueError if it ends within a message."""
    found, rest = split(data)
    if rest:
        raise ValueError(f"{len(rest)} bytes of a message after {len(found)} messages: {rest[:64].hex(' ')}")
    return found
