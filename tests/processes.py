# SPDX-License-Identifier: BSD-2-Clause
"""Wait for the end of processes that are not children of the test, or that a child of it reaps."""

from __future__ import annotations

from pathlib import Path

from harness.deadline import ConditionNotMet, Deadline


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie has ended; its files and locks are closed only when its last thread has ended, too."""
    process = Path(f"/proc/{pid}")
    try:
        # 4711 (python3) Z 1 ...
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(list((process / "task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):  # its parent may reap it between any two steps
        return False


def wait_for_end(*pids: int, seconds: float = 60) -> None:
    """Wait until no process of ``pids`` is alive: on a busy machine, a killed one takes its time. Raises DeadlineExpired."""

    def ended() -> None:
        if left := [pid for pid in pids if alive(pid)]:
            raise ConditionNotMet(f"alive: {', '.join(map(str, left))}")

    Deadline(seconds).wait("the end of processes", ended, 0.02)
