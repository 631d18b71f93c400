# SPDX-License-Identifier: BSD-2-Clause
"""Remove unused labs and checkpoints from the store, checkpoints beyond a limit, and leftovers of killed processes."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from harness import store
from harness.lab import checkpoint, registry
from harness.lab.archive import IMPORTED
from harness.lab.checkpoint import CheckpointKind
from harness.lab.store import LabImage
from harness.store import Item

_DAY = 86400.0
# Bytes. The control guest's matrix creates 28 checkpoints, a FreeBSD's 8, of 200 to 450 MiB each. A missing one costs a boot in the
# next run. If the limit is below the size of one run's, the next run finds none at all: it needs the least recently used one first.
_MOST = 24 << 30
KINDS = ("labs", "checkpoints", "control", "firmware")


def items() -> list[Item]:
    """All that garbage collection may remove: labs and checkpoints that no running lab uses, control guest kernels, firmware.

    A lab comes after its checkpoints; its size is without theirs.
    """
    found = store.items("control", "firmware")
    records = [record for name in registry.names() if (record := registry.read(name))]
    for directory in store.entries("labs"):
        busy = {record.checkpoint for record in records if record.image_path == directory}
        image = LabImage(directory)
        parents = checkpoint.parents(image)
        made = [_item(path) for path in checkpoint.listing(image) if path.name not in busy and path not in parents]
        found += made
        if not busy:
            size = store.size(directory) - sum(item.size for item in made)
            used = max(store.last_used(path) for path in (directory, *checkpoint.listing(image)))
            recreatable = not (directory / IMPORTED).exists() and all(map(_recreatable, checkpoint.listing(image)))
            found.append(Item("labs", directory, size, used, "", recreatable))
    return found


def _item(path: Path) -> Item:
    return Item("checkpoints", path, store.size(path), store.last_used(path), f"of {path.parent.parent.name}", _recreatable(path))


def _recreatable(path: Path) -> bool:
    """Whether a lab or the suites create the checkpoint again when they need it. A user's own is not."""
    name = path.name.rpartition("@")[0]
    kind = CheckpointKind.of(name)
    return kind is CheckpointKind.READY or kind.may_be_hot


def sweep() -> list[Item]:
    """Remove the work directories that killed processes left."""
    removed = [Item(kind, path, size, 0) for kind in ("control", "firmware", "labs") for path, size in store.sweep(kind)]
    for directory in store.entries("labs"):
        for path in (directory / "checkpoints").glob(".*"):
            if path.is_dir() and store.last_used(path) < time.time() - _DAY:
                removed.append(replace(_item(path), used=0))
                store.delete_tree(path)
    return removed


def prune(days: float) -> tuple[Item, ...]:
    """Remove entries that were last used more than ``days`` ago and that no running lab uses, and leftovers of killed processes."""
    return (*sweep(), *(eviction.item for eviction in store.evict(items(), max_age=days * _DAY)))


def bound(most: int = _MOST) -> tuple[Item, ...]:
    """Remove the longest unused checkpoints that suites made, in all labs, until they take ``most`` bytes.

    They also must not take more than half of the space that would be free without them. Suites create them again when needed.
    """
    images = [LabImage(path) for path in store.entries("labs")]
    made = {path for image in images for path in checkpoint.listing(image) if CheckpointKind.of(path.name).of_suites}
    parents = {path for image in images for path in checkpoint.parents(image)}
    found = {path: _item(path) for path in made}
    taken = sum(item.size for item in found.values())
    most = min(most, (taken + shutil.disk_usage(store.directory("labs")).free) // 2)
    parents_size = sum(item.size for path, item in found.items() if path in parents)
    removable = [item for path, item in found.items() if path not in parents]
    return tuple(eviction.item for eviction in store.evict(removable, keep_bytes=max(0, most - parents_size)))
