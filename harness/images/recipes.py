# SPDX-License-Identifier: BSD-2-Clause
"""A recipe carried out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.images import assemble, destdir, diskimport, dist, image, kernelfile, layout
from harness.images.assemble import Parts
from harness.images.image import Image
from harness.images.inputs import Input
from harness.images.recipe import ZFS_KERNCONF, Recipe
from harness.images.sources import FromSource


def make(recipe: Recipe) -> Image:
    """The image of ``recipe``, from the store or built now. Raises UsageError, BuildError, InfrastructureError."""
    origins = dict(recipe.origins)
    if recipe.disk:
        return diskimport.take(recipe)
    if recipe.base:
        base = image.find(recipe.base)
        shape = (
            _layout(recipe)
            if origins.get("layout", "default") != "default"
            else _layout(replace(recipe, layout=str(base.data["layout"])))
        )
        if shape.zfs and origins.get("kernconf") == "default":
            recipe = replace(recipe, kernconf=ZFS_KERNCONF)
        if origins.get("world") == "default":
            # The base's own options: its object directory has the toolchain.
            recipe = replace(recipe, world=assemble.preset_of(base) or recipe.world)
        kernel = Path(recipe.kernel) if recipe.kernel else _kernel(recipe)
        return assemble.swap_kernel(base, kernel, recipe.name, shape)
    chosen = _layout(recipe)
    unused = () if recipe.src else ("kernconf", "world")
    words = [Input(f"option {key}", str(getattr(recipe, key)), origin) for key, origin in recipe.origins if key not in unused]
    if recipe.src:
        source = _source(recipe)
        source.preflight(recipe.kernconf, world=True)
        kernel_entry = source.kernel(recipe.kernconf)
        world = source.world()
        looked = kernelfile.look(kernel_entry.directory / "kernel")
        inputs = (*words, *source.kernel_inputs(recipe.kernconf))
    elif recipe.dist:
        world, path, found = dist.world(recipe.dist)
        looked = kernelfile.look(Path(recipe.kernel).expanduser().absolute() if recipe.kernel else path)
        inputs = (*words, *found)
    else:
        world = destdir.world(Path(recipe.destdir))
        looked = kernelfile.look(Path(recipe.kernel).expanduser().absolute())
        inputs = (*words, *(Input(**item) for item in world.manifest["inputs"]))
    if not recipe.size:
        chosen = assemble.fit(chosen, world)
    return assemble.assemble(Parts(world, looked, chosen, tuple(inputs)), recipe.name)


def _layout(recipe: Recipe) -> layout.Layout:
    return layout.load(recipe.layout, size=recipe.size, bsize=recipe.bsize)


def _source(recipe: Recipe) -> FromSource:
    return FromSource(Path(recipe.src), recipe.world, recipe.jobs)


def _kernel(recipe: Recipe) -> Path:
    """The kernel of a source tree alone, for a world that is in the store."""
    source = _source(recipe)
    source.preflight(recipe.kernconf, world=False)
    return source.kernel(recipe.kernconf).directory / "kernel"
