# SPDX-License-Identifier: BSD-2-Clause
"""As whom pygrub runs in dom0, seen from dom0 while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.dom0 import pygrub_watch
from harness.hosts.host import XenHost
from harness.xen import dom0_program


@dataclass(frozen=True)
class Process:
    """A pygrub: its effective uid, and the directory that it takes for /."""

    uid: int
    root: str


@contextmanager
def watch(host: XenHost) -> Iterator[list[Process]]:
    """What was seen is in the list once the context has ended."""
    seen: list[Process] = []
    stream = dom0_program.start(host.transport, pygrub_watch)
    try:
        heard = stream.read(100, 60)
        assert heard == b"watching\n", heard
        yield seen
        stream.write(b".")
        text, deadline = b"", Deadline(60)
        while data := stream.read(4096, deadline.remaining):
            text += data
        for line in text.decode().splitlines():
            uid, _, root = line.partition(" ")
            seen.append(Process(int(uid), root))
    finally:
        stream.close()
