# SPDX-License-Identifier: BSD-2-Clause
"""Which Debian packages bring what this machine lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

READERS = {"qemu-img": "qemu-utils", "grub-fstest": "grub-common"}
"""Programs that read disk images: qcow2, and files on ZFS."""

_NONE: Mapping[str, str] = {}


def path() -> str:
    """Where programs are looked for: Debian has e2fsprogs where no user looks."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def lacking(programs: Mapping[str, str], headers: Mapping[str, str] = _NONE) -> list[str]:
    """The packages of those ``programs`` and C ``headers`` (each with its package) that are not here, each package once."""
    includes = [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu"), Path("/usr/local/include")]
    missing = [package for program, package in programs.items() if not shutil.which(program, path=path())]
    missing += [package for header, package in headers.items() if not any((d / header).is_file() for d in includes)]
    return list(dict.fromkeys(missing))
