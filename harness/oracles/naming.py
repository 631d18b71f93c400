# SPDX-License-Identifier: BSD-2-Clause
"""Which disk is which: what a guest's disks hold, against what the table of vdev numbers says they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.xen import vdev as vdevs


@dataclass(frozen=True)
class Given:
    """A disk as it was given to the guest: its vdev in the configuration, and the digest of what it holds."""

    vdev: str
    digest: str


def misnamed(given: tuple[Given, ...], seen: Mapping[str, str], name_of: Callable[[str], str]) -> tuple[str, ...]:
    """A line for each disk that is not where it should be.

    ``seen`` maps each disk of the guest to the digest of its content; ``name_of`` is the table: from a vdev to a name.
    """
    owner = {disk.digest: disk.vdev for disk in given}
    where = {owner[digest]: name for name, digest in seen.items() if digest in owner}
    lines = []
    for disk in given:
        name = name_of(disk.vdev)
        if seen.get(name) == disk.digest:
            continue
        number = vdevs.number(disk.vdev)
        found = f"it is {where[disk.vdev]}" if disk.vdev in where else "its content is on no disk of the guest"
        if name not in seen:
            found += f", and there is no {name}"
        elif seen[name] in owner:
            found += f", and {name} holds vdev {owner[seen[name]]}"
        else:
            found += f", and {name} holds something else"
        lines.append(f"vdev {disk.vdev} (number {number}, {number:#x}) should be {name}: {found}")
    return tuple(lines)


def collisions(given: tuple[str, ...], name_of: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Names that more than one of the vdevs ``given`` maps to, with those vdevs."""
    names = Counter(map(name_of, given))
    return {name: tuple(v for v in given if name_of(v) == name) for name, count in names.items() if count > 1}


def consumer_of(conftxt: str, provider: str) -> str:
    """What the GEOM provider ``provider`` was made from, by ``kern.geom.conftxt``; "" where there is no such provider.

    Its lines (sys/geom/geom_dump.c, g_conftxt_geom()) begin with the depth below the disk, the class and the provider's name.
    """
    above: list[str] = []
    for line in conftxt.splitlines():
        # 2 LABEL ufs/FBROOT 536870912 512 i 0 o 0
        words = line.split()
        if len(words) < 3 or not words[0].isdigit():
            continue
        del above[int(words[0]) :]
        if words[2] == provider:
            return above[-1] if above else ""
        above.append(words[2])
    return ""
