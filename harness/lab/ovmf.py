# SPDX-License-Identifier: BSD-2-Clause
"""Build the lab's UEFI firmware for HVM guests: OVMF for Xen, from Debian's edk2 source, once for all labs of a store.

Debian's package ``ovmf`` does not work: since 2022 it has the platform OvmfPkgX64, which no longer starts under Xen. edk2 moved
that support to the platform OvmfXen, which Debian does not build. The build also avoids a QEMU defect (docs/lab.md).
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from harness import store
from harness.errors import BuildError
from harness.lab import tools
from harness.lab.recipe import FirmwareRecipe

log = logging.getLogger("fxh.lab.ovmf")

# MiB free for a build: Debian's compilers take 0.6 GiB, the source 0.5, its objects 0.6.
_ROOM_MIB = 3072
FILE = "OVMF.fd"
# A firmware device of edk2 is a multiple of 64 KiB; the platform makes one of 2 or 4 MiB.
_SMALLEST = 1 << 20


def obtain(recipe: FirmwareRecipe) -> Path:
    """The firmware file of ``recipe`` in the store, built at first use. One process builds, others wait for its result.

    Raises BuildError with the last lines of the failing tool, or with the Debian packages that this machine lacks.
    """

    def create(work: Path) -> Path:
        tools.require()
        _build(recipe, work)
        return work / "fxh-out"

    def damage(directory: Path) -> str:
        return "" if (directory / FILE).is_file() else f"no {FILE}"

    step = "UEFI firmware"
    return store.get_or_create("firmware", recipe.key, create, step=step, damage=damage, free_mib=_ROOM_MIB) / FILE


def _build(recipe: FirmwareRecipe, work: Path) -> None:
    log.info("building OVMF for Xen from Debian's source of %s: once, some five minutes of two CPUs", recipe.package)
    env = {"PACKAGE": recipe.package, "PLATFORM": recipe.platform, "DEFINES": " ".join(recipe.defines)}
    setup = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())
    # Build in a separate root: it has that Debian's compilers, and nothing is installed on this machine.
    tools.run(
        [
            "mmdebstrap", "--mode=auto", "--format=null", "--variant=apt", "--architectures=amd64",
            f"--include={','.join(recipe.tools)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", '--aptopt=Apt::Install-Recommends "false"',
            f"--customize-hook={setup}\n{recipe.script.decode()}",
            f"--customize-hook=copy-out /fxh-out {shlex.quote(str(work))}",
            recipe.suite,
        ],
        work,
    )  # fmt: skip
    output = work / "fxh-out"
    built = output / FILE
    size = built.stat().st_size if built.is_file() else 0
    if size < _SMALLEST or size % (64 << 10):
        kept = work.parent / "last-failed-build.log"
        (work / "build.log").rename(kept)
        raise BuildError(f"the build of {recipe.platform} produced a firmware of {size} bytes", hint=f"the whole log is {kept}")
    (work / "build.log").rename(output / "build.log")
