# SPDX-License-Identifier: BSD-2-Clause
"""Run a command of ``[hosts.NAME]`` on this machine: never in a shell, with a time limit, and killed with its process group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import PurePath

from harness.errors import InfrastructureError
from harness.safetext import plain

# Characters of the output in an error.
_SHOWN = 300


def run(argv: Sequence[str], key: str, seconds: float, hint: str) -> str:
    """Run ``argv`` and return its standard output. ``key`` is its name in fxh.toml, for errors.

    Raises InfrastructureError with ``hint`` if it cannot start, exits with another status than 0, or runs for more than ``seconds``.
    An error shows the program, but no arguments: they may contain a password.
    """
    program = PurePath(argv[0]).name
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as exc:
        raise InfrastructureError(f"{key}: cannot start {program}: {exc.strerror}", hint=hint) from exc
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise InfrastructureError(f"{key}: {program} did not end within {seconds:g} s", hint=hint) from None
    finally:
        # Also the processes that it left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        lines = plain((err.strip() or out.strip()).decode("utf-8", "replace")).splitlines()
        last = f": {lines[-1][:_SHOWN]}" if lines else ""
        raise InfrastructureError(f"{key}: {program} failed with exit status {process.returncode}{last}", hint=hint)
    return out.decode("utf-8", "replace")
