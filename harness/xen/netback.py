# SPDX-License-Identifier: BSD-2-Clause
"""Reads the rings of Linux's netback from /sys/kernel/debug/xen-netback/vifN.M/io_ring_q*.

The guest shares these rings, and it writes some of the indices: they may hold any number.
Source: drivers/net/xen-netback/xenbus.c, xenvif_read_io_ring().
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# TX: nr_ents 256
_RING = re.compile(r"\b([TR]X): nr_ents (\d+)")
# req prod 512 (256) cons 512 (256) event 513 (257)
_REQUESTS = re.compile(r"\breq prod (\d+) \(-?\d+\) cons (\d+) ")
# rsp prod 256 (base) pvt 256 (0) event 257 (1)
_RESPONSES = re.compile(r"\brsp prod (\d+) \(base\)")
# Queue 0
_QUEUE = re.compile(r"\bQueue (\d+)\b")


@dataclass(frozen=True)
class Ring:
    """One direction of a queue. ``kind`` is TX (from the guest) or RX (to the guest); the other fields are indices modulo 2^32.

    ``requested`` is the guest's last request, ``consumed`` the last one that netback took, and ``answered`` its last response.
    """

    queue: int
    kind: str
    size: int
    requested: int
    consumed: int
    answered: int

    @property
    def waiting(self) -> int:
        """Requests that netback has not taken: frames to send (TX), or buffers for frames to the guest (RX)."""
        return (self.requested - self.consumed) % (1 << 32)


def described(found: Iterable[Ring]) -> str:
    """``netback: queue 0: 0 frames wait, 256 buffers`` for the rings of one vif; "" without rings."""
    words: dict[int, list[str]] = {}
    for ring in found:
        words.setdefault(ring.queue, []).append(f"{ring.waiting} {'frames wait' if ring.kind == 'TX' else 'buffers'}")
    return "netback: " + "; ".join(f"queue {queue}: {', '.join(parts)}" for queue, parts in words.items()) if words else ""


def rings(text: str) -> tuple[Ring, ...]:
    """The rings in the concatenated files of one vif, with or without the file's name at the start of each line."""
    found: list[Ring] = []
    queue, kind, size, requests = 0, "", 0, (0, 0)
    for line in text[: 1 << 16].splitlines():
        if match := _QUEUE.search(line):
            queue = int(match[1])
        if match := _RING.search(line):
            kind, size = match[1], int(match[2])
        elif match := _REQUESTS.search(line):
            requests = (int(match[1]), int(match[2]))
        elif kind and (match := _RESPONSES.search(line)):
            found.append(Ring(queue, kind, size, *requests, int(match[1])))
            kind = ""
    return tuple(found)
