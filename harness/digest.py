"""The one way in which the content of a file gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path

from harness import paths
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
        raise UsageError(f"{path}: {exc.strerror}", mend="give the path of a file that can be read") from exc


def known_sha256(path: Path) -> str:
    """As :func:`file_sha256`, but a file is read once only as long as its size, inode and times stay what they are.

    The hashes of large files are kept in the store: a disk image of gigabytes takes seconds to read.
    """
    try:
        stat = path.stat()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", mend="give the path of a file that can be read") from exc
    if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED:
        return file_sha256(path)
    return _known(path, f"{path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")


@lru_cache(maxsize=256)
def _known(path: Path, state: str) -> str:
    if path.stat().st_size < _WORTH_KEEPING:
        return file_sha256(path)
    kept = paths.store() / "hashes" / hashlib.sha256(state.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        text = kept.read_text()
        if len(text) == 64:
            os.utime(kept)
            return text
    found = file_sha256(path)
    with contextlib.suppress(OSError):  # a store that is full or read only costs time, not correctness
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}")
        part.write_text(found)
        part.replace(kept)
        for old in sorted(kept.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return found
