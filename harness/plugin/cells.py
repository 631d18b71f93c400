# SPDX-License-Identifier: BSD-2-Clause
"""Cells: a case runs in each combination of guest, guest type, firmware and host that it supports."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from harness.guests import registry
from harness.guests.os.base import GuestOS
from harness.hosts.pool import label
from harness.osversion import UNKNOWN, OSVersion
from harness.plugin.options import Options
from harness.results.where import Where
from harness.xen.config import entry
from harness.xen.firmware import BIOS, UEFI


@dataclass(frozen=True, repr=False)
class Cell:
    """``guest`` is one of harness.guests.registry.GUESTS; ``host`` is ``xen-4.20`` for a lab, or the name of a real host or of a pool."""

    guest: str
    type: str
    host: str
    xen: str = ""
    version: OSVersion = UNKNOWN
    """The version of the kernel under test; UNKNOWN for the control guest and for a kernel without a version."""
    firmware: str = ""
    """``uefi``, or "" for BIOS and for types without a firmware. The history uses cell names, and old ones have no firmware."""

    def __str__(self) -> str:
        return str(self.where)

    __repr__ = __str__

    @property
    def where(self) -> Where:
        """The cell as results record it."""
        return Where(self.guest, self.type, self.host, self.xen, self.firmware)

    @property
    def os_name(self) -> str:
        return self.guest_os.name

    @property
    def guest_os(self) -> GuestOS:
        """The OS of the guest, of unknown version."""
        return registry.definition(self.guest).os()

    @property
    def under_test(self) -> bool:
        """Whether the run tests this guest, that is, it is not the control guest."""
        return registry.definition(self.guest).under_test


def cell_of(item: pytest.Item) -> Cell | None:
    """The cell of a collected case; None for a test without a cell."""
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    return cell if isinstance(cell, Cell) else None


# Capabilities of labs only.
_LAB_ONLY = {"checkpoint", "emulated"}


def cells(options: Options, tested: GuestOS | None) -> tuple[Cell, ...]:
    """The cells of a run. ``tested`` is the OS of the kernel under test, if there is one."""
    hosts = [(f"xen-{xen}", xen) for xen in options.xens]
    if options.host:
        hosts = [(label(options.host), "")]
    found = []
    for guest in options.guests:
        definition = registry.definition(guest)
        given = tested if definition.under_test else None
        supported = given.types if given is not None else definition.types
        version = (given or definition.os()).os_version
        for guest_type in options.types or supported:
            if entry(guest_type) in supported:
                firmwares = _firmwares(options, guest_type)
                found += [Cell(guest, guest_type, host, xen, version, firmware) for firmware in firmwares for host, xen in hosts]
    return tuple(found)


def _firmwares(options: Options, guest_type: str) -> tuple[str, ...]:
    """The firmware parts of the cell names of a guest type; only HVM has a choice."""
    names = options.firmwares if guest_type == "hvm" else (BIOS,)
    return tuple("" if name == BIOS else name for name in names)


def everywhere(xens: tuple[str, ...]) -> tuple[Cell, ...]:
    """All possible cells, with guests of unknown version: to list the suites, not to run them."""
    guests = registry.GUESTS.values()
    found = [(guest.name, kind, "") for guest in guests for kind in guest.types]
    found += [(guest.name, "hvm", UEFI) for guest in guests if guest.uefi]
    return tuple(Cell(guest, kind, f"xen-{xen}", xen, firmware=firmware) for guest, kind, firmware in found for xen in xens)


def unmet(marks: list[pytest.Mark], cell: Cell) -> str:
    """Why ``cell`` does not meet the ``needs`` of a case, or ""."""
    for mark in marks:
        os = mark.kwargs.get("os")
        if os and os != cell.os_name:
            return f"needs {registry.of_os(os).title}"
        span = mark.kwargs.get(cell.os_name)
        if span and not cell.version.within(span):
            return f"needs {cell.guest_os.title} {span}, this is {cell.version}"
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
    spans = [name for name in registry.os_names() if kwargs.get(name)]
    if os := kwargs.get("os"):
        words += [registry.of_os(os).option]
    elif spans:
        guest = registry.of_os(spans[0])
        words += [f"{guest.option} ({guest.os.title} {kwargs[spans[0]]})"]
    if kwargs.get("types"):
        words += ["--type", ",".join(kwargs["types"])]
    wanted = set(kwargs.get("capability", ()))
    if "emulated" in wanted:
        words += ["--accel tcg"]
    if wanted - _LAB_ONLY:
        words += ["--xen-host HOST"]
    return " ".join(filter(None, words))
