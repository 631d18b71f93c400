# SPDX-License-Identifier: BSD-2-Clause
"""How to reach a machine: run a command there, move files, hold a byte stream open."""

from __future__ import annotations

import logging
import shlex
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.deadline import Deadline

__all__ = ["Completed", "Stream", "Transport", "ended"]

log = logging.getLogger("fxh.transport")


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


def ended(where: str, done: Completed, started: float) -> None:
    """Log a command that ended, for ``fxh -v``; ``started`` is a time of the monotonic clock (s).

    Programs are passed as arguments, so a line is cut to 160 characters.
    """
    if log.isEnabledFor(logging.DEBUG):
        line = textwrap.shorten(shlex.join(done.argv), 160, placeholder=" ...")
        log.debug("%s: exit %d after %.2f s: %s", where, done.status, time.monotonic() - started, line)


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
