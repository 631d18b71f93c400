# SPDX-License-Identifier: BSD-2-Clause
"""A FreeBSD source tree and its version."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

log = logging.getLogger("fxh.images.build")

# tools/build/make.py, which builds on systems other than FreeBSD, came with 13.0.
_OLDEST = 13
# The latest major release that this harness was tested with.
_NEWEST = 15


@dataclass(frozen=True)
class SourceTree:
    """``path`` is absolute; ``version`` is like ``13.2``, ``branch`` like ``RELEASE`` or ``STABLE``.

    ``osreldate`` is ``__FreeBSD_version`` of sys/sys/param.h.
    """

    path: Path
    version: str
    branch: str
    osreldate: int = 0

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def llvm(self) -> int:
        """The major version of the LLVM (and libc++) in the tree; 0 if unknown."""
        match = _CLANG_MAJOR.search(self.read("lib/clang/include/clang/Basic/Version.inc"))
        return int(match[1]) if match else 0

    def read(self, name: str) -> str:
        """The text of a file; "" if it is missing."""
        path = self.path / name
        return path.read_text(errors="replace") if path.is_file() else ""


def find(path: Path) -> SourceTree:
    """The tree at ``path``. Raises UsageError if it is not a FreeBSD tree or cannot be built on this machine."""
    path = path.expanduser().absolute()
    missing = [name for name in ("Makefile.inc1", "sys/conf/newvers.sh", "sys/amd64/conf/GENERIC") if not (path / name).is_file()]
    if missing:
        raise UsageError(
            f"{path} is not a FreeBSD source tree: it has no {missing[0]}", hint="give the top of one, such as /usr/src"
        )
    version, branch = parse_version((path / "sys/conf/newvers.sh").read_text(errors="replace"))
    if unfit := sorted(set(_UNFIT.findall(str(path)))):
        raise UsageError(
            f"{path}: FreeBSD's makefiles cannot use a path with {' or '.join(map(repr, unfit))} in it",
            hint="rename the directory, or copy the tree to another one",
        )
    if not version:
        raise UsageError(
            f"{path}: a tree of an unknown version: sys/conf/newvers.sh has no REVISION", hint="give an unmodified source tree"
        )
    param = path / "sys/sys/param.h"
    osreldate = parse_osreldate(param.read_text(errors="replace")) if param.is_file() else 0
    if not osreldate:
        # Makefile.inc1 and newvers.sh read it, but only after the build has begun.
        raise UsageError(
            f"{path}: sys/sys/param.h {'does not define __FreeBSD_version' if param.is_file() else 'is missing'}",
            hint="give an unmodified source tree",
        )
    tree = SourceTree(path, version, branch, osreldate)
    if not os.uname().sysname == "FreeBSD" and (tree.major < _OLDEST or not (path / "tools/build/make.py").is_file()):
        raise UsageError(
            f"{path}: FreeBSD {version} cannot be built on {os.uname().sysname} (it has no tools/build/make.py; {_OLDEST} and later have)",
            hint="build it on FreeBSD, or use release sets: --dist",
        )
    if tree.major > _NEWEST:
        log.warning(
            "%s: FreeBSD %s is newer than every release that this harness was tested with (up to %d)", path, version, _NEWEST
        )
    return tree


# Characters that separate words in a makefile, or that make or the shell replaces.
_UNFIT = re.compile(r"[^\w./@%+,=~-]")
# REVISION="13.2"
# BRANCH="RELEASE"          or BRANCH=${BRANCH_OVERRIDE:-RELEASE}
_REVISION = re.compile(r'^REVISION="?(\d{1,4}\.\d{1,4})"?\s*$', re.MULTILINE)
_BRANCH = re.compile(r'^BRANCH="?(?:\$\{BRANCH_OVERRIDE:-)?([A-Za-z0-9.-]+)\}?"?\s*$', re.MULTILINE)


def parse_version(newvers: str) -> tuple[str, str]:
    """REVISION and BRANCH of sys/conf/newvers.sh; "" for a missing one."""
    revision, branch = _REVISION.search(newvers), _BRANCH.search(newvers)
    return (revision[1] if revision else "", branch[1] if branch else "")


# #define	CLANG_VERSION_MAJOR		19
_CLANG_MAJOR = re.compile(r"^#[ \t]*define[ \t]+CLANG_VERSION_MAJOR[ \t]+(\d+)\b", re.MULTILINE)

# #define __FreeBSD_version 1302001	/* Master, propagated to newvers */
_OSRELDATE = re.compile(r"^#[ \t]*define[ \t]+__FreeBSD_version[ \t]+(\d{6,7})\b", re.MULTILINE)


def parse_osreldate(param_h: str) -> int:
    """``__FreeBSD_version`` of sys/sys/param.h; 0 if it is missing."""
    match = _OSRELDATE.search(param_h)
    return int(match[1]) if match else 0
