# SPDX-License-Identifier: BSD-2-Clause
"""Images, worlds and kernels in the store: directories with a manifest and checksums that never change.

``manifest.json`` describes the entry; ``sums.json`` has size, time of change and hash of every file.
:mod:`harness.store` creates and evicts them.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import store
from harness.images.inputs import content_hash

KINDS = ("images", "worlds", "kernels", "disks", "raws")
# Caches: object directories of source builds, fetched files, and copies of images with kernel variables.
CACHES = ("objects", "downloads", "variants")
_SUMS = "sums.json"
# The names of these steps in a run's setup times.
_STEPS = {"raws": "a disk image, unpacked", "disks": "a disk image, read"}


@dataclass(frozen=True)
class StoreEntry(store.Entry):
    """A complete entry."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return store.size(self.directory)

    @property
    def used(self) -> float:
        """The last use, in seconds since the epoch."""
        return store.last_used(self.directory)

    def damage(self, *, thorough: bool = False) -> list[str]:
        """Names of missing or changed files. Reads the content of files with another size or time; of all if ``thorough``."""
        try:
            sums = json.loads((self.directory / _SUMS).read_text())
        except (OSError, ValueError):
            return [_SUMS]
        found = []
        try:
            _ = self.manifest
        except (OSError, ValueError):
            found.append(store.MANIFEST)
        for name, (size, changed, digest) in sums.items():
            try:
                file = (self.directory / name).stat()
                same = file.st_size == size and (
                    (file.st_mtime_ns == changed and not thorough) or content_hash(self.directory / name) == digest
                )
            except OSError:
                same = False
            if not same:
                found.append(name)
        return found

    def mark_used(self) -> None:
        """See :func:`harness.store.mark_used`."""
        store.mark_used(self.directory)


def find(kind: str, key: str) -> StoreEntry | None:
    """The entry; None if it is missing or damaged (see :meth:`StoreEntry.damage`)."""
    path = store.directory(kind) / key
    return StoreEntry(path) if store.usable(path, _damage) else None


def get_or_create(kind: str, key: str, fill: Callable[[Path], dict[str, Any]]) -> StoreEntry:
    """The entry, from the store or created now: ``fill`` writes its files into a directory and returns the manifest.

    Raises the errors of ``fill``, and InfrastructureError when the store's disk is full.
    """

    def create(work: Path) -> Path:
        _seal(work, fill(work))
        return work

    step = _STEPS.get(kind, f"{kind} of the image store")
    return StoreEntry(store.get_or_create(kind, key, create, step=step, damage=_damage))


def _damage(directory: Path) -> str:
    return ", ".join(StoreEntry(directory).damage()[:3])


def _seal(work: Path, manifest: dict[str, Any]) -> None:
    """Make all files read-only, and write the checksums and the manifest."""
    sums = {}
    for path in sorted(work.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            path.chmod(stat.S_IMODE(mode) & 0o555 | 0o400)
            file = path.stat()
            sums[path.relative_to(work).as_posix()] = (file.st_size, file.st_mtime_ns, content_hash(path))
    (work / _SUMS).write_text(json.dumps(sums))
    (work / store.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def listing(*kinds: str) -> list[tuple[str, StoreEntry]]:
    """All finished entries as (kind, entry), the longest unused first."""
    found = [
        (kind, StoreEntry(path)) for kind in kinds or KINDS for path in store.entries(kind) if (path / store.MANIFEST).is_file()
    ]
    return sorted(found, key=lambda pair: pair[1].used)
