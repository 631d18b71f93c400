# SPDX-License-Identifier: BSD-2-Clause
"""How to reach a machine: run a command there, move files, hold a byte stream open."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from harness import trace
from harness.deadline import Deadline
from harness.errors import CommandFailed

__all__ = ["Completed", "RunsCommands", "Stream", "Transport"]

DEFAULT_SECONDS = 120.0
"""Deadline of a command that has none."""

# Commands that are a kind of event of their own.
_TRACED = ("xl", "xenstore-read", "xenstore-write", "xenstore-rm", "xenstore-ls")


@dataclass(frozen=True)
class Completed:
    """A command that ended. ``stdout`` and ``stderr`` are bytes as they came."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """``stdout`` as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")


class RunsCommands:
    """Records each command in the action trace. A transport derives from it and implements :meth:`_run`."""

    name: str

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        """Run ``argv`` to its end, see :class:`Transport`."""
        kind = PurePath(argv[0]).name
        with trace.step(kind if kind in _TRACED else "command", argv, self.name) as step:
            done = self._run(argv, deadline or Deadline(DEFAULT_SECONDS), stdin)
            step.status = f"exit {done.status}" if done.status else ""
            step.size, step.output = len(done.stdout) + len(done.stderr), done.stdout + done.stderr
        if check and done.status:
            raise CommandFailed(shlex.join(argv), done.status, done.text, done.stderr.decode("utf-8", "replace"))
        return done

    def _run(self, argv: Sequence[str], deadline: Deadline, stdin: bytes) -> Completed:
        raise NotImplementedError


class Stream(Protocol):
    """A two-way byte stream: a console, a pty, a recording."""

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """Up to ``size`` bytes as soon as there are any; ``b""`` is the end of the stream.

        Raises ``TimeoutError`` when nothing came within ``timeout`` seconds, TransportError where it is no way to what it names.
        """
        ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """End the stream (and what stands behind it). May be called twice, from any thread; a blocked read ends."""
        ...


class Transport(Protocol):
    """A way to one machine. Arguments are passed as a vector: no shell sees them unless it is named."""

    name: str

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        """Run to the end. Raises CommandFailed (with ``check``), TransportError, DeadlineExpired."""
        ...

    def open(self, argv: Sequence[str], *, pty: bool = False) -> Stream:
        """Start a command and hold its standard streams; closing the stream ends the command."""
        ...

    def put(self, local: Path, remote: str, deadline: Deadline | None = None) -> None:
        """Copy a file there; holes stay holes, and size is checked afterwards."""
        ...

    def get(self, remote: str, local: Path, deadline: Deadline | None = None) -> None:
        """Copy a file from there, atomically."""
        ...

    def close(self) -> None: ...
