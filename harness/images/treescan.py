"""Scans a source tree fast: every file with its size, times and inode, so that an unchanged file is not read again.

A FreeBSD tree has a hundred thousand files. GNU find lists them three times as fast as os.walk with a stat for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.digest import file_sha256

_PRUNED = (".git", ".svn", "__pycache__")
_BMAKE_TESTS = "contrib/bmake/unit-tests/"
_FIELDS = 7


@dataclass(frozen=True)
class Scan:
    """One listing of a tree. ``raw`` is the listing itself: an equal one means that nothing in the tree has changed.

    A hundred thousand objects would take a second; so the listing stays in columns, one string for each file.
    """

    top: Path
    raw: bytes

    @cached_property
    def _words(self) -> list[str]:
        return self.raw.decode(errors="surrogateescape").split("\0")[:-1]

    @property
    def names(self) -> list[str]:
        """Every file and link, relative to the tree."""
        return self._words[0::_FIELDS]

    @property
    def stamps(self) -> Iterator[str]:
        """Size, time of change (mtime) and inode of each, as one string."""
        return map(" ".join, zip(self._words[1::_FIELDS], self._words[2::_FIELDS], self._words[4::_FIELDS], strict=True))

    @property
    def times(self) -> Iterator[tuple[float, float]]:
        """The last change of each content (mtime) and inode (ctime), in seconds since 1970."""
        return zip(map(float, self._words[2::_FIELDS]), map(float, self._words[3::_FIELDS]), strict=True)

    @property
    def modes(self) -> list[str]:
        """Permission bits of each, in octal."""
        return self._words[5::_FIELDS]

    @property
    def links(self) -> list[str]:
        """The target of each symbolic link, "" for a file."""
        return self._words[6::_FIELDS]


def scan(top: Path) -> Scan:
    """List the tree at ``top``, without version control and Python's caches."""
    if sys.platform.startswith("linux"):
        names = [word for name in _PRUNED for word in ("-o", "-name", name)][1:]
        argv = ["find", str(top), "-type", "d", "(", *names, ")", "-prune", "-o", "!", "-type", "d"]
        done = subprocess.run(
            [*argv, "-printf", r"%P\0%s\0%T@\0%C@\0%i\0%m\0%l\0"],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            return Scan(top, done.stdout)
    return Scan(top, b"".join(_walked(str(top))))


def identity(scanned: Scan, index: Path) -> dict[str, str]:
    """sha256 of the tree's content by part: ``sys`` and ``rest``. Names, content, link targets and execute bits count.

    ``index`` is a file of this function's own: the hashes of the last scan, by size, time and inode, as git has one.
    """
    quick = index.with_suffix(".last.json")
    stamp = hashlib.sha256(scanned.raw).hexdigest()
    last = _load(quick)
    if last.get("listing") == stamp:
        return {part: str(last[part]) for part in ("sys", "rest")}
    known = _load(index)
    now: dict[str, list[str]] = {}
    for name, written, mode, link in zip(scanned.names, scanned.stamps, scanned.modes, scanned.links, strict=True):
        if not _counts(name):
            continue
        old = known.get(name)
        if link:
            digest = f"-> {link}"
        else:
            digest = str(old[1]) if isinstance(old, list) and old[0] == written else file_sha256(scanned.top / name)
        now[name] = [written, digest, "x" if int(mode, 8) & 0o100 else "-"]
    order = known if known.keys() == now.keys() else sorted(now, key=_walk_order)
    lines: dict[bool, list[str]] = {True: [], False: []}
    for name in order:
        lines[name.startswith("sys/")].append(f"{name}\0{now[name][2]}{now[name][1]}\n")
    found = {
        part: hashlib.sha256("".join(lines[part == "sys"]).encode(errors="surrogateescape")).hexdigest() for part in ("sys", "rest")
    }
    _save(index, {name: now[name] for name in order})
    _save(quick, {"listing": stamp, **found})
    return found


def put_back(scanned: Scan, since: float, until: float) -> str:
    """A file that came after ``since`` with a time of change before ``until`` (seconds since 1970); "" where there is none.

    make compares times of change alone. It does not compile a file that ``cp -p``, ``rsync -a`` or an archive put back with
    an old time, when the object was made between the two.
    """
    for name, (changed, touched) in zip(scanned.names, scanned.times, strict=True):
        # An edited file has the same time as both. (A file system may keep one of them to the second.)
        if touched > since and changed < min(until, touched - 2) and _counts(name):
            return name
    return ""


def _counts(name: str) -> bool:
    """False for what bmake's own tests write beside themselves when bmake is bootstrapped."""
    return not name.startswith(_BMAKE_TESTS) or "/" in name[len(_BMAKE_TESTS) :] or name.endswith((".mk", ".exp"))


def _walk_order(name: str) -> tuple[tuple[bool, str], ...]:
    """The order of os.walk with sorted names: a directory's files before its directories."""
    *above, last = name.split("/")
    return (*((True, part) for part in above), (False, last))


def _walked(top: str) -> Iterator[bytes]:
    """The same listing without GNU find."""
    for directory, names, files in os.walk(top):
        names[:] = sorted(name for name in names if name not in _PRUNED)
        links = [name for name in names if os.path.islink(f"{directory}/{name}")]  # noqa: PTH114
        names[:] = [name for name in names if name not in links]
        for name in sorted([*files, *links]):
            path = f"{directory}/{name}"
            there = os.lstat(path)
            link = os.readlink(path) if os.path.islink(path) else ""  # noqa: PTH114, PTH115
            times = [f"{ns // 10**9}.{ns % 10**9:09}" for ns in (there.st_mtime_ns, there.st_ctime_ns)]
            words = [path[len(top) :].lstrip("/"), there.st_size, *times, there.st_ino, f"{there.st_mode & 0o7777:o}", link]
            yield b"".join(os.fsencode(str(word)) + b"\0" for word in words)


def _load(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _save(path: Path, data: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(data))
    part.replace(path)
