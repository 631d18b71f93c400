# SPDX-License-Identifier: BSD-2-Clause
"""Reads the label of a ZFS vdev: its pool, and whether the pool was exported.

Sources: sys/contrib/openzfs/include/sys/vdev_impl.h (vdev_label_t: four labels of 256 KiB, the nvlist 16 KiB into each),
sys/cddl/boot/zfs/zfsimpl.h (nvlists in XDR), sys/contrib/openzfs/include/sys/fs/zfs.h (pool_state_t). A pool that FreeBSD's makefs
writes is EXPORTED (usr.sbin/makefs/zfs.c, pool_config_nvcreate()), and so are the official images until their first boot.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from harness.images.window import Window

_LABEL, _AT, _SIZE = 256 << 10, 16 << 10, 112 << 10
_XDR = 1
_UINT64, _STRING, _NVLIST, _NVLISTS = 8, 9, 19, 20
_STATES = ("active", "exported", "destroyed", "spare", "l2cache")
_DEPTH = 8
_CHILDREN = 256


@dataclass(frozen=True)
class Pool:
    """``state`` is active (in use, or not exported when its system stopped), exported, destroyed, ...; ``layout`` is the type of
    this disk's top-level vdev: ``disk`` if the vdev consists of this disk. ``vdevs`` counts the pool's top-level vdevs."""

    name: str
    state: str
    layout: str
    vdevs: int

    @property
    def alone(self) -> bool:
        """Whether the pool is on this disk only."""
        return self.layout in ("disk", "file") and self.vdevs == 1


def read(volume: Window) -> Pool | None:
    """The pool of a vdev, from its newest label; None without a label."""
    end = volume.size // _LABEL * _LABEL
    best: tuple[int, dict[str, Any]] | None = None
    for at in (0, _LABEL, end - 2 * _LABEL, end - _LABEL):
        try:
            found = parse(volume.read(at + _AT, _SIZE)) if at >= 0 else {}
        except ValueError:
            continue
        txg = found.get("txg")
        if isinstance(txg, int) and isinstance(found.get("name"), str) and (best is None or txg > best[0]):
            best = txg, found
    if best is None:
        return None
    data = best[1]
    state, tree = data.get("state"), data.get("vdev_tree")
    word = _STATES[state] if isinstance(state, int) and state < len(_STATES) else f"state {state}"
    layout = tree.get("type") if isinstance(tree, dict) else ""
    vdevs = data.get("vdev_children")
    return Pool(data["name"], word, layout if isinstance(layout, str) else "", vdevs if isinstance(vdevs, int) else 1)


def parse(data: bytes) -> dict[str, Any]:
    """A packed nvlist in XDR: its numbers, texts and nvlists by name, without other types. Raises ValueError."""
    if len(data) < 12 or data[0] != _XDR:
        raise ValueError("no nvlist in XDR")
    try:
        return _pairs(data, 4, len(data), 0)[0]
    except (struct.error, UnicodeDecodeError) as exc:
        raise ValueError(f"a damaged nvlist ({exc})") from None


def _pairs(data: bytes, at: int, end: int, depth: int) -> tuple[dict[str, Any], int]:
    """The pairs of the nvlist at ``at``, and its end, which is before ``end``: so none is read twice at one depth."""
    if depth > _DEPTH:
        raise ValueError(f"nvlists within each other, {depth} deep")
    found: dict[str, Any] = {}
    at += 8  # version, flags
    while True:
        begin = at
        size, _ = struct.unpack_from(">II", data, at)
        if size == 0:
            return found, at + 8
        after = begin + size
        if size < 20 or after > end:
            raise ValueError(f"a pair of {size} bytes")
        name, at = _text(data, at + 8)
        kind, count = struct.unpack_from(">II", data, at)
        at += 8
        if kind == _UINT64 and count == 1:
            (found[name],) = struct.unpack_from(">Q", data, at)
        elif kind == _STRING and count == 1:
            found[name], _ = _text(data, at)
        elif kind == _NVLIST:
            found[name], _ = _pairs(data, at, after, depth + 1)
        elif kind == _NVLISTS and count <= _CHILDREN:
            children = []
            for _ in range(count):
                child, at = _pairs(data, at, after, depth + 1)
                children.append(child)
            found[name] = children
        at = after


def _text(data: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from(">I", data, at)
    if size > len(data) - at - 4:
        raise ValueError(f"a text of {size} bytes")
    return data[at + 4 : at + 4 + size].decode(), at + 4 + (size + 3 & ~3)
