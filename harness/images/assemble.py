# SPDX-License-Identifier: BSD-2-Clause
"""Builds an image from a world, a kernel and a layout."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import paths, stamp
from harness.digest import file_sha256
from harness.errors import BuildError, UsageError
from harness.images import disks, entries, image, kernelfile, makefs, metalog, overlay_files, src_conf
from harness.images.entries import StoreEntry
from harness.images.image import Image
from harness.images.inputs import Input, key_of
from harness.images.kernelfile import KernelFile
from harness.images.layout import FileSystem, Layout
from harness.images.makefs import Makefs

log = logging.getLogger("fxh.images")

# Raise when the same inputs give another image.
_BUILDER = 4
_OF_WORLD = "world's "
_ZFS_MODULE = "./boot/kernel/zfs.ko"


@dataclass(frozen=True)
class Parts:
    """The parts of an image."""

    world: StoreEntry
    kernel: KernelFile
    layout: Layout
    inputs: tuple[Input, ...]
    """The inputs of kernel and world."""


def tree_of(world: StoreEntry) -> metalog.Tree:
    """The files of a world that go into an image."""
    tree = metalog.parse((world.directory / "METALOG").read_text(), world.directory / "tree")
    return metalog.without(tree, tuple(world.manifest["leave_out"]))


def idle_scripts(world: StoreEntry, tree: metalog.Tree) -> overlay_files.OverlayFiles:
    """The scripts of rc(8) that an image of this world does not run, reduced to the headers that give the order."""
    names = src_conf.idle_rc_scripts() if world.manifest.get("preset") in src_conf.SMALL else ()
    nodes = [tree[path] for path in (f"./etc/rc.d/{name}" for name in names) if path in tree]
    return overlay_files.OverlayFiles(
        tuple((node.path, overlay_files.order_only(node.contents.read_text(errors="replace"))) for node in nodes if node.contents)
    )


def fit(layout: Layout, world: StoreEntry) -> Layout:
    """The layout with each file system at least twice as large as its files of ``world``; none gets smaller."""
    mounts = tuple(fs.mount for _, _, fs in layout.parts if fs.mount != "none")
    tree = tree_of(world)

    def grown(fs: FileSystem) -> FileSystem:
        if fs.type not in ("ufs1", "ufs2", "zfs"):
            return fs
        part = metalog.subtree(tree, fs.mount, mounts)
        needed = (makefs.zfs_bytes(part) if fs.type == "zfs" else metalog.size(part)) >> 20
        return replace(fs, size=max(fs.size, needed * 2 // 64 * 64))

    return replace(layout, vdevs=tuple(replace(disk, fs=tuple(map(grown, disk.fs))) for disk in layout.vdevs))


def assemble(parts: Parts, name: str) -> Image:
    """The image of ``parts``, from the store or built now (about a second), with the tag ``name``.

    Raises UsageError for incompatible parts, BuildError when a tool is missing or fails.
    """
    kernel, layout = parts.kernel, parts.layout
    if not kernel.types and not layout.firmwares:
        raise UsageError(kernelfile.why_not(kernel, False), hint="--layout gpt, or a kernel with `options XENHVM`")
    module = layout.zfs and not kernel.zfs
    tool = makefs.find(parts.world.directory / "makefs")
    for _, _, fs in layout.parts:
        makefs.check(tool, fs)
    top = parts.world.directory / "tree"
    tree = tree_of(parts.world)
    if module and _ZFS_MODULE not in tree:
        raise UsageError(
            f"{kernel.path}: neither the kernel nor the world has ZFS (zfs.ko), and layout {layout.name} has its root on ZFS",
            hint="build with --kernconf XENZFS, or give a --kernel with `options ZFS`, or use a layout with UFS",
        )
    disks.check(layout, disks.BootCode(top / "boot"))
    overlay = overlay_files.for_layout(layout, _read(top / "etc/ttys"), zfs_load=module)
    idle = idle_scripts(parts.world, tree)
    inputs = [
        Input("world", parts.world.key, str(parts.world.manifest["what"])),
        Input("kernel", kernel.sha256, str(kernel.path)),
        Input("layout", layout.key, f"{layout.name} (images/freebsd/layouts.toml)"),
        *([Input("idle rc scripts", idle.hash, "images/freebsd/small.toml")] if idle.files else []),
        Input("edits", overlay.hash, ", ".join(path[1:] for path, _ in overlay.files)),
        *([Input("makefs", tool.hash, tool.origin)] if tool else []),
        Input("image builder", str(_BUILDER), "harness/images/assemble.py"),
    ]

    def fill(work: Path) -> dict[str, Any]:
        return _write(parts, tree, overlay + idle, tool, inputs, work)

    entry = entries.get_or_create("images", key_of(*inputs), fill)
    image.tag(name, entry)
    return Image(name, entry)


def _write(
    parts: Parts, tree: metalog.Tree, overlay: overlay_files.OverlayFiles, tool: Makefs | None, inputs: list[Input], work: Path
) -> dict[str, Any]:
    started = time.monotonic()
    layout, top = parts.layout, parts.world.directory / "tree"
    _room(layout, work)
    shutil.copyfile(parts.kernel.path, work / "kernel")
    if file_sha256(work / "kernel") != parts.kernel.sha256:
        raise BuildError(f"{parts.kernel.path} changed while it was read", hint="build again")
    with tempfile.TemporaryDirectory(prefix=".edits-", dir=work) as scratch:
        overlay.apply(tree, Path(scratch))
        metalog.add_file(tree, "./boot/kernel/kernel", work / "kernel", "0555")
        variables = overlay_files.kernel_variables((paths.project() / "images/freebsd/loader.conf").read_text())
        disks.write(layout, tree, tool, top / "etc", disks.BootCode(top / "boot"), key_of(*inputs), work, variables)
    # Xen loads no modules for a PVH guest, so a ZFS root needs ZFS in the kernel.
    direct = () if layout.zfs and not parts.kernel.zfs else parts.kernel.types
    rows = [
        {
            "file": disk.file, "vdev": disk.name, "format": "raw",
            "slot": disks.slot_of(layout, disk, work / disk.file),
        }
        for disk in layout.vdevs
    ]  # fmt: skip
    return {
        "version": parts.kernel.version, "branch": parts.kernel.branch, "osreldate": parts.kernel.osreldate,
        "world_version": str(parts.world.manifest.get("version", "")),
        "machine": parts.kernel.machine, "layout": layout.name, "about": layout.about,
        "root": layout.root, "root_device": layout.root_device, "root_label": layout.root_label, "mountfrom": layout.mountfrom,
        "types": [*direct, *(["hvm"] if layout.firmwares else [])], "firmwares": list(layout.firmwares), "pygrub": layout.pygrub,
        "menu_variables": overlay_files.menu_variables(layout), "kernel": {"sha256": parts.kernel.sha256, "path": "/boot/kernel/kernel"},
        "disks": rows, "world": parts.world.key, "inputs": [vars(item) for item in (*inputs, *parts.inputs)],
        "built": stamp.now(), "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip


def _room(layout: Layout, where: Path) -> None:
    free = shutil.disk_usage(where).free
    if layout.bytes > free:
        raise BuildError(
            f"the image needs {layout.bytes >> 20} MiB, but the store has only {free >> 20} MiB free",
            hint="give a smaller --size, run `fxh store gc`, or point FXH_STORE at a larger disk",
        )


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def preset_of(base: Image) -> str:
    """The world preset of ``base`` (src_conf.PRESETS); "" if its world was not built from source."""
    world = entries.find("worlds", str(base.data.get("world")))
    preset = str(world.manifest.get("preset")) if world else ""
    return preset if preset in src_conf.PRESETS else ""


def swap_kernel(base: Image, kernel: Path, name: str, layout: Layout) -> Image:
    """``base`` with another kernel of any release and an unchanged world. Raises UsageError if ``base`` is an imported disk."""
    key = base.data.get("world")
    if not key:
        raise UsageError(
            f"{base.name} was imported as a disk: its kernel cannot be replaced without changing the disk",
            hint="boot it as PVH with --kernel KERNEL --disk DISK",
        )
    world = entries.find("worlds", str(key))
    if world is None:
        raise UsageError(f"the world of {base.name} is not in the store", hint="build the image again, then swap its kernel")
    world.mark_used()
    kernel_file = kernelfile.read(kernel.expanduser().absolute())
    # The inputs of the base describe the world of the new image, not its kernel.
    of_world = [replace(item, what=item.what.removeprefix(_OF_WORLD)) for item in base.inputs]
    inputs = tuple(
        replace(item, what=_OF_WORLD + item.what)
        for item in of_world
        if item.what.startswith(("source", "src.conf", "compiler", "set base"))
    )
    return assemble(Parts(world, kernel_file, layout, inputs), name)
