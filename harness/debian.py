# SPDX-License-Identifier: BSD-2-Clause
"""Finds the Debian packages of missing programs and C headers, and the versions of LLVM on this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

READERS = {"qemu-img": "qemu-utils", "grub-fstest": "grub-common"}
"""Programs that read qcow2 images, and files on ZFS."""

_NONE: Mapping[str, str] = {}


def path() -> str:
    """The search path for programs: PATH, plus the directories in which Debian installs e2fsprogs."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing(programs: Mapping[str, str], headers: Mapping[str, str] = _NONE) -> dict[str, str]:
    """The programs and headers that this machine lacks. The arguments and the result map a name to its package."""
    includes = [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu"), Path("/usr/local/include")]
    found = {program: package for program, package in programs.items() if not shutil.which(program, path=path())}
    return found | {header: package for header, package in headers.items() if not any((d / header).is_file() for d in includes)}


def lacking(programs: Mapping[str, str], headers: Mapping[str, str] = _NONE) -> list[str]:
    """The packages of :func:`missing`, each once."""
    return list(dict.fromkeys(missing(programs, headers).values()))


# /usr/lib/llvm-19     FreeBSD's packages: /usr/local/llvm19
_LLVM = re.compile(r"llvm-?(\d+)")


def llvms(*programs: str, roots: Sequence[Path] = (Path("/usr/lib"), Path("/usr/local"))) -> dict[int, Path]:
    """The directories with all ``programs`` of LLVM, by its major version. Debian's package has no such programs on PATH."""
    found: dict[int, Path] = {}
    for directory in (path for root in roots for path in sorted(root.glob("llvm*"))):
        match = _LLVM.fullmatch(directory.name)
        if match and all((directory / "bin" / name).exists() for name in programs):
            found.setdefault(int(match[1]), directory / "bin")
    return found
