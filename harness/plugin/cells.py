# SPDX-License-Identifier: BSD-2-Clause
"""Cells: a case runs in each combination of guest, guest type, firmware and host that it supports."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from harness.hosts.pool import label
from harness.osversion import UNKNOWN, OSVersion
from harness.plugin.options import Options
from harness.xen.config import entry
from harness.xen.firmware import BIOS, UEFI


@dataclass(frozen=True, repr=False)
class Cell:
    """``guest`` is control or freebsd; ``host`` is ``xen-4.20`` for a lab, or the name of a real host or of a pool."""

    guest: str
    type: str
    host: str
    xen: str = ""
    version: OSVersion = UNKNOWN
    """The version of the FreeBSD kernel; UNKNOWN for the control guest and for a kernel without a version."""
    firmware: str = ""
    """``uefi``, or "" for BIOS and for types without a firmware. The history uses cell names, and old ones have no firmware."""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.guest, self.type, self.firmware, self.host)))

    __repr__ = __str__

    @property
    def os(self) -> str:
        return "linux" if self.guest == "control" else "freebsd"


def cell_of(item: pytest.Item) -> Cell | None:
    """The cell of a collected case; None for a test that is not ours."""
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    return cell if isinstance(cell, Cell) else None


# The types of each guest. The ELF notes of a kernel may allow fewer.
_TYPES = {"control": ("pv", "pvh"), "freebsd": ("pvh", "hvm", "pv")}
# Capabilities of labs only.
_LAB_ONLY = {"checkpoint", "emulated"}


def cells(options: Options, freebsd_types: tuple[str, ...], version: OSVersion = UNKNOWN) -> tuple[Cell, ...]:
    """The cells of a run. ``freebsd_types`` are the types that the FreeBSD kernel, of ``version``, supports."""
    hosts = [(f"xen-{xen}", xen) for xen in options.xens]
    if options.host:
        hosts = [(label(options.host), "")]
    found = []
    for guest in options.guests:
        supported = freebsd_types if guest == "freebsd" else _TYPES[guest]
        for guest_type in options.types or supported:
            if entry(guest_type) in supported:
                kernel = version if guest == "freebsd" else UNKNOWN
                firmwares = _firmwares(options, guest_type)
                found += [Cell(guest, guest_type, host, xen, kernel, firmware) for firmware in firmwares for host, xen in hosts]
    return tuple(found)


def _firmwares(options: Options, guest_type: str) -> tuple[str, ...]:
    """The firmware parts of the cell names of a guest type; only HVM has a choice."""
    names = options.firmwares if guest_type == "hvm" else (BIOS,)
    return tuple("" if name == BIOS else name for name in names)


def everywhere(xens: tuple[str, ...]) -> tuple[Cell, ...]:
    """All possible cells, with a FreeBSD of unknown version: to list the suites, not to run them."""
    found = [(guest, kind, "") for guest, kinds in _TYPES.items() for kind in kinds] + [("freebsd", "hvm", UEFI)]
    return tuple(Cell(guest, kind, f"xen-{xen}", xen, firmware=firmware) for guest, kind, firmware in found for xen in xens)


def unmet(marks: list[pytest.Mark], cell: Cell) -> str:
    """Why ``cell`` does not meet the ``needs`` of a case, or ""."""
    for mark in marks:
        os = mark.kwargs.get("os")
        if os and os != cell.os:
            who = {"freebsd": "a FreeBSD guest", "linux": "the control guest"}[os]
            return f"needs {who}"
        span = mark.kwargs.get("freebsd")
        if span and cell.os == "freebsd" and not cell.version.within(span):
            return f"needs FreeBSD {span}, this is {cell.version}"
        types = mark.kwargs.get("types")
        if types and entry(cell.type) not in types:
            return f"needs guest type {' or '.join(types)}"
    return ""


def elsewhere(marks: list[pytest.Mark], nodeid: str) -> str:
    """A command that runs a skipped case in a cell that meets its needs."""
    kwargs = {key: value for mark in marks for key, value in mark.kwargs.items()}
    case = re.sub(r"\[.*", "", nodeid.rpartition("::")[2])
    suite = nodeid.split("/")[1] if "/" in nodeid else ""
    words = ["fxh run", suite, "-k", case]
    if kwargs.get("os") == "freebsd":
        words += ["--disk IMAGE"]
    elif kwargs.get("os") == "linux":
        words += ["--guest control"]
    elif kwargs.get("freebsd"):
        words += [f"--disk IMAGE (FreeBSD {kwargs['freebsd']})"]
    if kwargs.get("types"):
        words += ["--type", ",".join(kwargs["types"])]
    wanted = set(kwargs.get("capability", ()))
    if "emulated" in wanted:
        words += ["--accel tcg"]
    if wanted - _LAB_ONLY:
        words += ["--xen-host HOST"]
    return " ".join(filter(None, words))
