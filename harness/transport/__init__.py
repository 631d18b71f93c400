# SPDX-License-Identifier: BSD-2-Clause
"""Transports run commands on a machine, copy files, and keep byte streams open."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from harness import trace
from harness.deadline import Deadline
from harness.errors import CommandFailed

__all__ = ["LOOPBACK", "Completed", "RunsCommands", "Stream", "Transport"]

LOOPBACK = "127.0.0.1"
DEFAULT_SECONDS = 120.0
"""Deadline of a command that has none."""

# Commands that have their own kind of event in the action trace.
_TRACED = ("xl", "xenstore-read", "xenstore-write", "xenstore-rm", "xenstore-ls")


@dataclass(frozen=True)
class Completed:
    """The result of a command. ``stdout`` and ``stderr`` are unmodified bytes."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """``stdout`` as text, with invalid UTF-8 replaced."""
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
    """A bidirectional byte stream: a console, a pty, a recording."""

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """Up to ``size`` bytes as soon as there are any; ``b""`` is the end of the stream.

        Raises TimeoutError if nothing came within ``timeout`` seconds, and TransportError if the stream has no peer.
        """
        ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Close the stream and end its command. A blocked read returns. Any thread may call this, also twice."""
        ...


class Transport(Protocol):
    """A connection to one machine. Arguments are a vector; a shell reads them only if the vector names one."""

    name: str
    near: str
    """The IPv4 address from which :meth:`connect` connects, as the machine sees it."""

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        """Run ``argv`` to its end, by default within :data:`DEFAULT_SECONDS`.

        Raises CommandFailed for an exit status other than 0 (if ``check``), TransportError, DeadlineExpired.
        """
        ...

    def open(self, argv: Sequence[str], *, pty: bool = False) -> Stream:
        """Start a command and return its standard streams. Closing the stream ends the command."""
        ...

    def connect(self, port: int) -> Stream:
        """Connect to a TCP port of the machine, where the connection comes from :attr:`near`. Raises TransportError or LabDead."""
        ...

    def put(self, local: Path, remote: str, deadline: Deadline | None = None) -> None:
        """Copy a file to the machine. Holes stay holes. Raises InfrastructureError if the copy has another size."""
        ...

    def get(self, remote: str, local: Path, deadline: Deadline | None = None) -> None:
        """Copy a file from the machine. ``local`` appears complete or not at all."""
        ...

    def ping(self) -> None:
        """Wait until the machine answers, for ever if it hangs. Starts no process there. Raises TransportError if the connection ends."""
        ...

    def close(self) -> None: ...
