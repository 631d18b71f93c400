# SPDX-License-Identifier: BSD-2-Clause
"""Judges the names of a guest's disks: compares the content of each disk with the name that its vdev number gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.xen import vdev as vdevs


@dataclass(frozen=True)
class Given:
    """A disk that was given to the guest: its vdev in the configuration and the digest of its content."""

    vdev: str
    digest: str


def misnamed(given: tuple[Given, ...], seen: Mapping[str, str], name_of: Callable[[str], str]) -> tuple[str, ...]:
    """Return a line for each disk whose content is not under the expected name.

    ``seen`` maps each disk name in the guest to the digest of its content. ``name_of`` maps a vdev to the expected name.
    """
    owner = {disk.digest: disk.vdev for disk in given}
    where = {owner[digest]: name for name, digest in seen.items() if digest in owner}
    lines = []
    for disk in given:
        name = name_of(disk.vdev)
        if seen.get(name) == disk.digest:
            continue
        number = vdevs.number(disk.vdev)
        found = f"it is {where[disk.vdev]}" if disk.vdev in where else "no disk of the guest has its content"
        if name not in seen:
            found += f", and there is no {name}"
        elif seen[name] in owner:
            found += f", and {name} holds vdev {owner[seen[name]]}"
        else:
            found += f", and {name} holds unknown data"
        lines.append(f"vdev {disk.vdev} (number {number}, {number:#x}) should be {name}: {found}")
    return tuple(lines)


def collisions(given: tuple[str, ...], name_of: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Return the names that more than one of the vdevs ``given`` maps to, each with these vdevs."""
    names = Counter(map(name_of, given))
    return {name: tuple(v for v in given if name_of(v) == name) for name, count in names.items() if count > 1}


def consumer_of(conftxt: str, provider: str) -> str:
    """Return the GEOM provider below ``provider`` in ``kern.geom.conftxt``; "" for a disk and for an unknown provider.

    Each line begins with the depth below the disk, the class and the provider's name (sys/geom/geom_dump.c, g_conftxt_geom()).
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


def extent_of(conftxt: str, partition: str) -> tuple[int, int] | None:
    """Return the first byte of a partition of a disk and its size in bytes, by ``kern.geom.conftxt``.

    None for an unknown partition and for one within another, whose offset counts from there.
    Source: sys/geom/part/g_part.c, g_part_dumpconf()
    """
    for line in conftxt.splitlines():
        # 1 PART xbd0p3 67108864 512 i 3 o 1073774592 ty freebsd-swap xs GPT xt 516e7cb5-6ecf-11d6-8ff8-00022d09712b
        words = line.split()
        if words[:3] == ["1", "PART", partition] and words[7:8] == ["o"]:
            return int(words[8]), int(words[3])
    return None
