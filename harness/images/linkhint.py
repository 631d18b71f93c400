# SPDX-License-Identifier: BSD-2-Clause
"""Explains a kernel that does not link: the device or option that defines each undefined symbol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.images import conffiles
from harness.images.conffiles import KernelSource
from harness.images.srctree import SourceTree

# ld: error: undefined symbol: xen_clock_init        ld.lld: error: undefined symbol: _libmd_SHA512_Init
_UNDEFINED = re.compile(r"ld(?:\.lld)?: error: undefined symbol: (\w+)$", re.MULTILINE)
# sys/crypto/sha2/sha512.h and similar headers rename their functions for the linker only.
_RENAMED = re.compile(r"^_libmd_")
_SHOWN = 12


def undefined(log: str) -> tuple[str, ...]:
    """The symbols that the linker did not find, each once, in the order of the log."""
    return tuple(dict.fromkeys(_UNDEFINED.findall(log)))


def explain(log: str, tree: SourceTree, names: frozenset[str]) -> list[str]:
    """One line for each undefined symbol of ``log`` whose source is not in the configuration; [] without such a symbol.

    ``names`` are the lower-case devices and options of the configuration (:func:`conffiles.names`).
    """
    symbols = undefined(log)
    if not symbols:
        return []
    left_out = [source for source in conffiles.sources(tree) if not source.selected(names) and not source.generated]
    found = []
    for symbol in symbols[:_SHOWN]:
        source = _defining(symbol, left_out, tree.path / "sys")
        if source is not None:
            wanted = " and ".join(_config_line(name, tree) for name in source.lacking(names))
            found.append(f"{symbol} is defined in sys/{source.path}: keep {wanted or 'that file'}")
    return found


def _defining(symbol: str, sources: Sequence[KernelSource], sys: Path) -> KernelSource | None:
    """The source that defines ``symbol``: the name begins a line (style(9)), or is in a line that begins with its type."""
    bare = _RENAMED.sub("", symbol)
    wanted = re.compile(rf"^(?:[A-Za-z_][\w \t*]*[ \t*])?{re.escape(bare)}\s*(?:\(|=|\[|;)", re.MULTILINE)
    for source in sources:
        path = sys / source.path
        if path.suffix not in (".c", ".S") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if bare in text and any(not _declares(match[0]) for match in wanted.finditer(text)):
            return source
    return None


def _declares(line: str) -> bool:
    """Whether a matched line only declares or uses the name."""
    return line.lstrip().startswith(("extern", "return", "goto", "else", "case"))


def _config_line(name: str, tree: SourceTree) -> str:
    """The line of a configuration file for ``name``: sys/conf/options* lists every option, so any other name is a device."""
    known = tree.read("sys/conf/options") + tree.read("sys/conf/options.amd64") + tree.read("sys/conf/options.x86")
    option = re.search(rf"^({re.escape(name)})\s", known, re.MULTILINE | re.IGNORECASE)
    return f"`options {option[1]}`" if option else f"`device {name}`"
