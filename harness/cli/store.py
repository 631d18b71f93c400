# SPDX-License-Identifier: BSD-2-Clause
"""fxh store: everything that the harness keeps on this machine, and its garbage collection."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.store import Item

_group = typer.Typer(no_args_is_help=True, help="Built and downloaded files: list, gc.")


def register(app: typer.Typer) -> None:
    app.add_typer(_group, name="store")


Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Only this kind, such as labs or images; may be repeated (default: all kinds).")
]
Size = Annotated[int, typer.Option("--size", min=0, help="Keep at most this many MiB (default: no limit).", show_default=False)]
Age = Annotated[
    float,
    typer.Option(
        "--age", min=0, help="Remove entries that were not used for this many days (default: no limit).", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the entries and remove nothing.")]


def _items(kinds: list[str] | None) -> list[Item]:
    """All removable items of these kinds (default: all). Raises UsageError for an unknown kind."""
    from harness import store
    from harness.guests import bootable
    from harness.images import entries, image
    from harness.lab import prune
    from harness.xen import symbolizer

    image_kinds = (*entries.KINDS, *entries.CACHES)
    known = (*prune.KINDS, *image_kinds, *bootable.KINDS, symbolizer.KIND)
    for kind in kinds or ():
        if kind not in known:
            raise UsageError(f"unknown kind {kind!r}", hint=f"one of {', '.join(known)}")
    found = [*prune.items(), *image.items(), *store.items(*bootable.KINDS, symbolizer.KIND)]
    return sorted((item for item in found if not kinds or item.kind in kinds), key=lambda item: item.used)


def _sweep() -> list[Item]:
    """Remove the work directories that killed processes left, of every kind."""
    from harness import store
    from harness.guests import bootable
    from harness.images import entries
    from harness.lab import prune
    from harness.xen import symbolizer

    kinds = (*entries.KINDS, *entries.CACHES, *bootable.KINDS, symbolizer.KIND, "criu")
    return [*prune.sweep(), *(store.Item(kind, path, size, 0) for kind in kinds for path, size in store.sweep(kind))]


@_group.command("list")
def list_(kind: Kinds = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List all entries of the store, the longest unused first."""
    found = _items(kind)
    if as_json:
        rows = [
            {
                "kind": item.kind, "path": str(item.path), "bytes": item.size, "used": int(item.used), "about": item.about,
                "recreatable": item.recreatable,
            }
            for item in found
        ]  # fmt: skip
        print(json.dumps(rows, indent=1))
        return
    for item in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.used))
        print(f"{item.kind:<12} {item.path.name:<40} {item.size >> 20:>6} MiB  {used}  {item.about}".rstrip())
    print(f"{sum(item.size for item in found) >> 20} MiB")


@_group.command()
def gc(size: Size = 0, age: Age = 0, kind: Kinds = None, dry_run: DryRun = False) -> None:
    """Remove entries that were not used for --age days, then the longest unused until --size MiB remain.

    Files of running labs stay. Checkpoints that a user made are removed by age only.
    """
    from harness import store

    if not size and not age:
        raise UsageError("gc needs a limit", hint="give --size MIB, --age DAYS, or both")
    left = [] if kind or dry_run else _sweep()
    for item in left:
        print(f"{item.kind} {item.path.name}: {item.size >> 20} MiB, left by a killed process")
    evicted = store.evict(
        _items(kind), keep_bytes=size << 20 if size else None, max_age=age * 86400 if age else None, dry_run=dry_run
    )
    for eviction in evicted:
        print(f"{eviction.item.kind} {eviction.item.path.name}: {eviction.item.size >> 20} MiB, {eviction.reason}")
    total = sum(item.size for item in (*left, *(eviction.item for eviction in evicted)))
    print(f"{total >> 20} MiB {'would be freed' if dry_run else 'freed'}")
