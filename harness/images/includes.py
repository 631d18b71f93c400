# SPDX-License-Identifier: BSD-2-Clause
"""Finds headers that sources include and the tree lacks, without a compiler.

Only two forms count:

* ``#include "../../sys/arm/include/vmparam.h"``: relative to the file that includes it;
* ``#include <dev/xen/blkfront/block.h>`` in the kernel: below sys/, if that directory exists.

A complete tree must not be refused. So a header counts as missing only if no path of the tree ends with its name. A compiler may
find ``<xen/xen.h>`` in sys/contrib, and ``"../a/b.h"`` below a directory of -I. An include that depends on an #if does not count,
apart from the guard of a header. The build generates some headers; those names do not count either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# A string may contain the marks of a comment, and a comment those of a string.
_COMMENT = re.compile(r"""("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|//[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else|endif|define|include)\b[ \t]*(.*)", re.MULTILINE)
_NAME = re.compile(r'(["<])([^">]+)[">]')
# The kernel's build makes links to these directories: sys/conf/kern.post.mk.
_LINKED = {"machine": "amd64/include", "x86": "x86/include", "i386": "i386/include"}
# sys/conf/kern.pre.mk and tools/makeobjops.awk: the options of config(8), the interfaces of *_if.m, and lists of devices.
_GENERATED = re.compile(r"/opt_[^/]*$|_if\.h$|devs\.h$|devs_data\.h$")


def unconditional(text: str, *, header: bool) -> list[tuple[str, str]]:
    """The includes of a file that depend on no #if: the opening quotation mark or bracket, and the name. A ``header`` may have a guard."""
    directives = [(match[1], match[2].strip()) for match in _DIRECTIVE.finditer(_COMMENT.sub(lambda match: match[1] or " ", text))]
    first = [word for word, _ in directives[:2]]
    guarded = header and first == ["ifndef", "define"] and directives[1][1].split()[:1] == [directives[0][1]]
    found, depth = [], 0
    for word, rest in directives[2:] if guarded else directives:
        if word in ("if", "ifdef", "ifndef"):
            depth += 1
        elif word == "endif":
            depth -= 1
        elif word == "include" and depth == 0 and (match := _NAME.match(rest)):
            found.append((match[1], match[2]))
        if depth < 0 or (depth == 0 and word in ("elif", "else")):
            break  # The end of the guard, or a file that this does not understand.
    return found


def absent(tree: Path, sources: Iterable[str], *, kernel: bool) -> set[str]:
    """The headers that ``sources`` include and ``tree`` lacks, also through other headers. All paths are relative to ``tree``."""
    missing: dict[str, str] = {}
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
        for quote, name in unconditional(text, header=path.endswith(".h")):
            header = _place(tree, path, quote, name, kernel)
            if header and os.path.exists(tree / header):  # noqa: PTH110
                waiting.append(header)
            elif header and not _GENERATED.search(header):
                missing[header] = "/" + re.sub(r"^(?:\.\./)+", "", name)
    return missing.keys() - _elsewhere(tree, missing) if missing else set()


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


def _elsewhere(tree: Path, ends: Mapping[str, str]) -> set[str]:
    """The keys of ``ends`` whose value is the end of some path of the tree."""
    names = {end.rpartition("/")[2] for end in ends.values()}
    present = [f"{top}/{file}" for top, _, files in os.walk(tree) for file in names.intersection(files)]
    return {header for header, end in ends.items() if any(path.endswith(end) for path in present)}
