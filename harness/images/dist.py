# SPDX-License-Identifier: BSD-2-Clause
"""Reads release sets: base.txz and kernel.txz of a MANIFEST, unpacked without root. harness/images/sets.py writes them."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import shutil
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from harness import paths, store, untar
from harness.errors import BuildError, HarnessError, UsageError
from harness.images import destdir, entries, fetch, kernelfile, metalog
from harness.images.entries import StoreEntry
from harness.images.inputs import Input, combine, key_of

log = logging.getLogger("fxh.images")

_SETS = ("base", "kernel")
# A program of each set: its ELF header gives the set's machine.
_PROOF = {"base": "sbin/init", "kernel": "boot/kernel/kernel"}
_HINT = "the set matches its MANIFEST, so the mirror has it like this: use the sets of a FreeBSD release, or another mirror"
# Raise when the same sets give another world.
_UNPACKER = 1
# Bytes of an unpacked set; base.txz of 15.1 has 1 GiB.
_MOST = 16 << 30


@dataclass(frozen=True)
class ReleaseSet:
    """A line of MANIFEST: ``name`` is ``base``, ``file`` is ``base.txz``."""

    name: str
    file: str
    sha256: str
    about: str


# kernel-dbg.txz    kernel_dbg
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


# base.txz	<sha256>	28236	base	"Base system (MANDATORY)"	on
def parse_manifest(text: str) -> dict[str, ReleaseSet]:
    """The sets by name. Raises BuildError for an invalid line."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        words = line.split("\t")
        if len(words) < 4 or not re.fullmatch(r"[0-9a-f]{64}", words[1]) or not all(map(_NAME.fullmatch, (words[0], words[3]))):
            raise BuildError(f"MANIFEST, line {number}: {line[:80]!r} names no set", hint="give the directory of a FreeBSD release")
        about = words[4].strip('"') if len(words) > 4 else ""
        found[words[3]] = ReleaseSet(words[3], words[0], words[1], about)
    return found


def world(where: str) -> tuple[StoreEntry, Path, tuple[Input, ...]]:
    """The world of the sets at ``where``, a URL or a directory; its kernel's path; the inputs. The kernel and modules are in the world.

    Raises UsageError if a set is missing or for another machine than amd64 or i386; then nothing stays in the store.
    """
    sets = parse_manifest(fetch.text(where, "MANIFEST"))
    missing = [name for name in _SETS if name not in sets]
    if missing:
        raise UsageError(f"the MANIFEST at {where} has no {' and no '.join(missing)}", hint=f"it has: {', '.join(sets)}")
    patterns = tuple(tomllib.loads((paths.project() / "images/freebsd/release.toml").read_text())["leave_out"])
    inputs = (
        *(Input(f"set {name}", sets[name].sha256, f"{where} ({sets[name].file})") for name in _SETS),
        Input("left out", combine(patterns), "images/freebsd/release.toml"),
        Input("unpacker", str(_UNPACKER), "harness/images/dist.py"),
    )

    def fill(work: Path) -> dict[str, Any]:
        lines = {".": ". type=dir uid=0 gid=0 mode=0755"}
        # The kernel first: it has a tenth of the size of base and shows whether the machine is right.
        for name in reversed(_SETS):
            archive = fetch.checked(where, sets[name].file, sets[name].sha256)
            try:
                _unpack_set(name, archive, f"{sets[name].file} of {where}", work / "tree", lines, patterns)
            except HarnessError:
                store.remove(archive)
                raise
        (work / "METALOG").write_text("\n".join(lines.values()) + "\n")
        return {
            "what": f"sets of {where}", "version": destdir.version_of(work / "tree"), "preset": "release", "leave_out": [],
            "inputs": [vars(item) for item in inputs],
        }  # fmt: skip

    entry = entries.get_or_create("worlds", key_of(*inputs), fill)
    return entry, entry.directory / "tree/boot/kernel/kernel", inputs


def _unpack_set(name: str, archive: Path, what: str, top: Path, lines: dict[str, str], patterns: tuple[str, ...]) -> None:
    """As :func:`unpack`, with ``what`` as the archive's name in messages. Also raises UsageError for a set without a usable program."""
    try:
        unpack(archive, top, lines, patterns)
        # The files of all sets so far: one set may have a link where another has a directory.
        metalog.parse("\n".join(lines.values()), top)
    except BuildError as exc:
        raise BuildError(f"{what}: {exc.message}", hint=_HINT) from exc
    _check_machine(top / _PROOF[name], what)
    if name == "kernel":
        _check_kernel(top / _PROOF[name], what)


def _check_machine(program: Path, what: str) -> None:
    """Raise UsageError if ``program`` is for another machine than amd64 or i386."""
    if not program.is_file():
        return
    with program.open("rb") as file:
        head = file.read(64)
    machine = kernelfile.machine_of(head)
    if head[:4] == b"\x7fELF" and machine not in ("amd64", "i386"):
        raise UsageError(
            f"{what} is for {machine}; only amd64 and i386 are supported", hint="give the sets of amd64, as releases/amd64/..."
        )


def _check_kernel(kernel: Path, what: str) -> None:
    """Raise UsageError if ``kernel`` is missing or not FreeBSD's."""
    if not kernel.is_file():
        raise UsageError(f"{what} has no file {_PROOF['kernel']}", hint=_HINT)
    try:
        kernelfile.read(kernel)
    except UsageError as exc:
        raise UsageError(f"{what}: {exc.message.replace(str(kernel), _PROOF['kernel'])}", hint=_HINT) from None


def left_out(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether ``path`` (``usr/tests/x``) or a directory above it matches one of ``patterns``."""
    above = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
    return any(fnmatch.fnmatchcase(name, pattern) for name in above for pattern in patterns)


def unpack(archive: Path, top: Path, lines: dict[str, str], patterns: tuple[str, ...]) -> None:
    """Put the files of a set below ``top``, and their owners, modes and links into ``lines`` (METALOG, by path).

    Creates only regular files, so no link of an archive leads out of ``top``. Raises BuildError for a damaged archive, for one with
    more than 16 GiB, and for a path that a world cannot contain.
    """
    log.info("unpacking %s", archive.name)
    top.mkdir(exist_ok=True)
    try:
        for member, contents in untar.members(archive, _MOST):
            path = os.path.normpath(member.name.lstrip("/"))
            if reason := metalog.refusal(path):
                raise BuildError(f"the path {_short(member.name)} {reason}", hint=_HINT)
            if not left_out(path, patterns):
                line = _member(member, contents, path, top, lines)
                if line:
                    for parent in reversed(PurePosixPath(path).parents[:-1]):
                        lines.setdefault(str(parent), f"./{_vis(str(parent))} type=dir uid=0 gid=0 mode=0755")
                    lines[path] = line
    except tarfile.TarError as exc:
        raise BuildError(f"it cannot be unpacked: {exc}", hint=_HINT) from exc
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
        raise BuildError(f"a file and a directory have one name: {_short(path)}", hint=_HINT) from exc


def _short(path: str) -> str:
    return repr(path if len(path) <= 80 else f"{path[:80]}...")


def _member(member: tarfile.TarInfo, contents: IO[bytes] | None, path: str, top: Path, lines: dict[str, str]) -> str:
    where = top / path
    name = "." if path == "." else f"./{_vis(path)}"
    who = f"uid={member.uid} gid={member.gid} mode={member.mode & 0o7777:04o}"
    if member.isdir():
        where.mkdir(parents=True, exist_ok=True)
        return f"{name} type=dir {who}"
    where.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        return f"{name} type=link {who} link={_vis(member.linkname)}"
    if member.islnk():
        target = os.path.normpath(member.linkname.lstrip("/"))
        if target == path:
            raise BuildError(f"{_short(path)} is a hard link to itself", hint=_HINT)
        if target not in lines or not (top / target).is_file():
            return ""  # its file is excluded
        where.unlink(missing_ok=True)
        os.link(top / target, where)
        return f"{name} {lines[target].partition(' ')[2]}"
    if contents is None:
        return ""
    where.unlink(missing_ok=True)
    with contents, where.open("wb") as file:
        shutil.copyfileobj(contents, file, 1 << 20)
    return f"{name} type=file {who}"


def _vis(path: str) -> str:
    """A name in mtree(5)'s encoding: blanks and special characters as octal numbers."""
    return "".join(
        f"\\{byte:03o}" if byte <= 32 or byte in b"\\#=*?" or byte > 126 else chr(byte)
        for byte in path.encode(errors="surrogateescape")
    )
