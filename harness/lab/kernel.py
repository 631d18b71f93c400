# SPDX-License-Identifier: BSD-2-Clause
"""The control guest's kernel: built from Debian's source of Linux, once for all labs of a store.

Debian's own kernel serves any machine, and its boot is most of what a control guest's boot under emulation takes
(docs/lab.md). This one has what images/control/kernel.config names.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
from pathlib import Path

from harness import store
from harness.errors import BuildError
from harness.lab import tools
from harness.lab.recipe import KernelRecipe

log = logging.getLogger("fxh.lab.kernel")

# The source unpacked takes 1.6 GiB, its objects 0.3.
_ROOM_MIB = 3072
# What a kernel says of its build: nothing of this machine gets into a console.
_SIGNED = {"KBUILD_BUILD_USER": "fxh", "KBUILD_BUILD_HOST": "lab", "KBUILD_BUILD_VERSION": "1"}
# The kernel as Debian would install it, and as an ELF file that nobody has to unpack.
FILES = ("vmlinuz", "vmlinux")


def lay(recipe: KernelRecipe, directory: Path) -> None:
    """Put :data:`FILES` into ``directory``, where they are not there yet. Raises what :func:`obtain` does."""
    if all((directory / name).exists() for name in FILES):
        return
    made = obtain(recipe)
    for name in FILES:
        # Others may look for it meanwhile, or do the same.
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            shutil.copy(made / name, scratch)
            (Path(scratch) / name).replace(directory / name)


def obtain(recipe: KernelRecipe) -> Path:
    """The directory of :data:`FILES` in the store; built now where it is not there (by one; the others wait and find it).

    Raises BuildError with the failing tool's last lines, or naming the options that the source did not grant.
    """

    def create(work: Path) -> Path:
        tools.require()
        _make(recipe, work)
        return work / "whole"

    return store.get_or_create("control", recipe.key, create, step="the control guest's kernel", free_mib=_ROOM_MIB)


def _make(recipe: KernelRecipe, work: Path) -> None:
    log.info("building the control guest's kernel from Debian's %s: once, some ten minutes of one CPU", recipe.package)
    packed = work / "source.tar.xz"
    fetch = f"download /usr/src/{recipe.package}.tar.xz {shlex.quote(str(packed))}"
    tools.run(
        [
            # Nothing is installed: the package is unpacked, the one file taken, and all of it forgotten.
            "mmdebstrap", "--mode=auto", "--format=null", "--variant=extract", "--architectures=amd64",
            f"--include={recipe.package}", f"--extract-hook={fetch}", recipe.suite,
        ],
        work,
    )  # fmt: skip
    source, asked = work / "source", work / "asked.config"
    source.mkdir()
    tools.run(["tar", "-C", str(source), "--strip-components=1", "-xf", str(packed)], work)
    asked.write_bytes(recipe.config)
    tools.run(["make", "-s", "allnoconfig"], work, cwd=source, env={"KCONFIG_ALLCONFIG": str(asked)})
    lacking = refused(recipe.config.decode(), (source / ".config").read_text())
    if lacking:
        raise BuildError(
            f"the source of {recipe.package} does not grant {', '.join(lacking)}",
            hint="images/control/kernel.config: name what they depend on, too, or leave them out",
        )
    jobs = len(os.sched_getaffinity(0))
    tools.run(["make", "-s", f"-j{jobs}", "bzImage"], work, cwd=source, env=_SIGNED)
    whole = work / "whole"
    whole.mkdir()
    (source / "arch/x86/boot/bzImage").rename(whole / "vmlinuz")
    # What the bzImage holds packed: vmlinux without its symbols.
    (source / "arch/x86/boot/compressed/vmlinux.bin").rename(whole / "vmlinux")
    (source / ".config").rename(whole / "config")


def refused(asked: str, granted: str) -> list[str]:
    """The lines of ``asked`` that do not hold in ``granted``, a .config: an option whose dependencies are off goes in silence."""
    lines = set(granted.splitlines())
    names = {line.partition("=")[0] for line in lines}
    found = []
    for line in filter(None, asked.splitlines()):
        off = line.startswith("# CONFIG_") and line.endswith(" is not set")
        if line.split()[1] in names if off else not line.startswith("#") and line not in lines:
            found.append(line)
    return found
