# SPDX-License-Identifier: BSD-2-Clause
"""Builds the image of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.images import assemble, debugset, destdir, diskimport, dist, image, kernelfile, layout
from harness.images.assemble import Parts
from harness.images.image import Image
from harness.images.inputs import Input
from harness.images.recipe import ZFS_KERNCONF, ImageRecipe
from harness.images.sources import FromSource


def build(recipe: ImageRecipe) -> Image:
    """The image of ``recipe``, from the store or built now. Raises UsageError, BuildError, InfrastructureError."""
    origins = dict(recipe.origins)
    if recipe.disk:
        return diskimport.import_disk(recipe)
    if recipe.base:
        base = image.find(recipe.base)
        image_layout = (
            _layout(recipe)
            if origins.get("layout", "default") != "default"
            else _layout(replace(recipe, layout=str(base.data["layout"])))
        )
        if image_layout.zfs and origins.get("kernconf") == "default":
            recipe = replace(recipe, kernconf=ZFS_KERNCONF)
        if origins.get("world") == "default":
            # Use the options of the base: its object directory has the toolchain.
            recipe = replace(recipe, world=assemble.preset_of(base) or recipe.world)
        kernel = Path(recipe.kernel) if recipe.kernel else _kernel(recipe)
        return assemble.swap_kernel(base, kernel, recipe.name, image_layout)
    image_layout = _layout(recipe)
    unused = () if recipe.src else ("kernconf", "world")
    options = [Input(f"option {key}", str(getattr(recipe, key)), origin) for key, origin in recipe.origins if key not in unused]
    if recipe.src:
        source = _source(recipe)
        source.preflight(recipe.kernconf, world=True)
        kernel_entry = source.kernel(recipe.kernconf)
        world = source.world()
        kernel_file = kernelfile.read(kernel_entry.directory / "kernel")
        inputs = (*options, *source.kernel_inputs(recipe.kernconf))
    elif recipe.dist:
        world, path, set_inputs = dist.world(recipe.dist)
        if not recipe.kernel:
            debugset.keep(recipe.dist, path)
        kernel_file = kernelfile.read(Path(recipe.kernel).expanduser().absolute() if recipe.kernel else path)
        inputs = (*options, *set_inputs)
    else:
        world = destdir.world(Path(recipe.destdir))
        kernel_file = kernelfile.read(Path(recipe.kernel).expanduser().absolute())
        inputs = (*options, *(Input(**item) for item in world.manifest["inputs"]))
    if not recipe.size:
        image_layout = assemble.fit(image_layout, world)
    return assemble.assemble(Parts(world, kernel_file, image_layout, tuple(inputs)), recipe.name)


def _layout(recipe: ImageRecipe) -> layout.Layout:
    return layout.load(recipe.layout, size=recipe.size, bsize=recipe.bsize)


def _source(recipe: ImageRecipe) -> FromSource:
    return FromSource(Path(recipe.src), recipe.world, recipe.jobs)


def _kernel(recipe: ImageRecipe) -> Path:
    """Build only the kernel of a source tree, for a world in the store."""
    source = _source(recipe)
    source.preflight(recipe.kernconf, world=False)
    return source.kernel(recipe.kernconf).directory / "kernel"
