# SPDX-License-Identifier: BSD-2-Clause
"""The record of a host that all processes of this machine share: when its power was cycled, and why it is not used."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness import paths, stamp
from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.hosts import operator_command
from harness.safetext import plain

# Seconds for which a power cycle counts.
_HOUR = 3600.0
# Seconds to wait for the lock at once, so that a wait can be ended.
_TRY = 0.5

HUNG, UNPREPARED = "hung", "unprepared"
"""Why a host is set aside. A successful preparation ends only the second."""


class HostSetAside(InfrastructureError):
    """A host is not used until its operator has repaired it."""


class HostRecord:
    """The record of the host ``name`` of fxh.toml. It is in the store, with the serial log of the host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = directory(name)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self.directory / "record.json"
        self._holder_file = self.directory / "holder"
        self._lock = FileLock(self.directory / "lock", thread_local=False)

    @contextlib.contextmanager
    def locked(self, stop: threading.Event | None = None, seconds: float = math.inf) -> Iterator[bool]:
        """Hold the lock for the recovery or preparation of the host. Only its holder changes the record.

        Yields False if ``stop`` was set before the lock was free. Raises InfrastructureError, which names the holder, if the lock
        is not free within ``seconds``.
        """
        held, deadline = False, Deadline(seconds)
        while not held and not (stop is not None and stop.is_set()):
            with contextlib.suppress(Timeout):
                self._lock.acquire(timeout=_TRY)
                held = True
            if not held and deadline.expired:
                what = f"{self.name} is being brought back or prepared by {self._holder()}, after {deadline.seconds:g} s"
                raise InfrastructureError(what, hint="wait until that has ended, or end it")
        try:
            if held:
                self._holder_file.write_text(f"pid {os.getpid()}: {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]}")
            yield held
        finally:
            if held:
                self._lock.release()

    def _holder(self) -> str:
        try:
            return plain(self._holder_file.read_text())
        except (OSError, ValueError):
            return "another process"

    def note_cycle(self) -> None:
        """Record a power cycle. The host boots from now on."""
        now = time.time()
        self._write(cycles=[*self._recent(), now], booting=now)

    def note_boot_begun(self) -> None:
        """Record that the host boots from now on, without a further power cycle."""
        self._write(booting=time.time())

    def note_boot_ended(self) -> None:
        """Record that the host no longer boots: it is up, or its power was not switched."""
        self._write(booting=0.0)

    @property
    def booting(self) -> float:
        """Seconds since the last power cycle if no process has seen the end of that boot, else infinity."""
        since = self._read().get("booting")
        return max(0.0, time.time() - since) if isinstance(since, float) and since else math.inf

    @property
    def cycles(self) -> int:
        """The number of power cycles in the last hour."""
        return len(self._recent())

    def set_aside(self, kind: str, why: str, mark: str = "") -> None:
        """Set the host aside, as :data:`HUNG` or :data:`UNPREPARED`.

        ``mark``: this process prepares it, with a command of that mark. Without the lock, the preparation counts as interrupted.
        """
        self._write(aside={"kind": kind, "why": why, "since": stamp.now(), "mark": mark})

    @property
    def aside(self) -> dict[str, str]:
        """Why the host is set aside, for :meth:`restore`; empty if it is used."""
        return _aside(self._read())

    def restore(self, aside: Mapping[str, str]) -> None:
        """Set the host aside as before, or use it as before."""
        self._write(aside=dict(aside))

    def use_again(self, kind: str = "") -> bool:
        """Use the host again. With ``kind``, only if it was set aside for that. Returns whether it was set aside."""
        aside = _aside(self._read())
        if not aside or (kind and aside["kind"] != kind):
            return False
        self._write(aside={}, cycles=[], booting=0.0)
        return True

    def _recent(self) -> list[float]:
        begin = time.time() - _HOUR
        return [at for at in self._read().get("cycles", []) if isinstance(at, float) and at > begin]

    def _read(self) -> dict[str, Any]:
        return _read(self._file)

    def _write(self, **changes: Any) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._read() | changes, indent=1))
        new.replace(self._file)


def directory(name: str) -> Path:
    """The directory of the host ``name``. It may not exist."""
    return paths.store() / "hosts" / name


def set_aside(name: str, *, except_for: str = "") -> HostSetAside | None:
    """Why the host ``name`` is not used, or None. ``except_for`` is a kind that does not count."""
    aside = _aside(_read(directory(name) / "record.json")) if name else {}
    if not aside or aside["kind"] == except_for:
        return None
    why = aside["why"]
    hint = f"the operator of {name} must repair it; then run: fxh hosts {name} --return"
    if aside["kind"] == UNPREPARED:
        hint = f"the operator of {name} must correct hosts.{name}.prepare or the host; then run: fxh prepare {name}"
    if aside["mark"] and not is_locked(directory(name) / "lock"):
        why = "its preparation was interrupted, because the process that prepared it was killed; the host may be half prepared"
        if pids := operator_command.survivors(aside["mark"]):
            why += f"; its command still runs (process {', '.join(map(str, pids))})"
        hint = f"run: fxh prepare {name}, which first ends remaining processes of the command"
    return HostSetAside(f"{name} is set aside since {aside['since']}: {why}", hint=hint)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock (flock) of a file, which may be missing."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _aside(data: Mapping[str, Any]) -> dict[str, str]:
    found = data.get("aside")
    return {key: str(found.get(key, "")) for key in ("kind", "why", "since", "mark")} if isinstance(found, dict) and found else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
