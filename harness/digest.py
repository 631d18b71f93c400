# SPDX-License-Identifier: BSD-2-Clause
"""The one way in which the content of a file gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from harness import paths, preparing
from harness.errors import UsageError

# A file changed less than this many seconds ago can change again without another time of change (git's "racy" files).
_SETTLED = 2.0
# Hashes of files of at least this size are kept for other processes; the newest this many.
_WORTH_KEEPING, _KEPT = 16 << 20, 500


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a file that can be read") from exc


def known_sha256(path: Path) -> str:
    """As :func:`file_sha256`, from memory where the file has not changed (see :func:`known`)."""
    return known(path, file_sha256)


def known(path: Path, take: Callable[[Path], str]) -> str:
    """A hash of a file (64 hex digits), taken once only as long as the file's size, inode and times stay what they are.

    The hashes of large files are kept in the store: a disk image of gigabytes takes seconds to read. Raises UsageError when the
    file cannot be read.
    """
    try:
        stat = path.stat()
        if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED:
            return take(path)
        state = f"{path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        return _known(path, state, take)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a file that can be read") from exc


@lru_cache(maxsize=256)
def _known(path: Path, state: str, take: Callable[[Path], str]) -> str:
    if path.stat().st_size < _WORTH_KEEPING:
        return take(path)
    kept = paths.store() / "hashes" / hashlib.sha256(f"{take.__qualname__} {state}".encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        text = kept.read_text()
        if len(text) == 64:
            os.utime(kept)
            return text
    with preparing.step(f"the hash of {path.name}"):
        found = take(path)
    with contextlib.suppress(OSError):  # a store that is full or read only costs time, not correctness
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}")
        part.write_text(found)
        part.replace(kept)
        for old in sorted(kept.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return found
