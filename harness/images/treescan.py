# SPDX-License-Identifier: BSD-2-Clause
"""Scans a source tree fast: size, times and inode of every file, so that unchanged files are not read again.

A FreeBSD tree has a hundred thousand files. GNU find lists them three times as fast as os.walk with a stat for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.digest import file_sha256

_PRUNED = (".git", ".svn", "__pycache__")
_BMAKE_TESTS = b"contrib/bmake/unit-tests/"
# The end of a record. No name begins with a slash, and no link target in a FreeBSD tree is this.
_END = b"//\0"
# C sources that only kernels compile: sys/dev/xen/blkfront/blkfront.c. Worlds compile sys/dev/firewire/fwcrom.c, sys/dev/nvme/nvme_util.c
# and sys/x86/x86/ucode_subr.c.
_KERNEL_ONLY = re.compile(rb"sys/(?:amd64/amd64|dev/xen|vm|x86/xen|xen)/.*\.c\Z", re.DOTALL)
PARTS = ("sys", "kernel", "rest")


# Changed files up to which their lines are replaced one by one. Each costs a copy of all lines (10 MB for FreeBSD), so a tree whose
# files all have a new time would take a quarter of an hour.
_FEW = 100


@dataclass(frozen=True)
class Scan:
    """One listing of a tree. ``raw`` is the listing: if it is equal, nothing in the tree has changed.

    Creating a hundred thousand objects would take a second, so the records stay bytes until they are needed.
    """

    top: Path
    raw: bytes

    @cached_property
    def records(self) -> list[bytes]:
        """One record for each file and link: name, size, mtime, ctime, inode, mode, link target, each followed by a NUL."""
        return self.raw.split(_END)[:-1]


@dataclass(frozen=True)
class Record:
    """A file or link. ``name`` is relative to the tree; ``link`` is a link's target, else ""."""

    name: str
    executable: bool
    link: str


def parse(record: bytes) -> Record:
    name, _, _, _, _, mode, link, _ = record.split(b"\0")
    return Record(os.fsdecode(name), bool(int(mode, 8) & 0o100), os.fsdecode(link))


def scan(top: Path) -> Scan:
    """List the tree at ``top``, without version control, Python's caches, sockets and pipes: to read a pipe would take for ever."""
    if sys.platform.startswith("linux"):
        names = [word for name in _PRUNED for word in ("-o", "-name", name)][1:]
        argv = ["find", str(top), "-type", "d", "(", *names, ")", "-prune", "-o", "(", "-type", "f", "-o", "-type", "l", ")"]
        form = r"%P\0%s\0%T@\0%C@\0%i\0%m\0%l\0//\0"
        done = subprocess.run([*argv, "-printf", form], env={**os.environ, "LC_ALL": "C"}, capture_output=True, check=False)
        if done.returncode == 0:
            return Scan(top, done.stdout)
    return Scan(top, b"".join(_walked(str(top))))


def identity(scanned: Scan, index: Path) -> dict[str, str]:
    """sha256 of the tree's content for each of ``PARTS``: names, content, link targets and execute bits.

    ``kernel`` are the files of :func:`only_in_kernels`, ``sys`` are the other files in sys/, which worlds may read.
    Only this function writes to the directory ``index``. It keeps the last listing and the hashed lines there, and does not read a
    file with an unchanged record again, as git's index.
    """
    before = _read(index / "listing")
    lines = {part: _read(index / part) for part in PARTS}
    consistent = _is_consistent(index, lines)
    if before == scanned.raw and consistent:
        return _hashes(lines)
    old = set(before.split(_END)[:-1]) if consistent else set()
    fresh = {_name(record): record for record in scanned.records if record not in old}
    gone = {_name(record) for record in old.difference(scanned.records)}
    if old and gone == fresh.keys() and len(fresh) <= _FEW:
        # The usual case, an edit: replace a few lines.
        for name, record in fresh.items():
            part = _part(name)
            lines[part] = _replace_line(lines[part], name, _line(record, scanned.top)) if _is_source(name) else lines[part]
    else:
        known = (
            {line.partition(b"\0")[0]: line for text in lines.values() for line in text.splitlines(keepends=True)} if old else {}
        )
        made = {
            name: known[name] if name in known and name not in fresh else _line(record, scanned.top)
            for record in scanned.records
            if _is_source(name := _name(record))
        }
        order = sorted(made, key=_walk_order)
        lines = {part: b"".join(made[name] for name in order if _part(name) == part) for part in PARTS}
    index.mkdir(parents=True, exist_ok=True)
    found = _hashes(lines)
    # Write the listing last: without it the lines are ignored.
    for file, data in (*lines.items(), ("identity", json.dumps(found).encode()), ("listing", scanned.raw)):
        unfinished = index / f".{file}.{os.getpid()}"
        unfinished.write_bytes(data)
        unfinished.replace(index / file)
    return found


def _hashes(lines: dict[str, bytes]) -> dict[str, str]:
    return {part: hashlib.sha256(text).hexdigest() for part, text in lines.items()}


def _is_consistent(index: Path, lines: dict[str, bytes]) -> bool:
    """Whether the last identity was computed from these lines."""
    try:
        return bool(json.loads(_read(index / "identity") or b"{}") == _hashes(lines))
    except ValueError:
        return False


def _line(record: bytes, top: Path) -> bytes:
    file = parse(record)
    content = f"-> {file.link}" if file.link else file_sha256(top / file.name)
    return _name(record) + b"\0" + (b"x" if file.executable else b"-") + os.fsencode(content) + b"\n"


def _replace_line(text: bytes, name: bytes, line: bytes) -> bytes:
    """``text`` with the line of ``name`` replaced."""
    begin = 0 if text.startswith(name + b"\0") else text.index(b"\n" + name + b"\0") + 1
    return text[:begin] + line + text[text.index(b"\n", begin) + 1 :]


def _name(record: bytes) -> bytes:
    return record.partition(b"\0")[0]


def _part(name: bytes) -> str:
    if not name.startswith(b"sys/"):
        return "rest"
    return "kernel" if _KERNEL_ONLY.match(name) else "sys"


def only_in_kernels(name: str) -> bool:
    """Whether only kernels are built from the file ``name`` of the tree: C sources of Xen's drivers, virtual memory and the machine.

    The worlds of 13.2 and 15.1 compile none of them. :meth:`BuildDirectory.world` looks for exceptions in other trees.
    """
    return _part(os.fsencode(name)) == "kernel"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def backdated(scanned: Scan, since: float, until: float) -> str:
    """A file that appeared after ``since`` with a modification time before ``until`` (seconds since 1970); "" if it is missing.

    make compares only modification times. ``cp -p``, ``rsync -a`` or an archive may restore a file with an old time. make does not
    compile it if the object was built between the two times.
    """
    for record in scanned.records:
        fields = record.split(b"\0", 4)
        changed, touched = float(fields[2]), float(fields[3])
        # An edit sets both times to the same value, but a file system may store one of them in seconds.
        if touched > since and changed < min(until, touched - 2) and _is_source(fields[0]):
            return os.fsdecode(fields[0])
    return ""


def _is_source(name: bytes) -> bool:
    """False for the files that bmake's own tests write into the tree when bmake is bootstrapped."""
    return not name.startswith(_BMAKE_TESTS) or b"/" in name[len(_BMAKE_TESTS) :] or name.endswith((b".mk", b".exp"))


def _walk_order(name: bytes) -> tuple[tuple[bool, bytes], ...]:
    """The order of os.walk with sorted names: a directory's files before its directories."""
    *above, last = name.split(b"/")
    return (*((True, part) for part in above), (False, last))


def _walked(top: str) -> Iterator[bytes]:
    """The same listing without GNU find."""
    for directory, names, files in os.walk(top):
        names[:] = sorted(name for name in names if name not in _PRUNED)
        links = [name for name in names if os.path.islink(f"{directory}/{name}")]  # noqa: PTH114
        names[:] = [name for name in names if name not in links]
        for name in sorted([*files, *links]):
            path = f"{directory}/{name}"
            info = os.lstat(path)
            if not (stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
                continue
            link = os.readlink(path) if os.path.islink(path) else ""  # noqa: PTH114, PTH115
            times = [f"{ns // 10**9}.{ns % 10**9:09}" for ns in (info.st_mtime_ns, info.st_ctime_ns)]
            words = [path[len(top) :].lstrip("/"), info.st_size, *times, info.st_ino, f"{info.st_mode & 0o7777:o}", link]
            yield b"".join(os.fsencode(str(word)) + b"\0" for word in words) + _END
