# SPDX-License-Identifier: BSD-2-Clause
"""Resolves a recipe: a file of images/freebsd/recipes, the options of a command, or both; each value with its origin."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness import paths
from harness.errors import UsageError
from harness.images import layout

# A root on ZFS needs both: nothing loads a module for a PVH guest, and zpool(8) is in the zfs world.
ZFS_KERNCONF, ZFS_WORLD = "XENZFS", "zfs"
_DEFAULTS: dict[str, Any] = {"kernconf": "XENA", "world": "small", "layout": "ufs1"}


@dataclass(frozen=True)
class ImageRecipe:
    """``size`` of the root in MiB and ``bsize`` in bytes, 0 for the layout's default. Exactly one source is set."""

    name: str
    src: str = ""
    dist: str = ""
    destdir: str = ""
    disk: str = ""
    kernel: str = ""
    base: str = ""
    kernconf: str = ""
    world: str = ""
    layout: str = ""
    size: int = 0
    bsize: int = 0
    jobs: int = 0
    root: str = ""
    origins: tuple[tuple[str, str], ...] = ()
    """The origin of each value."""


def available(directory: Path | None = None) -> dict[str, dict[str, Any]]:
    """The recipes by name. Raises UsageError if two files have the same name."""
    found: dict[str, dict[str, Any]] = {}
    where: dict[str, Path] = {}
    for path in sorted((directory or paths.project() / "images/freebsd/recipes").glob("*.toml")):
        try:
            data = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as exc:
            raise UsageError(f"{path}: {exc}") from exc
        name = str(data.pop("name", path.stem))
        if name in found:
            raise UsageError(f"two recipes with the name {name!r}: {where[name].name} and {path.name}", hint="rename one of them")
        found[name], where[name] = data, path
    return found


def resolve(name: str, options: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> ImageRecipe:
    """The recipe ``name`` (or only ``options``), changed by ``options``. Raises UsageError for incompatible values."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    known = {field.name for field in fields(ImageRecipe)} - {"name", "origins"}
    layers = (("default", _DEFAULTS), (f"recipe {name}", recipes.get(name, {})), ("command line", options))
    for origin, layer in layers:
        for key, value in layer.items():
            if key == "about" or value in ("", 0, None):
                continue
            if key not in known:
                raise UsageError(f"{origin}: unknown key {key!r}", hint=f"one of {', '.join(sorted(known))}")
            values[key] = value
            origins[key] = origin if origin != "command line" else f"--{key}"
    if layout.on_zfs(str(values["layout"])):
        for key, value in (("kernconf", ZFS_KERNCONF), ("world", ZFS_WORLD)):
            if origins.get(key) == "default":
                values[key], origins[key] = value, f"layout {values['layout']}"
    recipe = ImageRecipe(name=name, origins=tuple(sorted(origins.items())), **values)
    _check(recipe)
    return recipe


def _check(recipe: ImageRecipe) -> None:
    given = [f"--{name}" for name in ("src", "dist", "destdir", "disk", "base") if getattr(recipe, name)]
    if not given:
        raise UsageError(
            "nothing to build from",
            hint="give --src TREE, --dist URL|DIR, --destdir DIR, --disk FILE, or --kernel FILE --base IMAGE",
        )
    if recipe.src and recipe.base and len(given) == 2:
        return
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are two sources", hint="give one of them")
    if recipe.base and not recipe.kernel:
        raise UsageError("--base without a kernel", hint="--kernel FILE --base IMAGE, or --src TREE --base IMAGE")
    if recipe.destdir and not recipe.kernel:
        raise UsageError("--destdir needs a kernel", hint="add --kernel FILE")
