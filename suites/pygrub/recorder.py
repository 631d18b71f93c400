# SPDX-License-Identifier: BSD-2-Clause
"""Records with which uid and root directory pygrub runs in dom0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.dom0 import pygrub_recorder
from harness.errors import InfrastructureError
from harness.hosts.host import XenHost
from harness.xen import dom0_program


@dataclass(frozen=True)
class Process:
    """A pygrub process: its effective uid and its root directory."""

    uid: int
    root: str


@contextmanager
def record_pygrub(host: XenHost) -> Iterator[list[Process]]:
    """Record the pygrub processes that start in the context; the list is filled when the context ends."""
    seen: list[Process] = []
    stream = dom0_program.start(host.transport, pygrub_recorder)
    try:
        greeting = stream.read(100, 60)
        if greeting != b"recording\n":
            raise InfrastructureError(f"the recorder of pygrub in dom0 did not start: it printed {greeting!r}")
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
