# SPDX-License-Identifier: BSD-2-Clause
"""Run a command of ``[hosts.NAME]`` on this machine: never in a shell, with a time limit, and ended with its process group."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import IO

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.safetext import REMOVED, plain, redact

log = logging.getLogger("fxh.hosts")

# Seconds between two looks at the caller's event, and from SIGTERM to SIGKILL.
_LOOK, _END = 0.2, 5.0
# In the environment of a command and of the processes that it starts.
_MARK = "HARNESS_COMMAND"
# Characters of the output in an error.
_SHOWN = 300
# Bytes of the output that are read.
_READ = 1 << 20
# An option with its value: -Phunter2
_GLUED = re.compile(r"^-\w")


class Stopped(InfrastructureError):
    """A command was stopped before its end. The message names it."""


def run(argv: Sequence[str], key: str, seconds: float, hint: str, *, stop: threading.Event | None = None, mark: str = "") -> str:
    """Run ``argv`` and return its standard output. ``key`` is its name in fxh.toml, for errors.

    Raises InfrastructureError with ``hint`` if it cannot start, exits with another status than 0, or runs for more than ``seconds``;
    Stopped when ``stop`` is set. Before Stopped, KeyboardInterrupt or any other exception, all its processes are ended.
    An error shows the program, but no arguments: they may contain a password. :func:`survivors` finds its processes by ``mark``.
    """
    program = PurePath(argv[0]).name
    environment = {**os.environ, _MARK: mark} if mark else None
    # Files, because pipes end only with the last process that has them: a command may leave one in the background.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True, env=environment
            )
        except OSError as exc:
            raise InfrastructureError(f"{key}: cannot start {program}: {exc.strerror}", hint=hint) from exc
        stopped = f"{key}: {program} (process {process.pid}) was stopped"
        try:
            if not _ends(process, seconds, stop):
                _end_group(process)
                raise Stopped(stopped)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"{key}: {program} did not end within {seconds:g} s", hint=hint) from None
        except KeyboardInterrupt:
            _end_group(process)
            log.warning("%s", stopped)
            raise
        finally:
            # Also the processes that it left behind.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                log.warning("%s: %s (process %d) cannot be ended: does it belong to another user?", key, program, process.pid)
        out, err = _text(stdout), _text(stderr)
    if process.returncode:
        lines = (err.strip() or out.strip()).splitlines()
        last = f": {without_arguments(lines[-1], argv)[:_SHOWN]}" if lines else ""
        raise InfrastructureError(f"{key}: {program} failed with exit status {process.returncode}{last}", hint=hint)
    return out


def _ends(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event | None) -> bool:
    """Wait for the end of a command. Returns False when ``stop`` is set. Raises TimeoutExpired."""
    deadline = Deadline(seconds)
    while True:
        try:
            process.wait(deadline.remaining if stop is None else min(_LOOK, deadline.remaining))
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set():
                return False
            if deadline.expired:
                raise
        else:
            return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the processes of a command to end. Returns when they have, or after 5 s."""

    def alive() -> bool:
        process.poll()  # a zombie counts as a process of its group
        return _signal(os.killpg, process.pid, 0)

    if _signal(os.killpg, process.pid, signal.SIGTERM):
        _wait_while(alive)


def survivors(mark: str) -> list[int]:
    """The processes of a command with ``mark``, also those that left its process group."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # A process of another user, or one that has ended.
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return sorted(found)


def end_survivors(mark: str) -> list[int]:
    """End the processes of :func:`survivors`. Returns their numbers."""
    found = survivors(mark)
    for pid in found:
        _signal(os.kill, pid, signal.SIGTERM)
    if not _wait_while(lambda: bool(survivors(mark))):
        for pid in survivors(mark):
            _signal(os.kill, pid, signal.SIGKILL)
        _wait_while(lambda: bool(survivors(mark)))
    return found


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> bool:
    """Whether there was a process that could get the signal."""
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait_while(alive: Callable[[], bool]) -> bool:
    """Wait for the end of processes, for 5 s. Returns whether they have ended."""
    deadline, pause = Deadline(_END), threading.Event()
    while alive():
        if deadline.expired:
            return False
        pause.wait(0.02)
    return True


def _text(file: IO[bytes]) -> str:
    """The last MiB of a file of output, as safe text."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - _READ))
    return plain(file.read(_READ).decode("utf-8", "replace"))


def without_arguments(line: str, argv: Sequence[str]) -> str:
    """``line`` without secrets, and without the arguments of the command and their values."""
    line = redact(line)
    # --password=hunter2     -Phunter2
    words = {part for word in argv[1:] for part in (word, word.partition("=")[2], _GLUED.sub("", word))}
    # A longer argument may contain a shorter one.
    for word in sorted(filter(None, words), key=len, reverse=True):
        line = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", REMOVED, line)
    return line
