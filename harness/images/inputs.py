# SPDX-License-Identifier: BSD-2-Clause
"""What an image is made from: every input with its hash and where its value came from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Input:
    """``hash`` stands for the content (sha256, or the value itself where it is short); ``origin`` says who gave it."""

    what: str
    hash: str
    origin: str


def content_hash(path: Path) -> str:
    """As sure as a sha256, but without reading a disk image's holes: over its size and what in it is not zero.

    Raises OSError.
    """
    digest, zeros = hashlib.sha256(), bytes(_BLOCK)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(f"{size}\n".encode())
        for begin, end in extents(file.fileno()):
            for at in range(begin - begin % _BLOCK, end, _BLOCK):
                block = os.pread(file.fileno(), min(_BLOCK, size - at), at)
                if block != zeros[: len(block)]:
                    digest.update(f"{at}\n".encode())
                    digest.update(block)
    return digest.hexdigest()


def extents(descriptor: int) -> list[tuple[int, int]]:
    """Where a sparse file has data, as (begin, end)."""
    found, at, size = [], 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            break
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(*inputs: Input) -> str:
    """A key that depends on every input's name and hash, and not on where they came from."""
    return combine({item.what: item.hash for item in inputs})


def combine(values: Any) -> str:
    """A short key for any JSON value."""
    return text_hash(json.dumps(values, sort_keys=True))[:16]
