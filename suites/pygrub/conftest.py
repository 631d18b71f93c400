# SPDX-License-Identifier: BSD-2-Clause
"""Volumes for pygrub: built here, run against the real pygrub in dom0."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.guests import bootable
from harness.hosts.host import XenHost
from harness.plugin.case_context import CaseContext
from harness.xen import pygrub
from harness.xen.pygrub import Extract

MENU = "default=0\ntimeout=0\ntitle FreeBSD\nroot (hd0)\nkernel /boot/kernel/kernel vfs.root.mountfrom=ufs:/dev/xbd0\n"

Run = Callable[..., Extract]


@dataclass(frozen=True)
class Kernel:
    """What stands for a kernel: pygrub copies it and does not look at it."""

    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def kernel(size: int, seed: int = 1) -> Kernel:
    return Kernel(random.Random(seed).randbytes(size))


@pytest.fixture
def ufs(tmp_path: Path) -> Callable[..., bytes]:
    """``ufs(files, version=1, bsize=8192)``: a UFS with those files, as bytes; blocks of zeros are holes."""

    def make(files: dict[str, bytes], *, version: int = 1, bsize: int = 8192, links: dict[str, str] | None = None) -> bytes:
        tree, image = tmp_path / "tree", tmp_path / "fs.img"
        bootable.write_tree(tree, files)
        for name, target in (links or {}).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).symlink_to(target)
        total = sum(map(len, files.values()))
        bootable.make_ufs(tree, image, version=version, bsize=bsize, size=f"{(total >> 20) + 4}m")
        data = image.read_bytes()
        image.unlink()
        return data

    return make


@pytest.fixture
def run(host: XenHost, case: CaseContext) -> Run:
    """``run(image, *options)``: real pygrub by hand in dom0 on an image; what it said is kept with the case."""

    def go(image: bytes, *options: str, style: str = "simple0") -> Extract:
        directory = f"{host.directory}/pygrub"
        case.undo.append(lambda: host.transport.run(["rm", "-rf", directory]))
        done = pygrub.run(host.transport, directory, image, *options, style=style)
        (case.directory / "pygrub.txt").write_text(f"status {done.status}\n{done.stdout!r}\n{done.error}")
        case.metrics["pygrub"] = round(done.seconds, 3)
        return done

    return go
