# SPDX-License-Identifier: BSD-2-Clause
"""What building a lab's parts needs of this machine: programs, headers, room; and how a program is run for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import debian
from harness.errors import BuildError

# Debian packages that bring the tools; a name differs from its package now and then.
TOOLS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "resize2fs": "e2fsprogs", "qemu-img": "qemu-utils", "cc": "gcc",
    "xz": "xz-utils", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "perl": "perl-base",
}  # fmt: skip
HEADERS = {"gelf.h": "libelf-dev", "stdlib.h": "libc6-dev"}

# What a make around us, or a user who builds kernels, has set for makes and compilers of their own.
_NOT_OURS = ("MAKE", "MFLAGS", "GNUMAKE", "KBUILD", "KCONFIG", "ARCH", "CROSS_COMPILE", "LLVM", "LOCALVERSION", "CFLAGS")


def missing_packages() -> list[str]:
    """Debian packages that bring what a build needs and this machine lacks."""
    return sorted(debian.lacking(TOOLS, HEADERS))


def require() -> None:
    """Raises BuildError that names every package this machine lacks."""
    missing = missing_packages()
    if missing:
        raise BuildError(
            f"a lab build needs Debian packages this machine lacks: {' '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


def run(argv: Sequence[str], work: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Run to the end, with what it says in ``work``/build.log. Raises BuildError with its last lines."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    own["PATH"] = debian.path()
    with (work / "build.log").open("ab") as file:
        file.write(f"$ {argv[0]} ...\n".encode())
        file.flush()
        status = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, env={**own, **(env or {})}
        ).returncode
    if status:
        text = (work / "build.log").read_text(errors="replace")
        kept = work.parent / "last-failed-build.log"
        kept.write_text(text)
        tail = "\n".join(text.splitlines()[-15:])
        raise BuildError(f"{argv[0]} ended with {status}:\n{tail}", hint=f"the whole log is {kept}")
