# SPDX-License-Identifier: BSD-2-Clause
"""Run a command of ``[hosts.NAME]`` on this machine: never in a shell, with a time limit, and killed with its process group."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import PurePath
from typing import IO

from harness.errors import InfrastructureError
from harness.safetext import REMOVED, plain, redact

# Characters of the output in an error.
_SHOWN = 300
# Bytes of the output that are read.
_READ = 1 << 20
# An option with its value: -Phunter2
_GLUED = re.compile(r"^-\w")


def run(argv: Sequence[str], key: str, seconds: float, hint: str) -> str:
    """Run ``argv`` and return its standard output. ``key`` is its name in fxh.toml, for errors.

    Raises InfrastructureError with ``hint`` if it cannot start, exits with another status than 0, or runs for more than ``seconds``.
    An error shows the program, but no arguments: they may contain a password.
    """
    program = PurePath(argv[0]).name
    # Files, because pipes end only with the last process that has them: a command may leave one in the background.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
        except OSError as exc:
            raise InfrastructureError(f"{key}: cannot start {program}: {exc.strerror}", hint=hint) from exc
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise InfrastructureError(f"{key}: {program} did not end within {seconds:g} s", hint=hint) from None
        finally:
            # Also the processes that it left behind.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out, err = _text(stdout), _text(stderr)
    if process.returncode:
        lines = (err.strip() or out.strip()).splitlines()
        last = f": {without_arguments(lines[-1], argv)[:_SHOWN]}" if lines else ""
        raise InfrastructureError(f"{key}: {program} failed with exit status {process.returncode}{last}", hint=hint)
    return out


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
