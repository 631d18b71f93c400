# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures: a UFS that is built here, and the real pygrub in dom0."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guests import bootable
from harness.hosts.host import XenHost
from harness.plugin.case_context import CaseContext
from harness.xen import pygrub
from harness.xen.pygrub import Extract

from .support import MakeUfs, RunPygrub


@pytest.fixture
def make_ufs(tmp_path: Path) -> MakeUfs:
    """``make_ufs(files, version=1, bsize=8192)`` returns a UFS with these files as bytes. Blocks of zeros become holes."""

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
def run_pygrub(host: XenHost, case: CaseContext) -> RunPygrub:
    """``run_pygrub(image, *options)`` runs the real pygrub in dom0 on an image and keeps its output with the case."""

    def run(image: bytes, *options: str, style: str = "simple0") -> Extract:
        directory = f"{host.directory}/pygrub"
        case.undo.append(lambda: host.transport.run(["rm", "-rf", directory]))
        done = pygrub.run(host.transport, directory, image, *options, style=style)
        (case.directory / "pygrub.txt").write_text(f"status {done.status}\n{done.stdout!r}\n{done.error}")
        case.metrics["pygrub"] = round(done.seconds, 3)
        return done

    return run
