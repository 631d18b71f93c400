# SPDX-License-Identifier: BSD-2-Clause
"""The processes of a build: one session, which ends as a whole."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("fxh.images.build")

MARK = "HARNESS_BUILD"
"""The variable of a build's processes that holds their object directory."""


def end_session(leader: int) -> None:
    """Kill all processes of a session: bmake gives each job its own process group, which survives the kill of another group."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        left = [pid for pid, session in _sessions() if session == leader and pid != os.getpid()]
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _sessions() -> list[tuple[int, int]]:
    """(pid, session) of all living processes."""
    if not Path("/proc/self/stat").exists():
        done = subprocess.run(["ps", "-axo", "pid=,sid="], capture_output=True, text=True, check=False).stdout
        return [(int(a), int(b)) for a, b in (line.split() for line in done.splitlines())]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = path.read_text(errors="replace").rpartition(")")[2].split()
            if words[0] != "Z":
                found.append((int(path.parent.name), int(words[3])))
    return found


def end_leftovers(prefix: str) -> None:
    """Kill the processes of an earlier build in this object directory whose harness was killed.

    make's own process has our variable in its environment, but its jobs may not, so kill its whole session.
    """
    mark = f"{MARK}={prefix}".encode()
    marked = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                marked.add(int(path.parent.name))
    for leader in {session for pid, session in _sessions() if pid in marked} - {os.getsid(0)}:
        log.warning("ending session %d, left over from an earlier build", leader)
        end_session(leader)
