# SPDX-License-Identifier: BSD-2-Clause
"""Files that record which places the processes of this user hold. Each is locked (flock) by its holder.

A coordinator keeps a place acquired when its client dies. The kernel releases the lock of a file whose holder ended for any reason,
so the next process finds such a place and releases it. Several workers of a user can share a place; the last one releases it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Seconds to wait for another process of the user, which may talk to a coordinator that does not answer.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Claim:
    """A place held by a process. ``owner`` is the name (``HOST/USER``) that the coordinator has for the acquisition."""

    coordinator: str
    place: str
    owner: str


class Claims:
    """The claims in ``directory``. Change them only inside :meth:`exclusive`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._own: dict[Path, int] = {}

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Keep out other processes. Raises TimeoutError after 60 s."""
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = time.monotonic() + _PATIENCE
            while not _lock(descriptor):
                if time.monotonic() > end:
                    raise TimeoutError(f"{self._directory}: locked by another process for {_PATIENCE:.0f} s")
                await asyncio.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def add(self, claim: Claim) -> Path:
        """Record a claim of this process, before the place is acquired. Returns its file."""
        path = self._directory / f"{os.getpid()}-{time.monotonic_ns()}.json"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(asdict(claim)).encode())
        self._own[path] = descriptor
        return path

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if path in self._own:
            os.close(self._own.pop(path))

    def abandon(self, path: Path) -> None:
        """Leave the file of a place that could not be released to the next process."""
        os.close(self._own.pop(path))

    def all(self) -> dict[Path, tuple[Claim, bool]]:
        """The claims by their file, and whether their process lives."""
        found: dict[Path, tuple[Claim, bool]] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                living = not _lock(descriptor)
                found[path] = Claim(**json.loads(os.read(descriptor, 1 << 16))), living
            except (ValueError, TypeError):  # its process was killed before it acquired anything
                if not living:
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        return found

    def living(self) -> list[Claim]:
        return [claim for claim, living in self.all().values() if living]

    def stale(self) -> dict[Path, Claim]:
        """The claims whose process has ended."""
        return {path: claim for path, (claim, living) in self.all().items() if not living}


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
