"""A disk image that somebody has: taken into the store as raw, with its root device found out; its content stays as it is."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from harness import stamp
from harness.digest import file_sha256
from harness.errors import BuildError, UsageError
from harness.images import image, kernelfile, slot, store, tables
from harness.images.image import Image
from harness.images.inputs import Input, key_of
from harness.images.recipe import Recipe

_UFS_MAGICS = {8192 + 1372: (b"\x54\x19\x01\x00", "ufs1"), 65536 + 1372: (b"\x19\x01\x54\x19", "ufs2")}


def take(recipe: Recipe) -> Image:
    """The disk of ``recipe`` as an image. Raises UsageError for what is no disk, or can be booted in no way."""
    path = Path(recipe.disk).expanduser().absolute()
    inputs = [Input("disk", file_sha256(path), str(path))]
    kernel = kernelfile.look(Path(recipe.kernel).expanduser().absolute()) if recipe.kernel else None
    if kernel:
        inputs.append(Input("kernel", kernel.sha256, str(kernel.path)))
    if recipe.root:
        inputs.append(Input("root", recipe.root, "--root"))
    if recipe.size or recipe.bsize or dict(recipe.origins).get("layout") not in (None, "default"):
        raise UsageError("--layout, --size and --bsize are for images that are built; a disk has its own")

    def make(work: Path) -> dict[str, Any]:
        begun = time.monotonic()
        target = work / "xvda.img"
        _raw(path, target)
        root, boots = look(target)
        types = [*(kernel.types if kernel else ()), *(["hvm"] if boots else [])]
        if not types:
            raise UsageError(
                f"{path}: no boot code on it, and no kernel given: nothing can start it",
                mend="add --kernel FILE (the one of its /boot)",
            )
        if kernel:
            shutil.copyfile(kernel.path, work / "kernel")
        return {
            "version": kernel.version if kernel else "unknown", "branch": kernel.branch if kernel else "",
            "osreldate": kernel.osreldate if kernel else 0, "machine": kernel.machine if kernel else "amd64", "layout": "imported",
            "about": f"the disk {path.name}", "root": recipe.root or root, "types": types, "pygrub": False,
            "kernel": {"sha256": kernel.sha256 if kernel else "", "path": ""}, "world": "",
            "disks": [{"file": "xvda.img", "vdev": "xvda", "format": "raw", "slot": -1}],
            "inputs": [vars(item) for item in inputs], "built": stamp.now(),
            "seconds": round(time.monotonic() - begun, 2),
        }  # fmt: skip

    entry = store.obtain("images", key_of(*inputs), make)
    image.name_it(recipe.name, entry)
    return Image(recipe.name, entry)


def _raw(path: Path, target: Path) -> None:
    """A sparse raw copy of a raw, qcow2 or xz file."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic == b"\xfd7zXZ\0":
        inner = target.with_name("unpacked")
        try:
            with lzma.open(path) as packed, inner.open("wb") as out:
                _sparse(packed, out)
        except (lzma.LZMAError, EOFError) as exc:
            raise UsageError(f"{path}: a damaged xz file ({exc})", mend="fetch it again") from exc
        _raw(inner, target)
        inner.unlink()
        return
    if magic[:4] == b"QFI\xfb":
        argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{path}: {done.stderr.strip()}", mend="is it a complete qcow2 file?")
        return
    size = path.stat().st_size
    if size < 1 << 20 or size % 512:
        raise UsageError(f"{path}: {size} bytes are no disk image", mend="give a raw or qcow2 image, or one in .xz")
    with target.open("wb") as out:
        out.truncate(size)
        slot.paste(path, out.fileno(), 0)


def _sparse(source: Any, target: Any) -> None:
    size = 0
    while block := source.read(1 << 20):
        size += len(block)
        if block.count(0) == len(block):
            target.seek(len(block), 1)
        else:
            target.write(block)
    target.truncate(size)


def look(disk: Path) -> tuple[str, bool]:
    """The root device of a disk that is xvda, and whether a firmware can start it. "" where no UFS is found."""
    with disk.open("rb") as file:
        head = file.read(tables.SECTOR * tables.GPT_FIRST)

        def at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        boots = head[510:512] == b"\x55\xaa" and any(head[:440])
        if head[512:520] == b"EFI PART":
            ufs = uuid.UUID(tables.GPT_TYPES["freebsd-ufs"]).bytes_le
            for number in range(128):
                if head[1024 + number * 128 :][:16] == ufs:
                    return f"xbd0p{number + 1}", boots
            return "", boots
        if any(at(offset, 4) == magic for offset, (magic, _) in _UFS_MAGICS.items()):
            return "xbd0", False
        for number in range(4):
            entry = head[446 + number * 16 :][:16]
            if entry[4] == 0xA5:
                return f"xbd0s{number + 1}a", boots
    return "", boots
