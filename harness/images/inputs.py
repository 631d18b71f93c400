# SPDX-License-Identifier: BSD-2-Clause
"""The inputs of an image, each with its hash and its origin, and the keys that follow from them."""

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
    """``hash`` identifies the content (sha256, or a short value itself); ``origin`` is a file, option or URL."""

    what: str
    hash: str
    origin: str


def content_hash(path: Path) -> str:
    """A sha256 of a file's size and of its blocks that are not zero, so it does not read the holes of a disk image.

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
    """The parts of a sparse file that have data, as (begin, end) in bytes."""
    found, at, size = [], 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # only a hole follows
            break
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(*inputs: Input) -> str:
    """A key that depends on name and hash of every input, but not on their origins or order."""
    return combine({item.what: item.hash for item in inputs})


def combine(values: Any) -> str:
    """A short key for any JSON value."""
    return text_hash(json.dumps(values, sort_keys=True))[:16]
