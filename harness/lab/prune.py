# SPDX-License-Identifier: BSD-2-Clause
"""Takes out of the store what no lab has used for long, of checkpoints also what is too much, and leavings of the killed."""

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
# The control guest's matrix makes 28, a FreeBSD's 8, of 200 to 450 MiB each. One that is not kept costs a boot in the next run:
# when there is room for fewer than a run makes, the next run finds none at all, for it asks for the longest unused one first.
_MOST = 24 << 30


@dataclass(frozen=True)
class Removed:
    """``size`` in bytes on disk."""

    path: Path
    size: int


def prune(days: float) -> tuple[Removed, ...]:
    """Remove what was last used more than ``days`` ago and no running lab stands on."""
    before = time.time() - days * _DAY
    removed = []
    # Kernels of the control guest and firmwares are to this labs without checkpoints.
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
    """Remove the longest unused checkpoints that suites made, of whatever lab, until they take ``most`` bytes.

    And no more than half of what the disk would have without them. They are made anew when they are needed.
    """
    labs = paths.store() / "labs"
    images = [LabImage(path) for path in labs.iterdir() if path.is_dir()]
    made = {path for image in images for path in checkpoint.listing(image) if CheckpointKind.of(path.name).of_suites}
    below = {path for image in images for path in checkpoint.parents(image)}
    sizes = {path: on_disk(path.rglob("*")) for path in made}
    taken = sum(sizes.values())
    most = min(most, (taken + shutil.disk_usage(labs).free) // 2)
    removed = []
    for path in sorted(made - below, key=_age):
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
    """When it was used last; 0 for what is gone meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> Removed:
    size = on_disk(path.rglob("*"))
    shutil.rmtree(path, ignore_errors=True)
    return Removed(path, size)
