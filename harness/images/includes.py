# SPDX-License-Identifier: BSD-2-Clause
"""Finds headers that sources include and the tree lacks, without a compiler.

Only includes whose place is certain count, so that a complete tree is never refused:

* ``#include "../../sys/arm/include/vmparam.h"``: relative to the file that includes it;
* ``#include <dev/xen/blkfront/block.h>`` in the kernel: below sys/, if that directory exists and no other directory of the kernel has
  a file with the whole name (``<xen/xen.h>`` is sys/contrib/xen/xen.h).

An include that depends on an #if does not count, apart from the guard of a header. The build generates some headers; those names do
not count either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(if|ifdef|ifndef|endif|define|include)\b[ \t]*(.*)", re.MULTILINE)
_NAME = re.compile(r'(["<])([^">]+)[">]')
# The kernel's build makes links to these directories: sys/conf/kern.post.mk.
_LINKED = {"machine": "amd64/include", "x86": "x86/include"}
# sys/conf/kern.pre.mk and tools/makeobjops.awk: the options of config(8), the interfaces of *_if.m, and lists of devices.
_GENERATED = re.compile(r"/opt_[^/]*$|_if\.h$|devs\.h$|devs_data\.h$")


def unconditional(text: str) -> list[tuple[str, str]]:
    """The includes of a file that depend on no #if: the opening quotation mark or bracket, and the name."""
    found, depth = [], 0
    directives = [(match[1], match[2].strip()) for match in _DIRECTIVE.finditer(_COMMENT.sub("", text))]
    guarded = [word for word, _ in directives[:2]] == ["ifndef", "define"] and directives[1][1].split()[:1] == [directives[0][1]]
    if guarded:
        directives = directives[2:]
    for word, rest in directives:
        if word in ("if", "ifdef", "ifndef"):
            depth += 1
        elif word == "endif":
            depth -= 1
            if depth < 0 and guarded:
                break
        elif word == "include" and depth == 0 and (match := _NAME.match(rest)):
            found.append((match[1], match[2]))
    return found


def absent(tree: Path, sources: Iterable[str], *, kernel: bool) -> set[str]:
    """The headers that ``sources`` include and ``tree`` lacks, also through other headers. All paths are relative to ``tree``."""
    missing: set[str] = set()
    seen: set[str] = set()
    waiting = list(sources)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            text = (tree / path).read_text(errors="replace")
        except OSError:
            continue  # The caller reports sources that are missing.
        for quote, name in unconditional(text):
            header = _place(tree, path, quote, name, kernel)
            if header and os.path.exists(tree / header):  # noqa: PTH110
                waiting.append(header)
            elif header and not _GENERATED.search(header):
                missing.add(header)
    return missing - _elsewhere(tree, missing) if kernel and missing else missing


def _place(tree: Path, path: str, quote: str, name: str, kernel: bool) -> str:
    """Where the header must be, relative to ``tree``, or "" if that is not certain."""
    if quote == '"':
        found = os.path.normpath(f"{os.path.dirname(path)}/{name}")  # noqa: PTH120
        certain = name.startswith("../") or os.path.exists(tree / found)  # noqa: PTH110
        return found if certain and not found.startswith("..") else ""
    if quote == "<" and kernel and "/" in name:
        first, _, rest = name.partition("/")
        below = f"sys/{_LINKED.get(first, first)}/{rest}"
        return below if (tree / below).parent.is_dir() else ""
    return ""


def _elsewhere(tree: Path, headers: set[str]) -> set[str]:
    """Those of ``headers``, paths below sys/, that another directory below sys/ has with the same name and directories."""
    names = {header.removeprefix("sys"): header for header in headers}
    ends = {name.rpartition("/")[2] for name in names}
    present = (f"{top}/{file}" for top, _, files in os.walk(tree / "sys") for file in ends.intersection(files))
    return {header for path in present for name, header in names.items() if path.endswith(name)}
