"""A FreeBSD source tree: which version it is, and a hash of all that is in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.digest import file_sha256
from harness.errors import UsageError

# The first release that can be built on another system than FreeBSD has tools/build/make.py.
_OLDEST = 13


@dataclass(frozen=True)
class SourceTree:
    """``path`` is absolute; ``version`` as in ``13.2``, ``branch`` as in ``RELEASE`` or ``STABLE``.

    ``osreldate`` is ``__FreeBSD_version`` of sys/sys/param.h, 0 if the tree does not define it.
    """

    path: Path
    version: str
    branch: str
    osreldate: int = 0

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def read(self, name: str) -> str:
        """A file's text; "" where the tree has none of that name."""
        path = self.path / name
        return path.read_text(errors="replace") if path.is_file() else ""


def find(path: Path) -> SourceTree:
    """The tree at ``path``. Raises UsageError for what is none, and for one that cannot be built here."""
    path = path.expanduser().absolute()
    missing = [name for name in ("Makefile.inc1", "sys/conf/newvers.sh", "sys/amd64/conf/GENERIC") if not (path / name).is_file()]
    if missing:
        raise UsageError(f"{path} is no FreeBSD source tree: it has no {missing[0]}", mend="give the top of one, as /usr/src")
    version, branch = parse_version((path / "sys/conf/newvers.sh").read_text(errors="replace"))
    if not version:
        raise UsageError(
            f"{path}: a tree of an unknown version: sys/conf/newvers.sh has no REVISION", mend="give an unmodified source tree"
        )
    param = path / "sys/sys/param.h"
    tree = SourceTree(path, version, branch, parse_osreldate(param.read_text(errors="replace")) if param.is_file() else 0)
    if not os.uname().sysname == "FreeBSD" and (tree.major < _OLDEST or not (path / "tools/build/make.py").is_file()):
        raise UsageError(
            f"{path}: FreeBSD {version} cannot be built on {os.uname().sysname} (it has no tools/build/make.py; {_OLDEST} and later have)",
            mend="build it on FreeBSD, or take release sets: --dist",
        )
    return tree


# REVISION="13.2"
# BRANCH="RELEASE"          or BRANCH=${BRANCH_OVERRIDE:-RELEASE}
_REVISION = re.compile(r'^REVISION="?(\d+\.\d+)"?\s*$', re.MULTILINE)
_BRANCH = re.compile(r'^BRANCH="?(?:\$\{BRANCH_OVERRIDE:-)?([A-Za-z0-9.-]+)\}?"?\s*$', re.MULTILINE)


def parse_version(newvers: str) -> tuple[str, str]:
    """REVISION and BRANCH of sys/conf/newvers.sh; "" for what it does not say."""
    revision, branch = _REVISION.search(newvers), _BRANCH.search(newvers)
    return (revision[1] if revision else "", branch[1] if branch else "")


# #define __FreeBSD_version 1302001	/* Master, propagated to newvers */
_OSRELDATE = re.compile(r"^#[ \t]*define[ \t]+__FreeBSD_version[ \t]+(\d{6,7})\b", re.MULTILINE)


def parse_osreldate(param_h: str) -> int:
    """``__FreeBSD_version`` as sys/sys/param.h defines it; 0 if it does not."""
    match = _OSRELDATE.search(param_h)
    return int(match[1]) if match else 0


def identity(tree: SourceTree, index: Path) -> dict[str, str]:
    """sha256 of the tree's content by part: ``sys`` and ``rest``.

    ``index`` is our file of hashes by size and time of change, as git has one: an unchanged file is not read again.
    """
    try:
        known: dict[str, list[object]] = json.loads(index.read_text())
    except (OSError, ValueError):
        known = {}
    parts = {"sys": hashlib.sha256(), "rest": hashlib.sha256()}
    now: dict[str, list[object]] = {}
    for name, path in _files(str(tree.path)):
        there = os.lstat(path)
        stamp = [there.st_size, there.st_mtime_ns, there.st_ino]
        old = known.get(name)
        if stat.S_ISLNK(there.st_mode):
            digest = f"-> {os.readlink(path)}"  # noqa: PTH115 - a hundred thousand Path objects cost seconds
        elif old is not None and old[:3] == stamp:
            digest = str(old[3])
        else:
            digest = file_sha256(Path(path))
        now[name] = [*stamp, digest]
        executable = "x" if there.st_mode & 0o100 else "-"
        parts["sys" if name.startswith("sys/") else "rest"].update(f"{name}\0{executable}{digest}\n".encode())
    if now != known:
        index.parent.mkdir(parents=True, exist_ok=True)
        part = index.with_name(f"{index.name}.{os.getpid()}")
        part.write_text(json.dumps(now))
        part.replace(index)
    return {name: digest.hexdigest() for name, digest in parts.items()}


def _files(top: str) -> Iterator[tuple[str, str]]:
    """All files and links as (name, path) in a fixed order, without version control and what bmake's own tests write."""
    for directory, names, files in os.walk(top):
        names[:] = sorted(name for name in names if name not in (".git", ".svn", "__pycache__"))
        links = [name for name in names if os.path.islink(f"{directory}/{name}")]  # noqa: PTH114
        names[:] = [name for name in names if name not in links]
        relative = directory[len(top) :].lstrip("/")
        if relative == "contrib/bmake/unit-tests":
            files = [name for name in files if name.endswith((".mk", ".exp"))]
        for name in sorted([*files, *links]):
            yield (f"{relative}/{name}" if relative else name), f"{directory}/{name}"


def put_back(tree: SourceTree, since: float, until: float) -> str:
    """A file that came after ``since`` with a time of modification before ``until``; "" where there is none. Seconds since 1970.

    make compares those times alone: what was put back by ``cp -p``, ``rsync -a`` or from an archive is not compiled again when its
    object was made between the two.
    """
    for name, path in _files(str(tree.path)):
        there = os.lstat(path)
        # What is edited has the same time as both. (A file system may keep one of them to the second.)
        if there.st_ctime > since and there.st_mtime < min(until, there.st_ctime - 2):
            return name
    return ""
