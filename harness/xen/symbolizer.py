# SPDX-License-Identifier: BSD-2-Clause
"""Source lines of addresses in a kernel, by means of llvm-symbolizer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError

# llvm-symbolizer prints JSON since LLVM 13.
_OLDEST = 13
# llvm-symbolizer-19     /usr/lib/llvm-19/bin/llvm-symbolizer
_NUMBER = re.compile(r"-(\d+)(?:/|$)")
# /usr/src/sys/dev/xen/blkfront/blkfront.c     ./machine/cpufunc.h
_PREFIX = re.compile(r"^(?:/usr/src/|\./)")


@dataclass(frozen=True)
class Line:
    """A place in the source. ``file`` is relative to the source tree; it is empty if unknown, and so ``line`` is 0."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.function} ({place})" if place else self.function


def program() -> str:
    """The newest llvm-symbolizer on this machine. Raises InfrastructureError if there is none."""
    found = [*Path("/usr/lib").glob("llvm-*/bin/llvm-symbolizer"), *Path("/usr/local").glob("llvm*/bin/llvm-symbolizer")]
    numbered = sorted(((int(match[1]), str(path)) for path in found if (match := _NUMBER.search(str(path.parent)))), reverse=True)
    if numbered and numbered[0][0] >= _OLDEST:
        return numbered[0][1]
    plain = shutil.which("llvm-symbolizer")
    if plain is None:
        raise InfrastructureError("llvm-symbolizer is not installed: frames have no source lines", hint="apt-get install llvm")
    return plain


def lookup(debug: Path, addresses: Sequence[int], seconds: float = 60.0) -> tuple[tuple[Line, ...], ...]:
    """The source lines of each address, innermost inlined function first; an empty tuple where nothing is known.

    ``debug`` is an ELF file with DWARF, for example FreeBSD's kernel.debug. The addresses are those of instructions: subtract 1
    from a return address. Raises InfrastructureError if llvm-symbolizer is missing or fails.
    """
    if not addresses:
        return ()
    argv = [program(), f"--obj={debug}", "--output-style=JSON", "--inlines", "--demangle"]
    try:
        done = subprocess.run(
            argv, input="\n".join(map(hex, addresses)) + "\n", capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise InfrastructureError(f"{argv[0]} {debug}: {exc}", hint="run it by hand; try another version of LLVM") from exc
    found = parse(done.stdout, len(addresses))
    if done.returncode and not any(found):
        said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise InfrastructureError(f"{argv[0]} {debug}: {said}", hint="is it an ELF file with debugging information?")
    return found


def parse(text: str, count: int) -> tuple[tuple[Line, ...], ...]:
    """What llvm-symbolizer printed for ``count`` addresses: one JSON object per line."""
    found: list[tuple[Line, ...]] = []
    for line in text.splitlines():
        try:
            symbols = json.loads(line).get("Symbol", [])
            lines = tuple(_line(symbol) for symbol in symbols if isinstance(symbol, dict))
        except (ValueError, AttributeError, TypeError):
            lines = ()
        found.append(tuple(one for one in lines if one.function))
    found = found[:count]
    return tuple(found + [()] * (count - len(found)))


def _line(symbol: dict[str, object]) -> Line:
    number = symbol.get("Line", 0)
    file = str(symbol.get("FileName") or "")
    return Line(str(symbol.get("FunctionName") or ""), _PREFIX.sub("", file), number if isinstance(number, int) else 0)
