# SPDX-License-Identifier: BSD-2-Clause
"""Gets worlds and kernels of a source tree from the store, or builds them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness import store
from harness.digest import file_sha256
from harness.errors import BuildError
from harness.images import debugfile, entries, hosttools, kernconf, preflight, src_conf, srctree, treescan
from harness.images.buildworld import KERNEL_RECIPE, RECIPE, BuildDirectory
from harness.images.entries import StoreEntry
from harness.images.inputs import Input, combine, key_of, text_hash
from harness.xen.elfnotes import build_id


class FromSource:
    """One source tree with one world preset. The constructor reads the tree's state; only the methods build."""

    def __init__(self, src: Path, preset: str, jobs: int = 0) -> None:
        """Raises UsageError if ``src`` is not a tree, BuildError if this machine cannot build it."""
        self.tree = srctree.find(src)
        self.preset = src_conf.preset(self.tree, preset)
        self.compiler = hosttools.compiler(self.tree.major, self.tree.llvm)
        scanned = treescan.scan(self.tree.path)
        self.build_directory = BuildDirectory(
            self.tree, self.compiler, self.preset.src_conf, preset, jobs or os.cpu_count() or 1, scanned
        )
        self.state = treescan.identity(scanned, store.directory("objects") / f"index-{combine(str(self.tree.path))}")

    def _common(self) -> list[Input]:
        """What kernels and worlds are built from."""
        tree, path = self.tree, self.tree.path
        return [
            Input("source/sys", self.state["sys"], f"{path}, FreeBSD {tree.version}-{tree.branch}"),
            Input("source/rest", self.state["rest"], str(path)),
            Input("src.conf", text_hash(self.preset.src_conf), f"preset {self.preset.name} (images/freebsd/small.toml)"),
            Input("compiler", self.compiler.version, str(self.compiler.bindir or "the system's own")),
            Input("builder", str(RECIPE), "harness/images/buildworld.py"),
        ]

    def preflight(self, kernel: str, world: bool) -> None:
        """Check that the tree has every source of the kernel configuration ``kernel``, and with ``world`` of the world.

        Skips parts that the store has. Raises BuildError that names all missing sources.
        """
        missing: dict[str, set[str]] = {}
        if entries.find("kernels", key_of(*self.kernel_inputs(kernel))) is None:
            # With a toolchain, the kernel's compiler is next and takes seconds, less than the look at all headers.
            headers = not self.build_directory.has_toolchain(self.state["rest"])
            conf = kernconf.load(self.tree, kernel)
            missing[f"kernel {kernel}"] = preflight.missing_of_kernel(self.tree, conf, headers=headers)
        if world and entries.find("worlds", key_of(*self.world_inputs())) is None:
            hosttools.check_world(self.compiler, self.tree.version, self.tree.llvm)
            with self.build_directory.open() as build:
                missing["world"] = build.missing_sources(combine([self.state["rest"], self.state["sys"]]))
        preflight.refuse(self.tree, missing)

    def kernel_inputs(self, name: str) -> list[Input]:
        conf = kernconf.load(self.tree, name)
        return [
            *self._common(),
            Input("source/kernel", self.state["kernel"], str(self.tree.path)),
            Input("kernel builder", str(KERNEL_RECIPE), "harness/images/buildworld.py"),
            Input(f"kernel configuration {name}", conf.hash, conf.origin),
        ]

    def kernel(self, name: str) -> StoreEntry:
        """The kernel of configuration ``name`` as ``kernels/<key>/kernel``."""
        inputs = self.kernel_inputs(name)

        def fill(work: Path) -> dict[str, object]:
            with self.build_directory.open() as build:
                build.toolchain(self.state["rest"])
                conf = kernconf.load(self.tree, name)
                try:
                    built = build.kernel(conf)
                except BuildError as exc:
                    # The compiler names one missing header; this adds the others.
                    if "file not found" in exc.message and (missing := preflight.missing_of_kernel(self.tree, conf)):
                        exc.message += preflight.listed(f"kernel {name}", missing)
                    raise
                shutil.copyfile(built, work / "kernel")
                debug = built.with_name(debugfile.NAME)
                if debug.is_file():  # a configuration of the user's may have no DEBUG
                    debugfile.compress(debug, work / debugfile.NAME)
            return {
                "what": f"kernel {name} of {self.tree.path}", "version": self.tree.version, "branch": self.tree.branch,
                "osreldate": self.tree.osreldate, "conf": name, "sha256": file_sha256(work / "kernel"), "build_id": build_id(work / "kernel"),
                "inputs": [vars(item) for item in inputs],
            }  # fmt: skip

        return entries.get_or_create("kernels", key_of(*inputs), fill)

    def world_inputs(self) -> list[Input]:
        """Without the sources that only kernels compile: an edited driver must not build the world again."""
        exceptions = self.build_directory.kernel_sources_of_world()
        read = {name: file_sha256(self.tree.path / name) for name in exceptions if (self.tree.path / name).is_file()}
        return [*self._common(), *([Input("source/kernel of the world", combine(read), str(self.tree.path))] if exceptions else [])]

    def world(self) -> StoreEntry:
        """The world as ``worlds/<key>/tree`` with its ``METALOG``, and the makefs that was built with it."""
        inputs = self.world_inputs()

        def fill(work: Path) -> dict[str, object]:
            (work / "tree").mkdir()
            with self.build_directory.open() as build:
                build.toolchain(self.state["rest"])
                build.world(work / "tree")
                shutil.copyfile(build.makefs, work / "makefs")
                (work / "makefs").chmod(0o755)
            (work / "tree/METALOG").rename(work / "METALOG")
            return {
                "what": f"{self.preset.name} world of {self.tree.path}", "version": self.tree.version,
                "osreldate": self.tree.osreldate, "preset": self.preset.name,
                "leave_out": list(self.preset.leave_out), "inputs": [vars(item) for item in inputs],
            }  # fmt: skip

        return entries.get_or_create("worlds", key_of(*inputs), fill)
