# SPDX-License-Identifier: BSD-2-Clause
"""Cells: every case runs once for each combination of guest, guest type and host that it can run in."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from harness.hosts.pool import label
from harness.osversion import UNKNOWN, OSVersion
from harness.plugin.options import Options
from harness.results.where import Where
from harness.xen.config import entry
from harness.xen.firmware import BIOS, UEFI


@dataclass(frozen=True, repr=False)
class Cell:
    """``guest`` is control or freebsd; ``host`` is ``xen-4.20`` for a lab, or the name of a real host or a pool of them."""

    guest: str
    type: str
    host: str
    xen: str = ""
    version: OSVersion = UNKNOWN
    """The version of the FreeBSD kernel; UNKNOWN for the control guest, and if nobody knows."""
    firmware: str = ""
    """``uefi``, or empty for every cell that had a name before there was a choice: the history goes by names."""

    def __str__(self) -> str:
        return str(self.where)

    __repr__ = __str__

    @property
    def where(self) -> Where:
        """The cell as results record it."""
        return Where(self.guest, self.type, self.host, self.xen, self.firmware)

    @property
    def os(self) -> str:
        return "linux" if self.guest == "control" else "freebsd"


# What the guests can be, before any file was looked at; the kernel's own notes may allow less.
_TYPES = {"control": ("pv", "pvh"), "freebsd": ("pvh", "hvm", "pv")}
# Capabilities that no real host has.
_LAB_ONLY = {"checkpoint", "emulated"}


def cells(options: Options, freebsd_types: tuple[str, ...], version: OSVersion = UNKNOWN) -> tuple[Cell, ...]:
    """All cells that were asked for. ``freebsd_types`` are those that the given kernel, of ``version``, can be."""
    hosts = [(f"xen-{xen}", xen) for xen in options.xens]
    if options.host:
        hosts = [(label(options.host), "")]
    found = []
    for guest in options.guests:
        able = freebsd_types if guest == "freebsd" else _TYPES[guest]
        for guest_type in options.types or able:
            if entry(guest_type) in able:
                own = version if guest == "freebsd" else UNKNOWN
                kinds = _firmwares(options, guest_type)
                found += [Cell(guest, guest_type, host, xen, own, firmware) for firmware in kinds for host, xen in hosts]
    return tuple(found)


def _firmwares(options: Options, guest_type: str) -> tuple[str, ...]:
    """The cells' firmwares of a guest type: only HVM has a choice."""
    asked = options.firmwares if guest_type == "hvm" else (BIOS,)
    return tuple("" if firmware == BIOS else firmware for firmware in asked)


def everywhere(xens: tuple[str, ...]) -> tuple[Cell, ...]:
    """All cells that there could be, of a FreeBSD whose release nobody knows: for looking at the suites, not for running."""
    ways = [(guest, kind, "") for guest, kinds in _TYPES.items() for kind in kinds] + [("freebsd", "hvm", UEFI)]
    return tuple(Cell(guest, kind, f"xen-{xen}", xen, firmware=firmware) for guest, kind, firmware in ways for xen in xens)


def unmet(marks: list[pytest.Mark], cell: Cell) -> str:
    """Why a case that declares ``needs`` cannot run in ``cell``, or ""."""
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
    """The command that would run a skipped case where its needs are met."""
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
