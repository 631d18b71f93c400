# SPDX-License-Identifier: BSD-2-Clause
"""A QEMU process that cannot outlive the process that started it."""

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

# A shell starts QEMU, and a second shell reads from a pipe whose other end only the owner holds. When the owner ends, even by
# kill -9, the read ends and the second shell kills QEMU. When QEMU ends, the first shell ends the second and itself.
_BOUND_TO_OWNER = (
    'exec 3<&0; "$@" </dev/null >&2 3<&- & q=$!; echo $q; exec >&2; '
    "{ read -r x; kill -9 $q; } <&3 & k=$!; wait $q; s=$?; kill $k 2>/dev/null; exit $s"
)
# With --keep, QEMU outlives its owner.
_DETACHED = '"$@" </dev/null >&2 & echo $!; exec >&2; wait $!'


class Process:
    """A running QEMU with its ``pid``, the directory ``run`` of its sockets, and the ``log`` of its stderr."""

    def __init__(self, run: Path, log: Path, pid: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.run, self.log, self.pid, self._popen = run, log, pid, popen
        self._monitor: Monitor | None = None

    @classmethod
    def start(cls, argv: Sequence[str], run: Path, log: Path, *, keep: bool = False) -> Process:
        """Start QEMU. Unless ``keep`` is set, it ends with this process."""
        with log.open("wb") as errors:
            popen = subprocess.Popen(
                ["/bin/sh", "-c", _DETACHED if keep else _BOUND_TO_OWNER, "fxh-lab-owner", *argv],
                stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        stdout = cast("IO[bytes]", popen.stdout)
        with stdout:
            return cls(run, log, int(stdout.readline() or 0), popen)

    def connect(self, deadline: Deadline) -> None:
        """Wait for the monitor. Raises LabDead with QEMU's messages if QEMU ended instead, DeadlineExpired."""
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
        """The end of QEMU's stderr, without the usual warnings."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        # Under TCG, each start warns of CPU features that TCG lacks. That is expected.
        return "\n".join(line for line in lines if "TCG doesn't support" not in line)[-1500:]

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command. Raises LabDead if QEMU has ended, QemuRefused with QEMU's message."""
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
        """Close the monitor's connection; QEMU continues."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def hand_over(self, argv: Sequence[str]) -> None:
        """Start the process ``argv`` as the new owner: QEMU ends with it."""
        pipe = self._popen.stdin if self._popen is not None else None
        if pipe is None:
            return
        subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            pass_fds=[pipe.fileno()],
        )  # fmt: skip
        pipe.close()

    def stop(self) -> None:
        """End QEMU. Safe to call twice, and after QEMU has ended."""
        with suppress(ProcessLookupError):
            if self.pid and self.alive():
                # No orderly end is needed: a lab's overlays are deleted, or were saved before.
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
    """Whether a process serves the Unix socket at ``path``. A QEMU that ended leaves the file, but connecting to it fails."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # the queue of a living process is full
            return True
        except OSError:
            return False
        return True


def _wait_gone(path: Path) -> None:
    end = time.monotonic() + 5
    while listening(path) and time.monotonic() < end:
        time.sleep(0.01)
