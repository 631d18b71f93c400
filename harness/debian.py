# SPDX-License-Identifier: BSD-2-Clause
"""Finds the Debian packages of missing programs and C headers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

READERS = {"qemu-img": "qemu-utils", "grub-fstest": "grub-common"}
"""Programs that read qcow2 images, and files on ZFS."""

_NONE: Mapping[str, str] = {}


def path() -> str:
    """The search path for programs: PATH, plus the directories in which Debian installs e2fsprogs."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def lacking(programs: Mapping[str, str], headers: Mapping[str, str] = _NONE) -> list[str]:
    """The packages of missing programs and headers, each once. Both arguments map a name to its package."""
    includes = [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu"), Path("/usr/local/include")]
    missing = [package for program, package in programs.items() if not shutil.which(program, path=path())]
    missing += [package for header, package in headers.items() if not any((d / header).is_file() for d in includes)]
    return list(dict.fromkeys(missing))
