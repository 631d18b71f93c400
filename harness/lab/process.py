# SPDX-License-Identifier: BSD-2-Clause
"""A QEMU process that cannot outlive whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from harness.deadline import Deadline
from harness.errors import LabDead
from harness.lab.monitor import Monitor, QemuRefused

# sh starts QEMU; a second sh reads from a pipe whose other end only the owner holds. When the owner dies, by kill -9 too,
# the read ends and QEMU is killed; when QEMU ends, the first sh ends the second and itself. POSIX sh alone does it.
_KEEPER = (
    'exec 3<&0; "$@" </dev/null >&2 3<&- & q=$!; echo $q; exec >&2; '
    "{ read -r x; kill -9 $q; } <&3 & k=$!; wait $q; s=$?; kill $k 2>/dev/null; exit $s"
)
# With --keep there is no owner to follow.
_DETACHED = '"$@" </dev/null >&2 & echo $!; exec >&2; wait $!'


class Process:
    """A running QEMU; ``pid`` is its own, ``run`` the directory of its sockets, ``log`` what it says on stderr."""

    def __init__(self, run: Path, log: Path, pid: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.run, self.log, self.pid, self._popen = run, log, pid, popen
        self._monitor: Monitor | None = None

    @classmethod
    def start(cls, argv: Sequence[str], run: Path, log: Path, *, keep: bool = False) -> Process:
        """Start QEMU, to end with this process unless ``keep``."""
        with log.open("wb") as words:
            popen = subprocess.Popen(
                ["/bin/sh", "-c", _DETACHED if keep else _KEEPER, "fxh-lab-keeper", *argv],
                stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                start_new_session=True,
            )
        stdout = cast("IO[bytes]", popen.stdout)
        with stdout:
            return cls(run, log, int(stdout.readline() or 0), popen)

    def connect(self, deadline: Deadline) -> None:
        """Wait for the monitor. Raises LabDead with QEMU's own words when it ended instead."""
        while True:
            if (self.run / "qmp").exists():
                with suppress(LabDead):
                    self._monitor = Monitor(self.run / "qmp", max(1.0, deadline.remaining))
                    return
            if not self.alive():
                raise LabDead(f"QEMU ended at once: {self.last_words()}")
            if deadline.expired:
                raise deadline.expire("QEMU's monitor", self.last_words())
            time.sleep(0.005)

    def alive(self) -> bool:
        if self._popen is not None:
            return self._popen.poll() is None
        return listening(self.run / "qmp")

    def last_words(self) -> str:
        """What QEMU said on stderr, without what it says at every start."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        # Each start under TCG warns of the CPU features it has not got: we asked for that.
        return "\n".join(line for line in lines if "TCG doesn't support" not in line)[-1500:]

    def command(self, name: str, **arguments: Any) -> Any:
        """One QMP command. Raises LabDead when QEMU is gone, QemuRefused with its words when it refuses."""
        if self._monitor is None:
            self._monitor = Monitor(self.run / "qmp")
        try:
            return self._monitor.command(name, **arguments)
        except QemuRefused:
            raise
        except LabDead as exc:
            time.sleep(0.05)
            raise (exc if self.alive() else LabDead(f"QEMU ended: {self.last_words() or 'killed'}")) from exc

    def release(self) -> None:
        """Let go of the monitor of a machine that goes on without us."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def hand_over(self, argv: Sequence[str]) -> None:
        """Let the new process ``argv`` own QEMU in our place: QEMU ends with it."""
        pipe = self._popen.stdin if self._popen is not None else None
        if pipe is None:
            return
        subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            pass_fds=[pipe.fileno()],
        )  # fmt: skip
        pipe.close()

    def stop(self) -> None:
        """End QEMU; safe to call twice and on a dead one."""
        with suppress(ProcessLookupError):
            if self.pid and self.alive():
                # Nothing in a lab's overlay is worth an orderly end: it is thrown away or was saved before.
                os.kill(self.pid, signal.SIGKILL)
        self.release()
        if self._popen is None:
            _wait_gone(self.run / "qmp")
            return
        if self._popen.stdin:
            self._popen.stdin.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def listening(path: Path) -> bool:
    """Whether somebody serves the Unix socket at ``path``: a dead QEMU leaves the file but refuses the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # its queue is full: somebody is there
            return True
        except OSError:
            return False
        return True


def _wait_gone(path: Path) -> None:
    end = time.monotonic() + 5
    while listening(path) and time.monotonic() < end:
        time.sleep(0.01)
