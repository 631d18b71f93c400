# SPDX-License-Identifier: BSD-2-Clause
"""Hashes of file contents. Every module that names or compares contents uses these."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType

from harness import paths, preparing
from harness.errors import UsageError

# Seconds. A file that changed this recently can change again without a new time stamp (git calls such files "racy").
_SETTLED = 2.0
# Keep the hashes of files of at least this many bytes for other processes, and at most this many of them.
_WORTH_KEEPING, _KEPT = 16 << 20, 500


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex. Raises UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a readable file") from exc


def known_sha256(path: Path) -> str:
    """:func:`file_sha256` with the cache of :func:`known`."""
    return known(path, file_sha256)


def known(path: Path, take: Callable[[Path], str]) -> str:
    """The hash ``take(path)`` of a file (64 hex digits), cached until the file's size, inode or times change.

    The store keeps the hashes of large files, because a disk image of gigabytes takes seconds to read. Raises UsageError if the
    file cannot be read.
    """
    try:
        stat = path.stat()
        if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED:
            return take(path)
        state = f"{path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        return _known(path, state, take)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", hint="give the path of a readable file") from exc


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
    with contextlib.suppress(OSError):  # the cache is optional: the store may be full or read-only
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}")
        part.write_text(found)
        part.replace(kept)
        for old in sorted(kept.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return found


def code_sha256(paths: Iterable[Path]) -> str:
    """sha256 of what Python files do: it does not change with a comment, a docstring, an assertion or the line numbers.

    It does change with the version of Python. Raises OSError, SyntaxError.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        for part in _instructions(compile(path.read_bytes(), path.name, "exec", dont_inherit=True, optimize=2)):
            digest.update(part + b"\0")
    return digest.hexdigest()


def _instructions(code: CodeType) -> Iterator[bytes]:
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield repr((code.co_name, code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, names)).encode()
    yield code.co_code + code.co_exceptiontable
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _instructions(value)
        else:
            yield _constant(value).encode()


def _constant(value: object) -> str:
    # The order of a set differs between processes.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
