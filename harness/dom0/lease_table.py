# SPDX-License-Identifier: BSD-2-Clause
"""Part of the lease agent: the leases of this host.

A lease is a file in ``<base>/leases``. Its agent holds a lock on it (flock). The kernel releases the lock when the process ends for
any reason, so a reused pid cannot keep a dead lease alive. File names begin with a ticket number, the order of arrival.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import time
from collections.abc import Iterator
from typing import Any

# Images in <base>/files are shared by runs. They are removed when no run has used them for this long.
FILES_DAYS = 14


def stats(pattern: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files that match ``pattern``, without those that another agent removes or renames meanwhile."""
    for path in glob.glob(pattern):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            continue
        yield path, found


def unlink(path: str) -> None:
    """Remove a file, if another agent has not."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class LeaseTable:
    """The leases of this host. Use it within ``with``, which locks the whole table."""

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

    def add(self, entry: dict[str, Any]) -> tuple[str, int]:
        """Append an entry to the queue. Returns its path and the file descriptor that holds its lock."""
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
        """Overwrite an entry in place: a new file under the same name would not have the lock."""
        data = json.dumps(entry).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)

    def entries(self, own: str = "") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The entries with a living agent, in the order of their tickets, and those without. Each has its ``path``.

        ``own`` is the path of the caller's entry, which counts as living.
        """
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
                if path == own:
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

    def unused_files(self) -> list[str]:
        """Images that no run has used for FILES_DAYS."""
        limit = time.time() - FILES_DAYS * 86400
        return [path for path, found in stats(self.base + "/files/*") if found.st_mtime < limit]
