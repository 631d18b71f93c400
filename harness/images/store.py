# SPDX-License-Identifier: BSD-2-Clause
"""The store: content-addressed directories that are made once, never changed, and checked before they are used.

``$FXH_STORE/<kind>/<key>/`` with ``manifest.json`` and ``sums.json`` (size, time of change and hash of every file).
One process makes an entry, the others wait at its lock and find it there; a half entry never has its final name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness import paths, preparing
from harness.errors import InfrastructureError
from harness.images.inputs import content_hash

log = logging.getLogger("fxh.images")

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
KINDS = ("images", "worlds", "kernels", "sets", "disks", "raws")
_MANIFEST, _SUMS, _USED = "manifest.json", "sums.json", ".used"


@dataclass(frozen=True)
class Entry:
    """A finished entry."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def manifest(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / _MANIFEST).read_text())
        return data

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(p.lstat().st_blocks * 512 for p in (self.directory, *self.directory.rglob("*")))

    @property
    def used(self) -> float:
        """When it was last asked for, seconds since the epoch."""
        try:
            return (self.directory / _USED).stat().st_mtime
        except OSError:
            return self.directory.stat().st_mtime

    def damage(self, *, thorough: bool = False) -> list[str]:
        """Names of files that are not as they were made. Content is read where size or time changed, or if ``thorough``."""
        try:
            sums = json.loads((self.directory / _SUMS).read_text())
        except (OSError, ValueError):
            return [_SUMS]
        found = []
        try:
            _ = self.manifest
        except (OSError, ValueError):
            found.append(_MANIFEST)
        for name, (size, changed, digest) in sums.items():
            try:
                there = (self.directory / name).stat()
                same = there.st_size == size and (
                    (there.st_mtime_ns == changed and not thorough) or content_hash(self.directory / name) == digest
                )
            except OSError:
                same = False
            if not same:
                found.append(name)
        return found

    def touch(self) -> None:
        """Note that it was used: gc goes by that."""
        with contextlib.suppress(OSError):  # an exported one can be on a medium that is read only
            (self.directory / _USED).touch()


def directory(kind: str) -> Path:
    path = paths.store() / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


# What making an entry is called in a run's setup.
_MADE = {"raws": "a disk image, unpacked", "disks": "a disk image, read"}


def find(kind: str, key: str) -> Entry | None:
    """The entry if it is there and, as far as a quick look tells, as it was made."""
    entry = Entry(directory(kind) / key)
    return entry if (entry.directory / _MANIFEST).is_file() and not entry.damage() else None


def obtain(kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry, from the store or made now: ``make`` fills a directory and returns the manifest.

    A damaged entry is made anew. Raises what ``make`` raises, and InfrastructureError when the store's disk is full.
    """
    entry = find(kind, key)
    if entry is None:
        target = directory(kind) / key
        with preparing.step(_MADE.get(kind, f"{kind} of the image store")), FileLock(target.with_name(f".{key}.lock")):
            entry = find(kind, key)
            if entry is None:
                if target.exists():
                    log.warning("%s %s is damaged (%s): it is made anew", kind, key, ", ".join(Entry(target).damage()[:3]))
                    remove(Entry(target))
                entry = _make(target, make)
    entry.touch()
    return entry


def _make(target: Path, make: Callable[[Path], dict[str, Any]]) -> Entry:
    # What a killed maker left; its lock is ours now.
    for left in target.parent.glob(f".making-{target.name}.*"):
        _delete(left)
    work = Path(tempfile.mkdtemp(prefix=f".making-{target.name}.", dir=target.parent))
    work.chmod(0o755)
    try:
        manifest = make(work)
        sums = {}
        for path in sorted(work.rglob("*")):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                path.chmod(stat.S_IMODE(mode) & 0o555 | 0o400)
                there = path.stat()
                sums[path.relative_to(work).as_posix()] = (there.st_size, there.st_mtime_ns, content_hash(path))
        (work / _SUMS).write_text(json.dumps(sums))
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        work.rename(target)
    except OSError as exc:
        if exc.errno not in _DISK:
            raise
        free = shutil.disk_usage(target.parent).free >> 20
        raise InfrastructureError(
            f"{target}: {exc.strerror or exc} ({free} MiB free there)",
            hint="free some space (`fxh image gc`), or point FXH_STORE at a larger disk",
        ) from exc
    finally:
        _delete(work)
    return Entry(target)


def entries(*kinds: str) -> list[tuple[str, Entry]]:
    """All finished entries as (kind, entry), the longest unused first."""
    found = []
    for kind in kinds or KINDS:
        found += [(kind, Entry(p)) for p in directory(kind).iterdir() if (p / _MANIFEST).is_file()]
    return sorted(found, key=lambda pair: pair[1].used)


def remove(entry: Entry) -> None:
    """Take it out of sight at once, then delete it."""
    doomed = Path(tempfile.mkdtemp(prefix=".gone-", dir=entry.directory.parent)) / entry.key
    entry.directory.rename(doomed)
    _delete(doomed.parent)


def _delete(path: Path) -> None:
    """Delete a tree, directories without write permission in it, too."""
    for base, names, _ in os.walk(path):
        for name in names:
            below = Path(base) / name
            if not below.is_symlink() and not os.access(below, os.W_OK | os.X_OK):
                below.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Eviction:
    kind: str
    entry: Entry
    size: int
    why: str


def select_evictions(
    rows: list[tuple[str, Entry, int, float]], *, keep_bytes: int | None, max_age: float | None, now: float
) -> list[Eviction]:
    """Which of (kind, entry, size, last use) go: those unused for ``max_age`` seconds, then the longest unused beyond ``keep_bytes``."""
    found = []
    rows = sorted(rows, key=lambda row: row[3])
    total = sum(size for _, _, size, _ in rows)
    for kind, entry, size, used in rows:
        if max_age is not None and now - used > max_age:
            why = f"unused for {(now - used) / 86400:.1f} days"
        elif keep_bytes is not None and total > keep_bytes:
            why = f"the store is larger than {keep_bytes >> 20} MiB"
        else:
            continue
        total -= size
        found.append(Eviction(kind, entry, size, why))
    return found


def collect(*, keep_bytes: int | None = None, max_age: float | None = None, dry: bool = False) -> list[Eviction]:
    """Remove old entries; what somebody makes at the moment has no final name yet and stays."""
    rows = [(kind, entry, entry.size, entry.used) for kind, entry in [*entries(), *_workings()]]
    doomed = select_evictions(rows, keep_bytes=keep_bytes, max_age=max_age, now=time.time())
    if dry:
        return doomed
    return [item for item in doomed if _remove_unless_held(item)]


def _workings() -> list[tuple[str, Entry]]:
    """Object directories of source builds, and fetched sets: they only save time."""
    objects = [("objects", Entry(p)) for p in directory("objects").iterdir() if p.is_dir()]
    return objects + [("downloads", Entry(p)) for p in directory("downloads").iterdir() if not p.name.startswith(".")]


def _remove_unless_held(item: Eviction) -> bool:
    """Remove it, unless somebody builds in it at the moment."""
    lock = FileLock(item.entry.directory.with_name(f".{item.entry.key}.lock"), timeout=0)
    try:
        with lock:
            if item.entry.directory.is_file():
                item.entry.directory.unlink()
            else:
                remove(item.entry)
    except Timeout:
        return False
    return True
