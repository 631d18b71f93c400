# SPDX-License-Identifier: BSD-2-Clause
"""The tools that building FreeBSD needs on this machine: compiler, headers and commands, with their Debian packages."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import debian
from harness.errors import BuildError

log = logging.getLogger("fxh.images.build")

# libncurses-dev: a host tool of lib/ncurses includes the host's ncurses_dll.h. bmake: for the dry run before the build.
_COMMANDS = {
    "cc": "gcc", "c++": "g++", "patch": "patch", "bzip2": "bzip2", "xz": "xz-utils", "setarch": "util-linux", "bash": "bash",
    "bmake": "bmake",
}  # fmt: skip
_HEADERS = {"archive.h": "libarchive-dev", "zlib.h": "zlib1g-dev", "ncurses_dll.h": "libncurses-dev", "stdlib.h": "libc6-dev"}
# The LLVM of each FreeBSD's first release, for a tree without this information. Branches import later ones: 14.0 has 16, 14.2-STABLE 19.
_LLVM_OF = {13: 14, 14: 16, 15: 19}
# FreeBSD's CI builds 14 and 15 on Linux with clang 14 and 18 (.github/workflows/cross-bootstrap-tools.yml).
OLDEST = 14
# clang 22 rejects the bootstrap tools up to 15.1: -Wincompatible-pointer-types-discards-qualifiers is an error there.
_TOO_NEW = 22
# The libc++ of an LLVM supports clang of the same release and of the two before (libcxx/docs, "Compiler and Platform Support").
_LIBCXX_SPAN = 2


@dataclass(frozen=True)
class Compiler:
    """``bindir`` holds clang, clang++, clang-cpp and ld.lld; None on FreeBSD, which builds with the system's compiler."""

    bindir: Path | None
    version: str

    @property
    def major(self) -> int:
        """The major version of clang; 0 if ``version`` does not contain one."""
        # Debian clang version 19.1.7 (3~deb12u1)
        match = re.search(r"version (\d+)\.", self.version)
        return int(match[1]) if match else 0


def suitable(number: int, major: int) -> bool:
    """Whether LLVM ``number`` can build FreeBSD ``major``. There is no upper limit for a release newer than all known ones."""
    return number >= OLDEST and (number < _TOO_NEW or major > max(_LLVM_OF))


def own_llvm(major: int, llvm: int = 0) -> int:
    """The LLVM of FreeBSD ``major``; ``llvm`` is the one in the tree, 0 if unknown."""
    return llvm or _LLVM_OF.get(major, max(_LLVM_OF.values()))


def choose(have: dict[int, Path], major: int, llvm: int = 0) -> int:
    """The LLVM of ``have`` for FreeBSD ``major``: its own (``llvm``), else the next later, else the latest; 0 if none fits."""
    good = [number for number in have if suitable(number, major)]
    return min((number for number in good if number >= own_llvm(major, llvm)), default=max(good, default=0))


def compiler(major: int, llvm: int = 0) -> Compiler:
    """The compiler for FreeBSD ``major`` whose tree contains LLVM ``llvm``.

    Raises BuildError that names every missing package.
    """
    if sys.platform.startswith("freebsd"):
        return Compiler(None, _version("cc"))
    missing = debian.lacking(_COMMANDS, _HEADERS)
    have = debian.llvms("clang", "clang++", "clang-cpp", "ld.lld")
    chosen = choose(have, major, llvm)
    if not chosen:
        missing += _packages(own_llvm(major, llvm))
    if missing:
        names = " ".join(dict.fromkeys(missing))
        unfit = (
            ""
            if chosen or not have
            else f" (clang {', '.join(map(str, sorted(have)))} cannot build FreeBSD {major}: {_span(major)})"
        )
        raise BuildError(f"building FreeBSD needs Debian packages this machine lacks: {names}{unfit}", hint=_install(names))
    found = Compiler(have[chosen], _version(str(have[chosen] / "clang")))
    log.info("compiler: %s (%s)", found.version, found.bindir)
    return found


def check_world(found: Compiler, version: str, llvm: int) -> None:
    """Raise BuildError if ``found`` is too old for the libc++ (of LLVM ``llvm``) in the tree of FreeBSD ``version``."""
    oldest = max(OLDEST, llvm - _LIBCXX_SPAN)
    if found.bindir and found.major < oldest:
        raise BuildError(
            f"clang {found.major} cannot build the world of FreeBSD {version}: its libc++ of LLVM {llvm} needs clang {oldest} or later",
            hint=f"{_install(' '.join(_packages(llvm)))}; clang {found.major} can build only a kernel (--base)",
        )


def _packages(llvm: int) -> list[str]:
    return [f"clang-{llvm}", f"lld-{llvm}"]


def _install(names: str) -> str:
    return f"apt-get install --no-install-recommends {names}"


def _span(major: int) -> str:
    """The versions of clang that can build FreeBSD ``major``, in words."""
    return f"it needs {OLDEST} or later" if major > max(_LLVM_OF) else f"it needs {OLDEST} to {_TOO_NEW - 1}"


def _version(command: str) -> str:
    """The first line of ``--version``. Only the compiler for the target enters the key, not the host's compiler."""
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()
