# SPDX-License-Identifier: BSD-2-Clause
"""Worlds and kernels in the store, from a source tree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.digest import file_sha256
from harness.images import debugfile, hosttools, kernconf, preflight, src_conf, srctree, store, treescan
from harness.images.buildworld import RECIPE, Workshop
from harness.images.inputs import Input, combine, key_of, text_hash
from harness.images.kernelfile import build_id
from harness.images.store import Entry


class FromSource:
    """What one source tree gives. Looking at it reads the tree's state; nothing is built before it is asked for."""

    def __init__(self, src: Path, preset: str, jobs: int = 0) -> None:
        """Raises UsageError for what is no tree, BuildError for a machine that cannot build one."""
        self.tree = srctree.find(src)
        self.preset = src_conf.preset(self.tree, preset)
        self.compiler = hosttools.compiler(self.tree.major, self.tree.llvm)
        scanned = treescan.scan(self.tree.path)
        self.workshop = Workshop(self.tree, self.compiler, self.preset.src_conf, preset, jobs or os.cpu_count() or 1, scanned)
        self.state = treescan.identity(scanned, store.directory("objects") / f"index-{combine(str(self.tree.path))}")

    def _common(self) -> list[Input]:
        tree, path = self.tree, self.tree.path
        return [
            Input("source/sys", self.state["sys"], f"{path}, FreeBSD {tree.version}-{tree.branch}"),
            Input("source/rest", self.state["rest"], str(path)),
            Input("src.conf", text_hash(self.preset.src_conf), f"preset {self.preset.name} (images/freebsd/small.toml)"),
            Input("compiler", self.compiler.version, str(self.compiler.bindir or "the system's own")),
            Input("builder", str(RECIPE), "harness/images/buildworld.py"),
        ]

    def preflight(self, kernel: str, world: bool) -> None:
        """Check that the tree has every source of the kernel configuration ``kernel`` and, where asked, of the world.

        What is in the store already is not checked. Raises BuildError that names all missing sources.
        """
        if store.find("kernels", key_of(*self.kernel_inputs(kernel))) is None:
            preflight.check_kernel(self.tree, kernconf.load(self.tree, kernel))
        if world and store.find("worlds", key_of(*self.world_inputs())) is None:
            hosttools.check_world(self.compiler, self.tree.version, self.tree.llvm)
            with self.workshop.open() as shop:
                shop.preflight(self.state["rest"])

    def kernel_inputs(self, name: str) -> list[Input]:
        conf = kernconf.load(self.tree, name)
        return [*self._common(), Input(f"kernel configuration {name}", conf.hash, conf.origin)]

    def kernel(self, name: str) -> Entry:
        """The kernel of configuration ``name`` as ``kernels/<key>/kernel``."""
        inputs = self.kernel_inputs(name)

        def make(work: Path) -> dict[str, object]:
            with self.workshop.open() as shop:
                shop.toolchain(self.state["rest"])
                built = shop.kernel(kernconf.load(self.tree, name))
                shutil.copyfile(built, work / "kernel")
                debug = built.with_name(debugfile.NAME)
                if debug.is_file():  # a configuration of the user's may have no DEBUG
                    debugfile.compress(debug, work / debugfile.NAME, self.compiler.bindir)
            return {
                "what": f"kernel {name} of {self.tree.path}", "version": self.tree.version, "branch": self.tree.branch,
                "osreldate": self.tree.osreldate, "conf": name, "sha256": file_sha256(work / "kernel"), "build_id": build_id(work / "kernel"),
                "inputs": [vars(item) for item in inputs],
            }  # fmt: skip

        return store.obtain("kernels", key_of(*inputs), make)

    def world_inputs(self) -> list[Input]:
        return self._common()

    def world(self) -> Entry:
        """The world as ``worlds/<key>/tree`` with its ``METALOG``, and the makefs that was built with it."""
        inputs = self.world_inputs()

        def make(work: Path) -> dict[str, object]:
            (work / "tree").mkdir()
            with self.workshop.open() as shop:
                shop.toolchain(self.state["rest"])
                shop.world(work / "tree")
                shutil.copyfile(shop.makefs, work / "makefs")
                (work / "makefs").chmod(0o755)
            (work / "tree/METALOG").rename(work / "METALOG")
            return {
                "what": f"{self.preset.name} world of {self.tree.path}", "version": self.tree.version,
                "osreldate": self.tree.osreldate, "preset": self.preset.name,
                "leave_out": list(self.preset.leave_out), "inputs": [vars(item) for item in inputs],
            }  # fmt: skip

        return store.obtain("worlds", key_of(*inputs), make)
