# SPDX-License-Identifier: BSD-2-Clause
"""Build the control guest's kernel from Debian's Linux source, once for all labs of a store.

Debian's binary kernel supports any machine, and so its boot takes most of a control guest's boot time under emulation
(docs/lab.md). This kernel has only the options in images/control/kernel.config.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from harness import store
from harness.errors import BuildError
from harness.images import debugfile
from harness.lab import precompiled, progress, tools
from harness.lab.recipe import KernelRecipe

log = logging.getLogger("fxh.lab.kernel")

STEP = "the control guest's kernel"
"""Its build, in the setup times of a run."""

# Free space for a build: packed and unpacked source take 0.7 GiB, the objects 0.2.
_ROOM_MIB = 2048
# A kernel prints these values at boot. They keep names of this machine out of consoles.
_SIGNED = {"KBUILD_BUILD_USER": "fxh", "KBUILD_BUILD_HOST": "lab", "KBUILD_BUILD_VERSION": "1"}
# The kernel as Debian installs it, as an uncompressed ELF file, and its debugging information.
FILES = ("vmlinuz", "vmlinux", debugfile.NAME)
# -g1: lines and inlined functions, without types and variables. The code stays the same, and compiling takes 3 % longer (measured on
# mm/). CONFIG_DEBUG_INFO_REDUCED, the least that the configuration offers, also describes all types.
_FLAGS = {"KCFLAGS": "-pipe -w -g1 -fdebug-prefix-map={source}=.", "KAFLAGS": "-Wa,-g -Wa,--debug-prefix-map={source}=."}
# The files of an unused directory that are not unpacked.
_UNUSED = ("*.[chS]", "*.dts", "*.dtsi", "*.rst", "*.yaml", "*.json", "*.svg")


def install(recipe: KernelRecipe, directory: Path) -> None:
    """Copy missing :data:`FILES` into ``directory``. Raises as :func:`obtain`."""
    if all((directory / name).exists() for name in FILES):
        return
    built = obtain(recipe)
    for name in FILES:
        # Other processes may look for the file meanwhile, or do the same.
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            shutil.copy(built / name, scratch)
            (Path(scratch) / name).replace(directory / name)


def obtain(recipe: KernelRecipe) -> Path:
    """The directory of :data:`FILES` in the store, built at first use. One process builds, others wait for its result.

    Raises BuildError with the last lines of the failing tool, or with the options that the source does not accept.
    """

    def create(work: Path) -> Path:
        tools.require()
        _build(recipe, work)
        return work / "whole"

    return store.get_or_create("control", recipe.key, create, step=STEP, free_mib=_ROOM_MIB)


def available(recipe: KernelRecipe, directory: Path | None = None) -> bool:
    """Whether :func:`install` into ``directory`` needs no build."""
    if directory is not None and all((directory / name).exists() for name in FILES):
        return True
    return store.usable(store.directory("control") / recipe.key)


def _build(recipe: KernelRecipe, work: Path) -> None:
    log.info("building the control guest's kernel from Debian's %s: once, some minutes of both CPUs", recipe.package)
    with progress.shown(log, STEP, progress.Objects(progress.Lines(work / tools.LOG), recipe.objects)):
        source = _source(recipe, work)
        _configure(recipe, source, work)
        jobs = len(os.sched_getaffinity(0))
        flags = [f"{name}={value.format(source=source)}" for name, value in _FLAGS.items()]
        # Nothing runs objtool: without its list of static calls each goes through a trampoline, which the kernel patches.
        arguments = [f"-j{jobs}", "objtool-enabled=", f"CC={precompiled.compiler(recipe.compiler, work)}", *flags]
        precompiled.make(source, work, arguments, _SIGNED)
        tools.run(["make", *arguments, "bzImage"], work, cwd=source, env=_SIGNED)
        whole = work / "whole"
        whole.mkdir()
        (source / "arch/x86/boot/bzImage").rename(whole / "vmlinuz")
        # The content of the bzImage, uncompressed: vmlinux without its symbols.
        (source / "arch/x86/boot/compressed/vmlinux.bin").rename(whole / "vmlinux")
        tools.keep_debug(source / "vmlinux", whole / debugfile.NAME, work)
        (source / ".config").rename(whole / "config")


def _source(recipe: KernelRecipe, work: Path) -> Path:
    """Unpack the source without the files that no kernel for Xen's guests needs."""
    packed, source = work / "source.tar.xz", work / "source"
    tools.extract(recipe.package, recipe.suite, f"/usr/src/{recipe.package}.tar.xz", packed, work)
    source.mkdir()
    left_out = [f"--exclude={recipe.package}/{directory}/{pattern}" for directory in recipe.unused for pattern in _UNUSED]
    unpack = ["tar", "-C", str(source), "--strip-components=1", "--anchored", *left_out, "--use-compress-program=xz -T0"]
    tools.run([*unpack, "-xf", str(packed)], work)
    packed.unlink()
    for name, start in recipe.drop:
        file = source / name
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.strip().startswith(start)))
    return source


def _configure(recipe: KernelRecipe, source: Path, work: Path) -> None:
    requested = work / "requested.config"
    requested.write_bytes(recipe.config)
    tools.run(["make", "-s", "allnoconfig"], work, cwd=source, env={"KCONFIG_ALLCONFIG": str(requested)})
    missing = refused(recipe.config.decode(), (source / ".config").read_text())
    if missing:
        raise BuildError(
            f"the source of {recipe.package} does not accept {', '.join(missing)}",
            hint="in images/control/kernel.config, add the options that they depend on, or remove them",
        )


def refused(requested: str, accepted: str) -> list[str]:
    """The lines of ``requested`` that ``accepted``, a .config, lacks: make drops an option silently if its dependencies are off."""
    lines = set(accepted.splitlines())
    names = {line.partition("=")[0] for line in lines}
    found = []
    for line in filter(None, requested.splitlines()):
        off = line.startswith("# CONFIG_") and line.endswith(" is not set")
        if line.split()[1] in names if off else not line.startswith("#") and line not in lines:
            found.append(line)
    return found
