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
from harness.lab import tools
from harness.lab.recipe import KernelRecipe

log = logging.getLogger("fxh.lab.kernel")

# Free space for a build: the unpacked source takes 1.6 GiB, its objects 0.3.
_ROOM_MIB = 3072
# A kernel prints these values at boot. They keep names of this machine out of consoles.
_SIGNED = {"KBUILD_BUILD_USER": "fxh", "KBUILD_BUILD_HOST": "lab", "KBUILD_BUILD_VERSION": "1"}
# The kernel as Debian installs it, as an uncompressed ELF file, and its debugging information.
FILES = ("vmlinuz", "vmlinux", debugfile.NAME)
# -g1: lines and inlined functions, without types and variables. The code stays the same, and compiling takes 3 % longer (measured on
# mm/). CONFIG_DEBUG_INFO_REDUCED, the least that the configuration offers, also describes all types.
_DEBUG = {"KCFLAGS": "-g1 -fdebug-prefix-map={source}=.", "KAFLAGS": "-Wa,-g -Wa,--debug-prefix-map={source}=."}


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

    return store.get_or_create("control", recipe.key, create, step="the control guest's kernel", free_mib=_ROOM_MIB)


def _build(recipe: KernelRecipe, work: Path) -> None:
    log.info("building the control guest's kernel from Debian's %s: once, some ten minutes of one CPU", recipe.package)
    packed = work / "source.tar.xz"
    tools.extract(recipe.package, recipe.suite, f"/usr/src/{recipe.package}.tar.xz", packed, work)
    source, requested = work / "source", work / "requested.config"
    source.mkdir()
    tools.run(["tar", "-C", str(source), "--strip-components=1", "-xf", str(packed)], work)
    requested.write_bytes(recipe.config)
    tools.run(["make", "-s", "allnoconfig"], work, cwd=source, env={"KCONFIG_ALLCONFIG": str(requested)})
    missing = refused(recipe.config.decode(), (source / ".config").read_text())
    if missing:
        raise BuildError(
            f"the source of {recipe.package} does not accept {', '.join(missing)}",
            hint="in images/control/kernel.config, add the options that they depend on, or remove them",
        )
    jobs = len(os.sched_getaffinity(0))
    flags = [f"{name}={value.format(source=source)}" for name, value in _DEBUG.items()]
    tools.run(["make", "-s", f"-j{jobs}", "bzImage", *flags], work, cwd=source, env=_SIGNED)
    whole = work / "whole"
    whole.mkdir()
    (source / "arch/x86/boot/bzImage").rename(whole / "vmlinuz")
    # The content of the bzImage, uncompressed: vmlinux without its symbols.
    (source / "arch/x86/boot/compressed/vmlinux.bin").rename(whole / "vmlinux")
    tools.keep_debug(source / "vmlinux", whole / debugfile.NAME, work)
    (source / ".config").rename(whole / "config")


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
