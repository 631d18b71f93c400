# SPDX-License-Identifier: BSD-2-Clause
"""Source lines of addresses in a kernel, by means of LLVM's tools.

llvm-symbolizer needs 0.15 s of a CPU for a kernel.debug of 120 MB, and 0.5 s if it is compressed. llvm-gsymutil converts all of its lines
in 1.3 s, once, into an index that answers in 0.02 s (LLVM's GSYM format). So llvm-symbolizer answers until there is an index, which a
thread makes. The index lacks assembly code, which llvm-symbolizer resolves.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from harness import debian, store
from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError
from harness.safetext import plain
from harness.xen.elfnotes import build_id

KIND = "symbols"
"""The store's kind of index. A name is a build-id with the size of its file."""

# llvm-symbolizer prints JSON since LLVM 13, and llvm-gsymutil reads addresses from stdin.
_OLDEST = 13
# Characters of a function's or file's name. Names of C++ and Rust are long.
_LONGEST = 1000
# An index has a tenth of its kernel's debugging information: 4 MiB for FreeBSD's.
_MOST_INDEXES = 32
# Seconds.
_MAKING = 60.0
_INDEX, _ANSWERS = "lines.gsym", "answers.json"
# Answers of llvm-symbolizer that are kept with an index. A kernel has 2000 lines of assembly code.
_MOST_ANSWERS = 4096
# Where FreeBSD's releases and the builder have the source. The control guest's kernel has relative names.
_SOURCE = "/usr/src/"
# 0xffffffff80414f3c: xenbus_get_node + 20 @ /usr/src/sys/xen/xenbus/xenbusvar.h:93 [inlined]
#                     xbd_attach + 156 @ /usr/src/sys/dev/xen/blkfront/blkfront.c:1510
# 0xffffffff80804e53: rsb_flush + 19          0x0000000000001234: error: address 0x1234 is not in GSYM
_GSYM = re.compile(
    r"(?:0x(?P<address>[0-9a-f]{1,16}):)? +(?:error: .*|(?P<name>\S.*?)(?: \+ \d+)?(?: @ (?P<file>.*):(?P<line>\d{1,9}))?(?: \[inlined\])?)"
)


@dataclass(frozen=True)
class Line:
    """A place in the source. ``file`` is relative to the source tree; it is empty if unknown, and so ``line`` is 0."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.function} ({place})" if place else self.function


Lines = tuple[Line, ...]


# The indexes that this process has begun to make, by name. It does not try again after a failure.
_making: dict[str, threading.Thread] = {}


def program(name: str = "llvm-symbolizer") -> str:
    """The newest LLVM program ``name`` on this machine. Raises InfrastructureError if there is none."""
    have = debian.llvms(name)
    if have and max(have) >= _OLDEST:
        return str(have[max(have)] / name)
    found = shutil.which(name)
    if found is None:
        raise InfrastructureError(f"{name} is not installed: frames have no source lines", hint="apt-get install llvm")
    return found


def lookup(debug: Path, addresses: Sequence[int], seconds: float = 60.0) -> tuple[Lines, ...]:
    """The source lines of each address, innermost inlined function first; an empty tuple where nothing is known.

    ``debug`` is an ELF file with DWARF, for example FreeBSD's kernel.debug. The addresses are those of instructions: subtract 1
    from a return address. The first use of a file begins to make its index. Raises InfrastructureError if LLVM's tools are missing or
    fail.
    """
    if not addresses:
        return ()
    deadline = Deadline(seconds)
    index = _known_index(debug)
    if index is None:
        _begin_index(debug)
    else:
        with suppress(InfrastructureError):  # LLVM without llvm-gsymutil, or a damaged index
            return _from_index(index, debug, addresses, deadline)
    return _symbolized(debug, addresses, deadline)


def prepare(debug: Path) -> None:
    """Make the index of ``debug`` now, so that the first backtrace does not wait for it. Does nothing if it cannot be made."""
    with suppress(HarnessError, OSError):  # LLVM without llvm-gsymutil, a slow machine, or a full disk
        if key := _key(debug):
            _make_index(debug, key)


# -- the index --------------------------------------------------------------------------------------------------------


def _key(debug: Path) -> str:
    """The name of the file's index in the store; "" for a file without a build-id. Raises OSError."""
    identity = build_id(debug)
    return f"{identity}-{debug.stat().st_size}" if identity else ""


def _known_index(debug: Path) -> Path | None:
    """The directory of the file's index in the store, if it was made. Raises OSError for an unreadable file."""
    key = _key(debug)
    entry = store.directory(KIND) / key
    if not key or not store.usable(entry, _damage):
        return None
    store.mark_used(entry)
    return entry


def _begin_index(debug: Path) -> None:
    """Make the index in a thread. The process waits for it before it exits, at most :data:`_MAKING` seconds."""
    key = _key(debug)
    if key and key not in _making:
        _making[key] = threading.Thread(target=prepare, args=(debug,), name="symbol-index")
        _making[key].start()


def _damage(entry: Path) -> str:
    return "" if (entry / _INDEX).is_file() else f"no {_INDEX}"


def _make_index(debug: Path, key: str) -> None:
    gsymutil, deadline = program("llvm-gsymutil"), Deadline(_MAKING)

    def create(work: Path) -> Path:
        _run([gsymutil, f"--convert={debug}", f"--out-file={work / _INDEX}"], debug, deadline)
        return work

    store.get_or_create(KIND, key, create, step="index of source lines", damage=_damage)
    store.keep_latest(KIND, _MOST_INDEXES)


def _from_index(index: Path, debug: Path, addresses: Sequence[int], deadline: Deadline) -> tuple[Lines, ...]:
    """The lines of the index, and of llvm-symbolizer for addresses that it lacks. Raises InfrastructureError."""
    # Half of the time is for llvm-symbolizer, in case that the index does not answer.
    found = list(_indexed(index, addresses, deadline.capped(deadline.remaining / 2)))
    unknown = [number for number, lines in enumerate(found) if not any(line.file for line in lines)]
    answers = _read_answers(index)
    if asked := [addresses[number] for number in unknown if addresses[number] not in answers]:
        with suppress(InfrastructureError, OSError):  # the index has the other lines
            answers |= dict(zip(asked, _symbolized(debug, asked, deadline), strict=True))
            _write_answers(index, answers)
    for number in unknown:
        found[number] = answers.get(addresses[number], ()) or found[number]
    return tuple(found)


def _indexed(index: Path, addresses: Sequence[int], deadline: Deadline) -> tuple[Lines, ...]:
    # A line of its input is an address and a file; the name of the store's directory may contain blanks.
    asked = "".join(f"{address:#x} {_INDEX}\n" for address in addresses)
    done = _run([program("llvm-gsymutil"), "--addresses-from-stdin"], index / _INDEX, deadline, asked, cwd=index)
    return parse_gsym(done.stdout, addresses)


def parse_gsym(text: str, addresses: Sequence[int]) -> tuple[Lines, ...]:
    """The output of llvm-gsymutil for ``addresses``: a paragraph for each, with the innermost function first.

    Raises InfrastructureError for paragraphs of other addresses: a function's name in hostile symbols may have line breaks.
    """
    found: list[Lines] = []
    for row in text.split("\n"):
        match = _GSYM.fullmatch(row)
        if match is None:
            continue
        if match["address"]:
            if len(found) == len(addresses) or int(match["address"], 16) != addresses[len(found)]:
                raise InfrastructureError(f"llvm-gsymutil names the address {match['address']}, which is not the next one")
            found.append(())
        if match["name"] and found:
            found[-1] += (_clean(match["name"], match["file"] or "", int(match["line"] or 0)),)
    return _exactly(found, len(addresses))


def _read_answers(index: Path) -> dict[int, Lines]:
    try:
        data = json.loads((index / _ANSWERS).read_text())
        return {int(address): tuple(Line(*line) for line in lines) for address, lines in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_answers(index: Path, answers: dict[int, Lines]) -> None:
    """Keep the newest answers. Of two processes that write at once, one wins. Raises OSError."""
    kept = dict(list(answers.items())[-_MOST_ANSWERS:])
    for left in index.glob(f"{_ANSWERS}.*"):  # by a process that was killed
        left.unlink(missing_ok=True)
    part = index / f"{_ANSWERS}.{os.getpid()}"
    part.write_text(json.dumps({str(address): [astuple(line) for line in lines] for address, lines in kept.items()}))
    part.replace(index / _ANSWERS)


# -- llvm-symbolizer --------------------------------------------------------------------------------------------------


def _symbolized(debug: Path, addresses: Sequence[int], deadline: Deadline) -> tuple[Lines, ...]:
    argv = [program(), f"--obj={debug}", "--output-style=JSON", "--inlines", "--demangle"]
    done = _run(argv, debug, deadline, "\n".join(map(hex, addresses)) + "\n", check=False)
    found = parse(done.stdout, len(addresses))
    if done.returncode and not any(found):
        raise _failed(argv, debug, done)
    return found


def parse(text: str, count: int) -> tuple[Lines, ...]:
    """The output of llvm-symbolizer for ``count`` addresses: one JSON object per line."""
    found: list[Lines] = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        try:
            symbols = json.loads(line).get("Symbol", [])
            lines = tuple(_line(symbol) for symbol in symbols if isinstance(symbol, dict))
        except (ValueError, AttributeError, TypeError):
            lines = ()
        found.append(tuple(one for one in lines if one.function))
    return _exactly(found, count)


def _line(symbol: dict[str, object]) -> Line:
    number = symbol.get("Line", 0)
    file = str(symbol.get("FileName") or "")
    return _clean(str(symbol.get("FunctionName") or ""), file, number if isinstance(number, int) else 0)


# -- both -------------------------------------------------------------------------------------------------------------


def _clean(function: str, file: str, line: int) -> Line:
    """A line of a report. The symbols of a kernel are as hostile as its output."""
    function, file = (" ".join(plain(text[:_LONGEST]).split()) for text in (function, file))
    return Line(function, _relative(file), line)


def _relative(file: str) -> str:
    """The name in the source tree: ``././include/linux/kernel.h`` and ``/usr/src/include/linux/kernel.h`` are one file."""
    return posixpath.normpath(file).removeprefix(_SOURCE) if file else ""


def _exactly(found: list[Lines], count: int) -> tuple[Lines, ...]:
    return tuple(found[:count] + [()] * (count - len(found)))


def _run(
    argv: Sequence[str], file: Path, deadline: Deadline, text: str = "", *, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, errors="replace", timeout=deadline.remaining, check=False, cwd=cwd
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise InfrastructureError(f"{argv[0]} {file}: {exc}", hint="run it by hand; try another version of LLVM") from exc
    if check and done.returncode:
        raise _failed(argv, file, done)
    return done


def _failed(argv: Sequence[str], file: Path, done: subprocess.CompletedProcess[str]) -> InfrastructureError:
    said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return InfrastructureError(f"{argv[0]} {file}: {said}", hint="is it an ELF file with debugging information?")
