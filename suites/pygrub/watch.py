# SPDX-License-Identifier: BSD-2-Clause
"""Records with which uid and root directory pygrub runs in dom0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.hosts.host import XenHost

# Until stdin closes: print each (uid, root directory) of a pygrub once. One process does all, because under emulation a process
# per poll costs more time than pygrub runs. It examines only processes that started after it.
_WATCH = """
import os, select
seen, old = set(), set(os.listdir("/proc"))
os.write(1, b"watching\\n")
while not select.select([0], [], [], 0.02)[0]:
    for pid in set(filter(str.isdigit, os.listdir("/proc"))) - old:
        try:
            words = open("/proc/%s/cmdline" % pid, "rb").read().split(b"\\0")
            if any(word.endswith(b"/pygrub") for word in words[:3]):
                uid = next(line for line in open("/proc/%s/status" % pid) if line.startswith("Uid:")).split()[2]
                seen.add((uid, os.readlink("/proc/%s/root" % pid)))
        except (OSError, StopIteration):
            continue
for uid, root in sorted(seen):
    print(uid, root)
"""


@dataclass(frozen=True)
class Process:
    """A pygrub process: its effective uid and its root directory."""

    uid: int
    root: str


@contextmanager
def watch_pygrub(host: XenHost) -> Iterator[list[Process]]:
    """Record the pygrub processes that start in the context; the list is filled when the context ends."""
    seen: list[Process] = []
    stream = host.transport.open(["python3", "-S", "-E", "-c", _WATCH])
    try:
        greeting = stream.read(100, 60)
        if greeting != b"watching\n":
            raise InfrastructureError(f"the program in dom0 that watches pygrub did not start: it printed {greeting!r}")
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
