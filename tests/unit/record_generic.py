# SPDX-License-Identifier: BSD-2-Clause
"""Records a tree's GENERIC for test_source_build.py: the names of devices and options, and those that Xen's guest code needs.

    python tests/unit/record_generic.py /usr/src OBJECTS > tests/unit/data/generic-15.1.json

OBJECTS is the object directory of a linked kernel of that tree (``.../sys/XENA``). A name is needed if only that name compiles a
source of the subsystem, or a source that defines a symbol which the subsystem uses.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from harness.images import conffiles, srctree
from harness.images.conffiles import KernelSource

_SUBSYSTEMS = {
    "xen": ("dev/xen/", "x86/xen/", "xen/"),
    "netfront": ("dev/xen/netfront/",),
    "blkfront": ("dev/xen/blkfront/",),
    "pf": ("netpfil/pf/",),
    "console": (
        "dev/xen/console/", "dev/uart/uart_core", "dev/uart/uart_tty", "dev/uart/uart_dev_ns8250", "dev/uart/uart_bus_acpi",
        "dev/uart/uart_bus_isa", "kern/tty", "kern/kern_cons", "dev/vt/vt_core", "dev/vt/hw/",
    ),
}  # fmt: skip


def record(tree: srctree.SourceTree, objects: Path) -> dict[str, object]:
    generic = tree.read("sys/amd64/conf/GENERIC")
    names = conffiles.names(tree, "GENERIC", {}) | {"pf", "pflog", "nullfs"}
    sources = [source for source in conffiles.sources(tree) if source.selected(names)]
    by_object = {_object(source): source for source in sources}
    used, defined = symbols(objects)
    needs = {}
    for subsystem, prefixes in _SUBSYSTEMS.items():
        found: set[str] = set()
        for source in sources:
            if source.path.startswith(prefixes):
                others = {defined[symbol] for symbol in used[_object(source)] if symbol in defined}
                for needed in [source, *(by_object[name] for name in others if name in by_object)]:
                    found |= only_alternative(needed, names)
        needs[subsystem] = sorted(found)
    return {
        "devices": sorted(set(re.findall(r"^device\s+(\w+)", generic, re.MULTILINE))),
        "options": sorted(set(re.findall(r"^options\s+(\w+)", generic, re.MULTILINE))),
        "needs": needs,
    }


def only_alternative(source: KernelSource, names: frozenset[str]) -> set[str]:
    """The names that ``source`` needs to be compiled; empty if two alternatives select it."""
    holding = [words for words in source.alternatives if KernelSource(source.path, (words,)).selected(names)]
    return {word for word in holding[0] if not word.startswith("!")} if len(holding) == 1 else set()


def symbols(objects: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    """The undefined symbols of each object file, and the object that defines each global symbol."""
    output = subprocess.run(
        ["nm", "-A", "-g", *map(str, objects.glob("[!.]*.o"))], capture_output=True, text=True, check=True
    ).stdout
    used: dict[str, set[str]] = defaultdict(set)
    defined: dict[str, str] = {}
    for line in output.splitlines():
        file, _, rest = line.partition(":")
        *_, kind, symbol = rest.split()
        if kind == "U":
            used[Path(file).name].add(symbol)
        elif kind in "TDBRVWC":
            defined.setdefault(symbol, Path(file).name)
    return used, defined


def _object(source: KernelSource) -> str:
    return f"{Path(source.path).stem}.o"


if __name__ == "__main__":
    print(json.dumps(record(srctree.find(Path(sys.argv[1])), Path(sys.argv[2])), indent=1))
