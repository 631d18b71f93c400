# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0, as part of the keeper: the book of leases.

A lease is a file in ``<base>/leases`` that its keeper has locked (flock): the kernel gives the lock back when the process
dies, however it dies, and no number is taken for a living process that is not. The numbers in front are tickets: who came
first is served first.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import time
from typing import Any

# For so long an image put here for several runs is kept after its last use.
FILES_DAYS = 14


class LeaseTable:
    """The leases of this host. Use it within ``with``: that takes the lock of all."""

    def __init__(self, base: str) -> None:
        self.base, self.directory = base, base + "/leases"
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self._lock = os.open(base + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> LeaseTable:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *exc: object) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def paths(self) -> list[str]:
        return sorted(glob.glob(self.directory + "/[0-9]*.json"))

    def make(self, entry: dict[str, Any]) -> tuple[str, int]:
        """A new entry at the end of the queue; returns its path and the descriptor that holds it."""
        counter = self.base + "/ticket"
        try:
            with open(counter) as file:
                ticket = int(file.read() or 0) + 1
        except (OSError, ValueError):
            ticket = 1
        ticket = max([ticket, *(int(os.path.basename(p).split("-")[0]) + 1 for p in self.paths())])
        with open(counter, "w") as file:
            file.write(str(ticket))
        path = "%s/%08d-%s.json" % (self.directory, ticket, entry["run"])
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.write(descriptor, entry)
        return path, descriptor

    @staticmethod
    def write(descriptor: int, entry: dict[str, Any]) -> None:
        """In place: another file of that name would not be the one that is locked."""
        data = json.dumps(entry).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)

    def entries(self, mine: str = "") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The living, in the order of their tickets, and the dead. Each has its ``path``."""
        living, dead = [], []
        for path in self.paths():
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                try:
                    entry = json.loads(os.read(descriptor, 1 << 16) or b"{}")
                except ValueError:
                    entry = {}
                entry["path"] = path
                entry.setdefault("run", os.path.basename(path)[9:-5])
                if path == mine:
                    living.append(entry)
                    continue
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    dead.append(entry)
                except OSError:
                    living.append(entry)
            finally:
                os.close(descriptor)
        return living, dead

    def files(self) -> list[str]:
        """Images that no run has used for long."""
        old = time.time() - FILES_DAYS * 86400
        return [path for path in glob.glob(self.base + "/files/*") if os.stat(path).st_mtime < old]
