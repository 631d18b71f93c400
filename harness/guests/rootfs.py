# SPDX-License-Identifier: BSD-2-Clause
"""Finds the disk of a FreeBSD guest's root, which is a device, a GEOM label, or a ZFS dataset."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import InfrastructureError
from harness.guests.os.values import Run
from harness.oracles.naming import consumer_of


def spec(root: str) -> str:
    """``root`` of a GuestSource as a value of vfs.root.mountfrom.

    >>> spec("xbd0p2"), spec("zfs:zroot/ROOT/default")
    ('ufs:/dev/xbd0p2', 'zfs:zroot/ROOT/default')
    """
    return root if root.startswith(("ufs:", "zfs:")) else f"ufs:/dev/{root}"


def mounted_as(root: str) -> str:
    """The device column of ``mount -p`` for ``root``.

    >>> mounted_as("xbd0p2"), mounted_as("zfs:zroot/ROOT/default")
    ('/dev/xbd0p2', 'zroot/ROOT/default')
    """
    return spec(root).partition(":")[2]


@dataclass(frozen=True)
class Member:
    """A disk of a pool: ``name`` as zpool(8) shows it, its state, and its read, write and checksum errors."""

    name: str
    state: str
    errors: tuple[int, int, int]


@dataclass(frozen=True)
class Pool:
    """A ZFS pool. ``errors`` is the last line of ``zpool status``: ``No known data errors``."""

    name: str
    state: str
    errors: str
    members: tuple[Member, ...]


#   pool: zroot
_FIELD = re.compile(r"^ *(pool|state|errors): (.*)$", re.MULTILINE)
# 	  gpt/rootfs  ONLINE       0     0     0
_MEMBER = re.compile(r"^\t {2,}(\S+) +([A-Z]+) +(\d+) +(\d+) +(\d+)", re.MULTILINE)


def parse_status(text: str) -> Pool:
    """Parse the output of ``zpool status -p POOL`` (-p: exact numbers). Raises InfrastructureError if it shows no pool."""
    fields = {name: value.strip() for name, value in _FIELD.findall(text)}
    if not {"pool", "state", "errors"} <= fields.keys():
        raise InfrastructureError(f"not the output of `zpool status`: {text[:200]!r}")
    members = tuple(Member(name, state, (int(r), int(w), int(c))) for name, state, r, w, c in _MEMBER.findall(text))
    return Pool(fields["pool"], fields["state"], fields["errors"], members)


def status(run: Run, pool: str) -> Pool:
    """Run ``zpool status`` in the guest."""
    return parse_status(run(f"zpool status -p {pool}"))


def device(run: Run, mounted: str) -> str:
    """The disk or partition, without /dev/, of a root that is mounted as ``mounted``: ``xbd0p4``; "" if none is found."""
    if mounted.startswith("/dev/"):
        return provider(run, mounted.removeprefix("/dev/"))
    members = status(run, mounted.partition("/")[0]).members
    return provider(run, members[0].name) if members else ""


def provider(run: Run, name: str) -> str:
    """The partition behind a GEOM label (``gpt/rootfs``, ``ufs/FBROOT``); any other name unchanged."""
    name = name.removeprefix("/dev/")
    if "/" not in name:
        return name
    return consumer_of(run("sysctl -n kern.geom.conftxt"), name)
