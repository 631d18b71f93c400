"""Takes out of the store what no lab has used for long: images of older recipes, their checkpoints, leavings of the killed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.lab import checkpoint, records
from harness.lab.store import LabImage

_DAY = 86400.0


@dataclass(frozen=True)
class Removed:
    """``size`` in bytes on disk."""

    path: Path
    size: int


def prune(days: float) -> tuple[Removed, ...]:
    """Remove what was last used more than ``days`` ago and no running lab stands on."""
    before = time.time() - days * _DAY
    removed = []
    labs = paths.store() / "labs"
    for directory in sorted(p for p in labs.iterdir() if p.is_dir()) if labs.is_dir() else ():
        if ".making-" in directory.name:
            if _age(directory) < time.time() - _DAY:
                removed.append(_remove(directory))
            continue
        busy = {record.checkpoint for name in records.names() if (record := records.read(name)) and record.image_path == directory}
        if not busy and _age(directory) < before:
            removed.append(_remove(directory))
            directory.with_name(f"{directory.name}.lock").unlink(missing_ok=True)
            continue
        image = LabImage(directory)
        for path in checkpoint.listing(image):
            if path.name not in busy and _age(path) < before and not checkpoint.children(image, path):
                size = _size(path)
                checkpoint.remove(path)
                removed.append(Removed(path, size))
        removed += [_remove(p) for p in (directory / "checkpoints").glob(".*") if p.is_dir() and _age(p) < time.time() - _DAY]
    return tuple(removed)


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _size(path: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in path.rglob("*") if p.is_file())


def _remove(path: Path) -> Removed:
    size = _size(path)
    shutil.rmtree(path, ignore_errors=True)
    return Removed(path, size)
