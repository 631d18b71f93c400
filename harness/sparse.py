# SPDX-License-Identifier: BSD-2-Clause
"""Copy a file as a sparse file, so that free memory in a checkpoint takes no disk space."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_PAGE = 4096
_BLOCK = 1 << 20


def copy_sparse(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target`` with holes instead of pages of zeros. Raises OSError."""
    zeros = bytes(_PAGE)
    size = source.stat().st_size
    with source.open("rb", buffering=0) as src, target.open("wb", buffering=0) as dst:
        dst.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(src.fileno(), at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # only a hole follows
                    break
                raise
            end = os.lseek(src.fileno(), at, os.SEEK_HOLE)
            while at < end:
                block = os.pread(src.fileno(), min(_BLOCK, end - at), at)
                if block.count(0) == len(block):
                    at += len(block)
                    continue
                first = 0
                # Write each run of pages that are not zero at once.
                for page in range(0, len(block) + _PAGE, _PAGE):
                    if page >= len(block) or block[page : page + _PAGE] == zeros:
                        if page > first:
                            os.pwrite(dst.fileno(), block[first : min(page, len(block))], at + first)
                        first = page + _PAGE
                at += len(block)
