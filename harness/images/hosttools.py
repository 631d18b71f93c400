"""What building FreeBSD needs of the build machine: compilers, headers, commands, each with the package that brings it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import debian
from harness.errors import BuildError

# Debian's names. libncurses-dev: a host tool of lib/ncurses includes the host's ncurses_dll.h.
_COMMANDS = {
    "cc": "gcc", "c++": "g++", "patch": "patch", "bzip2": "bzip2", "xz": "xz-utils", "setarch": "util-linux", "bash": "bash",
}  # fmt: skip
_HEADERS = {"archive.h": "libarchive-dev", "zlib.h": "zlib1g-dev", "ncurses_dll.h": "libncurses-dev", "stdlib.h": "libc6-dev"}
# The LLVM that each FreeBSD's own compiler is; a later one compiles it, too, with more warnings.
_LLVM_OF = {13: 14, 14: 16, 15: 19}


@dataclass(frozen=True)
class Compiler:
    """``bindir`` holds clang, clang++, clang-cpp and ld.lld; None on FreeBSD, whose own compiler serves."""

    bindir: Path | None
    version: str


def choose(have: dict[int, Path], major: int) -> int:
    """Which LLVM of ``have`` to take for FreeBSD ``major``: its own, else the next later, else the latest there is."""
    wanted = _LLVM_OF.get(major, max(_LLVM_OF.values()))
    return min((number for number in have if number >= wanted), default=max(have))


def llvms(root: Path = Path("/usr/lib")) -> dict[int, Path]:
    """The complete LLVMs of this machine, where Debian puts them."""
    found = {}
    for directory in root.glob("llvm-*"):
        match = re.fullmatch(r"llvm-(\d+)", directory.name)
        if match and all((directory / "bin" / name).exists() for name in ("clang", "clang++", "clang-cpp", "ld.lld")):
            found[int(match[1])] = directory / "bin"
    return found


def compiler(major: int) -> Compiler:
    """The compiler for FreeBSD ``major``. Raises BuildError naming every package that this machine lacks."""
    if sys.platform.startswith("freebsd"):
        return Compiler(None, _version("cc"))
    missing = debian.lacking(_COMMANDS, _HEADERS)
    have = llvms()
    if not have:
        wanted = _LLVM_OF.get(major, max(_LLVM_OF.values()))
        missing += [f"clang-{wanted}", f"lld-{wanted}"]
    if missing:
        names = " ".join(dict.fromkeys(missing))
        raise BuildError(
            f"building FreeBSD needs Debian packages this machine lacks: {names}",
            mend=f"apt-get install --no-install-recommends {names}",
        )
    bindir = have[choose(have, major)]
    return Compiler(bindir, _version(str(bindir / "clang")))


def _version(command: str) -> str:
    """Its first line; the host's compiler has no part in what is built, the target's has."""
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()
