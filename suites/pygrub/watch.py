# SPDX-License-Identifier: BSD-2-Clause
"""As whom pygrub runs in dom0, seen from dom0 while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.hosts.host import XenHost

# Until its stdin ends: each (uid, root directory) with which a pygrub was seen, once. One process, since each other would
# cost more time under emulation than there is between two looks; and only at processes that began since.
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
    """A pygrub: its effective uid, and the directory that it takes for /."""

    uid: int
    root: str


@contextmanager
def watch(host: XenHost) -> Iterator[list[Process]]:
    """What was seen is in the list once the context has ended."""
    seen: list[Process] = []
    stream = host.transport.open(["python3", "-S", "-E", "-c", _WATCH])
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
