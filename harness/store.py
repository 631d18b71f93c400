# SPDX-License-Identifier: BSD-2-Clause
"""The store: files and directories that are created once, shared by all runs of a user, and evicted when unused.

An entry is ``$FXH_STORE/<kind>/<key>``, a file or a directory. One process holds ``.<key>.lock``, creates the entry in
``.making-<key>.*`` and renames it; the others wait for the lock. An entry is therefore complete, and a killed process leaves
only a work directory, which the next creation or :func:`sweep` removes.

The last use of a directory is the time of ``.used`` in it; of a file, that of ``.<key>.used`` next to it. Without such a file
it is the entry's own time of change.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness import paths, preparing
from harness.errors import BuildError, InfrastructureError

log = logging.getLogger("fxh.store")

MANIFEST = "manifest.json"

# Errors of the store's disk, not of the program that writes to it.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
# Until November 2026, work directories of labs and kernels were named <key>.making-*.
_MAKING, _GONE = ".making-", ".gone-"
_DAY = 86400.0
# Seconds. A younger ``.gone-`` directory may belong to a process that is about to use it.
_HOUR = 3600.0


@dataclass(frozen=True)
class Entry:
    """An entry that is a directory and describes itself in ``manifest.json``."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def manifest(self) -> dict[str, Any]:
        """Raises OSError or ValueError if it is missing or damaged."""
        data: dict[str, Any] = json.loads((self.directory / MANIFEST).read_text())
        return data


def directory(kind: str) -> Path:
    """The directory of all entries of ``kind``; created if it is missing."""
    path = paths.store() / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def lock(entry: Path, timeout: float = -1) -> FileLock:
    """The lock under which ``entry`` is created, rebuilt in place, or evicted. ``timeout`` in seconds, -1 waits for ever."""
    return FileLock(entry.with_name(f".{entry.name}.lock"), timeout=timeout)


def mark_used(entry: Path) -> None:
    """Record that ``entry`` is used now. Does nothing on a read-only medium, or if another process has removed the entry."""
    with contextlib.suppress(OSError):
        if entry.exists():
            _stamp(entry).touch()


def last_used(entry: Path) -> float:
    """The last use of ``entry`` in seconds since the epoch; 0 if it no longer exists."""
    for path in (_stamp(entry), entry):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _stamp(entry: Path) -> Path:
    return entry / ".used" if entry.is_dir() else entry.with_name(f".{entry.name}.used")


def size(path: Path) -> int:
    """Bytes on disk of a file, or of a directory with all below it. Another process may remove files meanwhile."""
    # os.walk skips a directory that disappears; Path.rglob raises an error.
    below = [Path(base) / name for base, directories, files in os.walk(path) for name in (*directories, *files)]
    total = 0
    for place in (path, *below):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            total += place.lstat().st_blocks * 512
    return total


def undamaged(entry: Path) -> str:
    """The default check for damage: an entry that exists is good."""
    return ""


def usable(entry: Path, damage: Callable[[Path], str] = undamaged) -> bool:
    """Whether ``entry`` exists and ``damage`` returns "" for it."""
    return entry.exists() and not damage(entry)


def get_or_create(
    kind: str,
    key: str,
    create: Callable[[Path], Path],
    *,
    step: str,
    damage: Callable[[Path], str] = undamaged,
    free_mib: int = 0,
    force: bool = False,
) -> Path:
    """Return the entry ``key`` of ``kind``; create it if it is missing or damaged, or in any case with ``force``.

    ``create`` gets an empty work directory and returns the path that becomes the entry: the work directory itself or a path
    below it. ``damage`` returns the reason why an existing entry cannot be used, or "". ``step`` names the creation in the run's
    setup times. Raises BuildError if fewer than ``free_mib`` MiB are free, InfrastructureError if the store's disk
    fails during the creation, and the errors of ``create``.
    """
    entry = directory(kind) / key
    if force or not usable(entry, damage):
        with preparing.step(step), lock(entry):
            if force or not usable(entry, damage):
                _create(entry, create, damage, free_mib)
    mark_used(entry)
    return entry


def _create(entry: Path, create: Callable[[Path], Path], damage: Callable[[Path], str], free_mib: int) -> None:
    # This process holds the lock, so these belong to a killed process.
    for leftover in entry.parent.glob(f"{_MAKING}{entry.name}.*"):
        delete_tree(leftover)
    free = shutil.disk_usage(entry.parent).free >> 20
    if free < free_mib:
        raise BuildError(
            f"{free} MiB free at {entry.parent}, building {entry.name} needs {free_mib}",
            hint="free some space (`fxh store gc`), or point FXH_STORE at a larger disk",
        )
    if entry.exists():
        if reason := damage(entry):
            log.warning("%s is damaged (%s); creating it again", entry, reason)
        remove(entry)
    work = Path(tempfile.mkdtemp(prefix=f"{_MAKING}{entry.name}.", dir=entry.parent))
    work.chmod(0o755)
    try:
        create(work).rename(entry)
    except OSError as exc:
        if exc.errno not in _DISK_ERRORS:
            raise
        free = shutil.disk_usage(entry.parent).free >> 20
        raise InfrastructureError(
            f"{entry}: {exc.strerror or exc} ({free} MiB free there)",
            hint="free some space (`fxh store gc`), or point FXH_STORE at a larger disk",
        ) from exc
    finally:
        delete_tree(work)


def remove(entry: Path) -> None:
    """Rename ``entry`` out of the way, then delete it: no process finds it half deleted. Open files stay usable."""
    stamp = _stamp(entry)
    while entry.exists() or entry.is_symlink():
        doomed = Path(tempfile.mkdtemp(prefix=_GONE, dir=entry.parent)) / entry.name
        try:
            entry.rename(doomed)
            stamp.unlink(missing_ok=True)
        except FileNotFoundError:  # another process was quicker, or swept the new directory
            pass
        finally:
            delete_tree(doomed.parent)


def delete_tree(path: Path) -> None:
    """Delete a directory with all below it, including directories without write permission."""
    for base, names, _ in os.walk(path):
        for name in names:
            below = Path(base) / name
            if not below.is_symlink() and not os.access(below, os.W_OK | os.X_OK):
                below.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def sweep(kind: str) -> list[tuple[Path, int]]:
    """Remove the work directories that killed processes left in ``kind``; returns them with their sizes in bytes."""
    removed = []
    for path in sorted(directory(kind).iterdir()):
        before, making, after = path.name.partition(_MAKING)
        if making and path.is_dir():
            with _idle(path.with_name(before or after.rpartition(".")[0])) as idle:
                if idle:
                    removed.append((path, size(path)))
                    delete_tree(path)
        elif path.name.startswith(_GONE) and last_used(path) < time.time() - _HOUR:
            delete_tree(path)
    return removed


@contextlib.contextmanager
def _idle(entry: Path) -> Iterator[bool]:
    """Whether no other process holds the lock of ``entry``; this process holds it then."""
    held = lock(entry, timeout=0)
    if not Path(held.lock_file).exists():
        yield True
        return
    try:
        held.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


# -- garbage collection -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """Something that garbage collection may remove. ``size`` in bytes on disk, ``used`` in seconds since the epoch.

    A user's own work is not ``recreatable``: only its age can evict it.
    """

    kind: str
    path: Path
    size: int
    used: float
    about: str = ""
    recreatable: bool = True


@dataclass(frozen=True)
class Eviction:
    item: Item
    reason: str


def items(*kinds: str) -> list[Item]:
    """All entries of these kinds, the longest unused first."""
    found = [Item(kind, path, size(path), last_used(path)) for kind in kinds for path in entries(kind)]
    return sorted(found, key=lambda item: item.used)


def entries(kind: str) -> list[Path]:
    """The paths of all entries of ``kind``, without locks, logs and work directories."""
    return sorted(
        path
        for path in directory(kind).iterdir()
        if not path.name.startswith(".") and _MAKING not in path.name and path.suffix not in (".lock", ".log")
    )


def select_evictions(all_items: Iterable[Item], *, keep_bytes: int | None, max_age: float | None, now: float) -> list[Eviction]:
    """The items that are unused for more than ``max_age`` seconds, then the longest unused until ``keep_bytes`` remain."""
    found = []
    by_use = sorted(all_items, key=lambda item: item.used)
    total = sum(item.size for item in by_use)
    for item in by_use:
        if max_age is not None and now - item.used > max_age:
            reason = f"unused for {(now - item.used) / _DAY:.1f} days"
        elif keep_bytes is not None and total > keep_bytes and item.recreatable:
            reason = f"the store is larger than {keep_bytes >> 20} MiB"
        else:
            continue
        total -= item.size
        found.append(Eviction(item, reason))
    return found


def evict(
    all_items: Iterable[Item], *, keep_bytes: int | None = None, max_age: float | None = None, dry_run: bool = False
) -> list[Eviction]:
    """Remove old items (see :func:`select_evictions`) and return them. An item whose lock another process holds stays."""
    selected = select_evictions(all_items, keep_bytes=keep_bytes, max_age=max_age, now=time.time())
    return selected if dry_run else [eviction for eviction in selected if _remove_if_idle(eviction.item.path)]


def keep_latest(kind: str, count: int) -> None:
    """Remove all but the ``count`` entries of ``kind`` that were used last."""
    for path in sorted(entries(kind), key=last_used)[:-count]:
        _remove_if_idle(path)


def _remove_if_idle(path: Path) -> bool:
    with _idle(path) as idle:
        if idle and path.exists():
            remove(path)
            return True
    return False
