# SPDX-License-Identifier: BSD-2-Clause
"""Remove unused labs and checkpoints from the store, checkpoints beyond a limit, and leftovers of killed processes."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.lab import checkpoint, registry
from harness.lab.checkpoint import CheckpointKind
from harness.lab.store import LabImage, on_disk

_DAY = 86400.0
# Bytes. The control guest's matrix creates 28 checkpoints, a FreeBSD's 8, of 200 to 450 MiB each. A missing one costs a boot in the
# next run. If the limit is below the size of one run's, the next run finds none at all: it needs the least recently used one first.
_MOST = 24 << 30


@dataclass(frozen=True)
class Removed:
    """``size`` is in bytes on disk."""

    path: Path
    size: int


def prune(days: float) -> tuple[Removed, ...]:
    """Remove everything that was last used more than ``days`` ago and that no running lab depends on."""
    before = time.time() - days * _DAY
    removed = []
    # The control guest's kernels and the firmware are handled as labs without checkpoints.
    for directory in (*_directories("control"), *_directories("firmware"), *_directories("labs")):
        if ".making-" in directory.name:
            if _age(directory) < time.time() - _DAY:
                removed.append(_remove(directory))
            continue
        busy = {
            record.checkpoint for name in registry.names() if (record := registry.read(name)) and record.image_path == directory
        }
        if not busy and _age(directory) < before:
            removed.append(_remove(directory))
            directory.with_name(f"{directory.name}.lock").unlink(missing_ok=True)
            continue
        image = LabImage(directory)
        below = checkpoint.parents(image)
        for path in checkpoint.listing(image):
            if path.name not in busy and _age(path) < before and path not in below:
                size = on_disk(path.rglob("*"))
                checkpoint.remove(path)
                removed.append(Removed(path, size))
        removed += [_remove(p) for p in (directory / "checkpoints").glob(".*") if p.is_dir() and _age(p) < time.time() - _DAY]
    return tuple(removed)


def bound(most: int = _MOST) -> tuple[Removed, ...]:
    """Remove the suites' least recently used checkpoints, of all labs, until they take ``most`` bytes.

    They also must not take more than half of the disk's free space without them. Suites create them again when needed.
    """
    labs = paths.store() / "labs"
    images = [LabImage(path) for path in labs.iterdir() if path.is_dir()]
    found = {path for image in images for path in checkpoint.listing(image) if CheckpointKind.of(path.name).of_suites}
    below = {path for image in images for path in checkpoint.parents(image)}
    sizes = {path: on_disk(path.rglob("*")) for path in found}
    taken = sum(sizes.values())
    most = min(most, (taken + shutil.disk_usage(labs).free) // 2)
    removed = []
    for path in sorted(found - below, key=_age):
        if taken <= most:
            break
        checkpoint.remove(path)
        removed.append(Removed(path, sizes[path]))
        taken -= sizes[path]
    return tuple(removed)


def _directories(place: str) -> list[Path]:
    top = paths.store() / place
    return sorted(path for path in top.iterdir() if path.is_dir()) if top.is_dir() else []


def _age(path: Path) -> float:
    """The time of the last use; 0 if it has been removed meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> Removed:
    size = on_disk(path.rglob("*"))
    shutil.rmtree(path, ignore_errors=True)
    return Removed(path, size)
