# SPDX-License-Identifier: BSD-2-Clause
"""Copies a user's disk image into the store as a raw disk with unchanged content."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from harness import stamp
from harness.errors import UsageError
from harness.images import diskformat, diskimage, diskread, entries, image, kernelfile, loader_conf_slot, parttable, volume, window
from harness.images.diskformat import RawDisk
from harness.images.image import Image
from harness.images.inputs import Input, key_of
from harness.images.recipe import ImageRecipe

_DISK = {"file": "xvda.img", "vdev": "xvda", "format": "raw", "slot": -1}
# Raise when the same disk gives another image.
_IMPORTER = 3


def import_disk(recipe: ImageRecipe) -> Image:
    """The disk of ``recipe`` as an image, with the kernel of ``recipe`` or else the disk's own.

    Raises UsageError for a file that is not a disk image, or a disk that cannot boot.
    """
    built = {key: origin for key, origin in recipe.origins if key in ("layout", "size", "bsize") and origin != "default"}
    if any(origin.startswith("--") for origin in built.values()):
        raise UsageError("--layout, --size and --bsize are for images that are built; a disk has its own", hint="omit them")
    if built:
        raise UsageError(
            f"{recipe.name} is a recipe with a {' and a '.join(sorted(built))}; a disk has its own",
            hint="give another name to the new image: fxh image build NAME --disk FILE",
        )
    with diskformat.opened(Path(recipe.disk)) as disk:
        made = _import(recipe, disk)
    disk.drop()  # the image has a copy
    return made


def _import(recipe: ImageRecipe, disk: RawDisk) -> Image:
    inputs = [Input("disk", disk.key, str(disk.given)), Input("importer", str(_IMPORTER), "harness/images/diskimport.py")]
    kernel = kernelfile.read(Path(recipe.kernel).expanduser().absolute()) if recipe.kernel else None
    if kernel:
        inputs.append(Input("kernel", kernel.sha256, str(kernel.path)))
    if recipe.root:
        inputs.append(Input("root", recipe.root, "--root"))

    def with_own_kernel(work: Path) -> dict[str, Any]:
        started = time.monotonic()
        with diskread.open_root(disk, recipe.root) as at:
            found = diskimage.kernel_of(disk, at, work / "kernel")
            types, why = diskimage.types_of(disk, at, found)
            made = diskimage.manifest(disk, at, found, types, why, 0)
        _copy(disk.path, work / "xvda.img")
        rows = {"inputs": [vars(item) for item in inputs], "seconds": round(time.monotonic() - started, 2)}
        return made | {"layout": "imported", "disks": [_DISK]} | rows

    def fill(work: Path) -> dict[str, Any]:
        if kernel is None:
            return with_own_kernel(work)
        started = time.monotonic()
        root = diskread.root_device(disk, recipe.root)
        firmwares = diskread.firmwares(disk)
        types = [*kernel.types, *(["hvm"] if firmwares else [])]
        if root.startswith("zfs:") and not kernel.zfs:
            types = [name for name in types if name == "hvm"]
        if not types:
            raise UsageError(
                kernelfile.why_not(kernel, False)
                or f"{kernel.path}: FreeBSD {kernel.version} without ZFS, and the root of {disk.given.name} is {root}: only a loader can "
                "load the module, and the disk has neither boot code nor an EFI system partition",
                hint="use a kernel with `options XENHVM` (and ZFS for a root on it), or a disk with boot code or an EFI system partition",
            )
        _copy(disk.path, work / "xvda.img")
        shutil.copyfile(kernel.path, work / "kernel")
        return {
            "version": kernel.version, "branch": kernel.branch, "osreldate": kernel.osreldate, "machine": kernel.machine, "layout": "imported", "about": f"the disk {disk.given.name}",
            **diskread.root_of(root), "types": types, "firmwares": list(firmwares), "pygrub": False, "kernel": {"sha256": kernel.sha256, "path": ""}, "world": "",
            "disks": [_DISK], "inputs": [vars(item) for item in inputs], "built": stamp.now(),
            "seconds": round(time.monotonic() - started, 2),
        }  # fmt: skip

    entry = entries.get_or_create("images", key_of(*inputs), fill)
    image.tag(recipe.name, entry)
    return Image(recipe.name, entry)


def _copy(source: Path, target: Path) -> None:
    with target.open("wb") as out:
        out.truncate(source.stat().st_size)
        loader_conf_slot.copy_data(source, out.fileno(), 0)


def guess_root(disk: Path) -> tuple[str, bool]:
    """The root device of a raw disk as xvda, and whether it has boot code for a BIOS, from its tables only.

    The device is "" if the disk has no UFS and no partition for one. Reads no files; diskread does that.
    """
    with window.opened(disk) as whole:
        volumes = [volume.inspect(whole, part) for part in parttable.partitions(whole, diskread.DISK)]
        boots = parttable.boot_code(whole)
    names = [item.part.name for item in volumes if item.fs is not None]
    names += [item.part.name for item in volumes if item.part.type == "freebsd-ufs"]
    # A slice whose label was not found, or is still to be written.
    names += [f"{item.part.name}a" for item in volumes if item.part.type == "freebsd"]
    return (names[0] if names else ""), boots
