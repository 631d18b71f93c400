# SPDX-License-Identifier: BSD-2-Clause
"""Finds missing sources of a build before anything is compiled.

A public tree is often an upload without dot files, large files or files that a .gitignore names. Its build fails after minutes, one
file at a time. Two checks find such files in seconds:

* The kernel: config(8)'s lists name every source of a configuration (:mod:`harness.images.conffiles`).
* The world: a dry run of make (``make -n -k``) in every directory that buildworld visits. make names the files that it cannot make;
  its commands name the other sources.

Both follow the includes of these sources (:mod:`harness.images.includes`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from harness.errors import BuildError
from harness.images import conffiles, hosttools, includes
from harness.images.hosttools import Compiler
from harness.images.kernconf import KernConf
from harness.images.srctree import SourceTree

_DRY_RUN_SECONDS = 900.0
# Files that the build reads without a dependency in make: the file, and the file of the tree that reads it.
_READ_BY_NAME = ((".clean_build_epoch", "tools/build/depend-cleanup.sh"), ("COPYRIGHT", "etc/Makefile"))
_SHOWN = 40

# bmake[2]: don't know how to make sqlite3.c (continuing)          make: ... in old versions
_UNKNOWN = re.compile(r"^\S*make(?:\[\d+\])?: don't know how to make (\S+) \(continuing\)")
# ===> lib/geom/eli (all)
_DIRECTORY = re.compile(r"^===> (\S+) \(\w+\)")
# sh: 1: cd: can't cd to /usr/src/usr.bin/id              /bin/sh: cd: /usr/src/usr.bin/id: No such file or directory
_NO_DIRECTORY = re.compile(r"cd: (?:can't cd to )?(/\S+?)(?::|$)", re.MULTILINE)
_COMPILED = (".c", ".cc", ".cpp", ".S")
_SOURCE = re.compile(r"\.(c|cc|cpp|cxx|s|S|y|l|asm|m|awk|sh|lua|conf|src|in|py|map|[1-9])$")


def missing_of_kernel(tree: SourceTree, conf: KernConf, *, headers: bool = True) -> set[str]:
    """The sources of the kernel ``conf`` that the tree lacks, with ``headers`` also the headers. Paths are relative to the tree."""
    names = conffiles.names(tree, conf.name, dict(conf.files))
    needed = {
        f"sys/{path}"
        for source in conffiles.sources(tree)
        if source.selected(names)
        for path in (source.dependencies if source.generated else (source.path,))
    }
    missing = {path for path in needed if not (tree.path / path).exists()}
    return missing | (includes.absent(tree.path, needed, kernel=True) if headers else set())


def missing_of_world(tree: SourceTree, compiler: Compiler, src_conf: Path) -> set[str]:
    """The sources and headers of the world of ``src_conf`` that the tree lacks, as :func:`absent` names them.

    Takes about 20 s of one CPU. Needs bmake (on FreeBSD: make).
    """
    missing = {name for name, reader in _READ_BY_NAME if name in tree.read(reader) and not (tree.path / name).exists()}
    sources: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="fxh-dry-run-") as scratch:
        for top in _subdirs(tree, compiler, src_conf, scratch):
            if not (tree.path / top).is_dir():
                missing.add(top)
                continue
            output = _make(tree, compiler, src_conf, scratch, tree.path / top, "-n", "-k", "all")
            missing |= absent(output, tree.path, top)
            sources |= compiled(output, tree.path, top)
    return missing | includes.absent(tree.path, sources, kernel=False)


def refuse(tree: SourceTree, missing: Mapping[str, Set[str]]) -> None:
    """Raise BuildError if the tree lacks a source. ``missing`` has the sources of each part, such as "kernel XENA"."""
    needs = {part: names for part, names in missing.items() if names}
    if not needs:
        return
    count = len(set().union(*needs.values()))
    raise BuildError(
        f"{tree.path}: this tree lacks {count} source{'s' if count > 1 else ''}" + "".join(map(listed, needs, needs.values())),
        hint="get a complete tree (an upload or a .gitignore may have lost them; in a git checkout: git checkout -- .), or add the files",
    )


def listed(part: str, missing: Set[str]) -> str:
    """Lines that name the sources that a part of a build needs; the first begins with a newline."""
    names = sorted(missing)
    rest = f"\n  and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"\n{part} needs:" + "".join(f"\n  {name}" for name in names[:_SHOWN]) + rest


def absent(output: str, tree: Path, top: str) -> set[str]:
    """The missing sources of a dry run in the directory ``top`` of ``tree``.

    A path is relative to ``tree``; ``sqlite3.c, for lib/libsqlite3`` is a source of that directory's Makefile. Libraries, objects and
    headers from an earlier stage of the build do not count.
    """
    found = set()
    for here, line in _by_directory(output, top):
        if _DIRECTORY.match(line):
            if (tree / here).is_dir() and not (tree / here / "Makefile").exists():
                found.add(f"{here}/Makefile")
        elif match := _UNKNOWN.match(line):
            name = match[1]
            if not name.startswith("/") and _SOURCE.search(name):
                # make searches .PATH, so this is the directory that needs the file, not the one that should contain it.
                found.add(f"{name}, for {here}")
        elif (match := _NO_DIRECTORY.search(line)) and match[1].startswith(f"{tree}/") and not Path(match[1]).is_dir():
            found.add(os.path.relpath(match[1], tree))
        for path in _files_in_command(line, str(tree)):
            # make has looked for a file of the directory itself; a command may also name its own output there.
            if os.path.dirname(path) != here and _SOURCE.search(path) and not os.path.lexists(f"{tree}/{path}"):  # noqa: PTH120
                found.add(path)
    return found


def compiled(output: str, tree: Path, top: str) -> set[str]:
    """The sources below ``tree`` that the commands of a dry run in ``top`` compile, relative to ``tree``.

    A command names a source of the directory itself without a path.
    """
    found = set()
    for here, line in _by_directory(output, top):
        if " -c " in line:
            found |= {path for path in _files_in_command(line, str(tree)) if path.endswith(_COMPILED)}
            found |= {f"{here}/{word}" for word in line.split() if word.endswith(_COMPILED) and not word.startswith("/")}
    return found


def _by_directory(output: str, top: str) -> Iterable[tuple[str, str]]:
    """Each line of a dry run in ``top``, after the directory that make is in."""
    here = top
    for line in output.splitlines():
        if match := _DIRECTORY.match(line):
            here = f"{top}/{match[1]}"
        yield here, line


def _files_in_command(line: str, tree: str) -> Iterable[str]:
    """The files below ``tree`` in a command, relative to ``tree``."""
    if tree not in line:
        return
    for word in line.split():
        bare = word.strip("'\"();,`<")
        if bare.startswith(f"{tree}/") and not any(letter in bare for letter in "*$?{["):
            yield os.path.relpath(os.path.normpath(bare), tree)


def _subdirs(tree: SourceTree, compiler: Compiler, src_conf: Path, scratch: str) -> list[str]:
    """The top directories that buildworld visits (SUBDIR of Makefile.inc1). Raises BuildError if make fails."""
    output = _make(tree, compiler, src_conf, scratch, tree.path, "-f", "Makefile.inc1", "-V", "SUBDIR")
    words = output.splitlines()[-1].split() if output.strip() else []
    if not words or any(not re.fullmatch(r"[\w./-]+", word) for word in words):
        raise BuildError(f"{tree.path}: make cannot list the directories of the world: {output.strip()[-400:]}")
    return [word for word in words if word not in (".WAIT", "sys")]


def _make(tree: SourceTree, compiler: Compiler, src_conf: Path, scratch: str, where: Path, *words: str) -> str:
    """The output of one make in ``where``. With these variables it does not run a compiler or linker, which do not exist yet."""
    command = "make" if sys.platform.startswith("freebsd") else shutil.which("bmake") or "bmake"
    version = str((compiler.major or hosttools.OLDEST) * 10000)
    given = [
        "MACHINE=amd64", "MACHINE_ARCH=amd64", "TARGET=amd64", "TARGET_ARCH=amd64", "__MAKE_CONF=/dev/null", "SRC_ENV_CONF=/dev/null",
        f"SRCCONF={src_conf}", "MK_TESTS=no", "COMPILER_TYPE=clang", "X_COMPILER_TYPE=clang", "LINKER_TYPE=lld", "LINKER_FEATURES=",
        *(f"{prefix}COMPILER_{name}" for prefix in ("", "X_") for name in (f"VERSION={version}", "FEATURES=c++11")),
        f"LINKER_VERSION={version}",
    ]  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
    try:
        done = subprocess.run(
            [command, "-m", str(tree.path / "share/mk"), *given, *words], cwd=where, stdin=subprocess.DEVNULL, check=False,
            env={**kept, "LC_ALL": "C", "MAKEOBJDIRPREFIX": scratch}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=_DRY_RUN_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise BuildError(
            f"{where}: a dry run of make takes more than {_DRY_RUN_SECONDS:.0f} s",
            hint="check the disk and the load of this machine",
        ) from exc
    return done.stdout
