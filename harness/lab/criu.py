# SPDX-License-Identifier: BSD-2-Clause
"""Hot checkpoints: CRIU (criu.org) saves a lab's QEMU as a process, including the code that QEMU has translated.

A QEMU that loads a migration stream drops its translations, and code that it has to translate again takes two to three times as
long. A process that CRIU restored continues with them: the first ``xl list`` takes as long as the tenth.

Each such QEMU runs in its own pid and mount namespaces. There it always has the same pid, and the lab's directory and sockets have
the same path. So many labs can be restored from one checkpoint at the same time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import paths
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError
from harness.lab.qemu import Drive

if TYPE_CHECKING:
    from harness.lab.checkpoint import Checkpoint
    from harness.lab.machine import Machine

log = logging.getLogger("fxh.lab")

_VIEW = ".here"
# QEMU's pid in its namespace. CRIU and the processes that it starts there get lower ones.
_PID = 1000
# $1 is mounted at $2 and $3 at $4; $5 is the pid before the one that the next process gets.
_ENTER = (
    'mount --bind "$1" "$2" && mount --bind "$3" "$4" || exit 1; log="$2/qemu.log"; echo "$5" > /proc/sys/kernel/ns_last_pid; '
    'shift 5; "$@" </dev/null >>"$log" 2>&1 & wait $!'
)
# QEMU holds no file locks, but cgroups belong to the caller's environment.
_OPTIONS = ("--file-locks", "--manage-cgroups=ignore", "-v1")
# Seconds until a closed connection to dom0 has also disappeared from QEMU's network.
_LINGER = 5.0
# Seconds that CRIU may take to save a QEMU of some 500 MiB, and the statuses of timeout(1) after that: for SIGTERM and SIGKILL.
_DUMP, _TIMED_OUT = 180, (124, 137, -9)


@dataclass(frozen=True)
class View:
    """The paths by which a QEMU sees the lab's ``directory`` and its ``sockets``."""

    directory: Path
    sockets: Path


@dataclass(frozen=True)
class CriuSnapshotter:
    """A :class:`harness.lab.snapshot.Snapshotter`. ``criu`` is the command; ``label`` names its version."""

    criu: tuple[str, ...]
    label: str

    @property
    def view(self) -> View:
        """The same for all labs."""
        return View(paths.store() / "run" / _VIEW, paths.runtime() / _VIEW)

    @property
    def key(self) -> str:
        """A hash of CRIU's version, the kernel release, the paths and the processor: translated code depends on all of them."""
        processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        lines = [line for line in processor.splitlines() if line.startswith(("model name", "flags"))]
        return hashlib.sha256("\n".join([self.label, platform.release(), str(self.view), *lines]).encode()).hexdigest()

    def save(self, machine: Machine, place: Path, deadline: Deadline) -> dict[str, Path]:
        """The files are CRIU's images, ``ram`` and the disks. All connections to dom0 must be closed.

        If CRIU fails, the machine is stopped but complete: :class:`harness.lab.snapshot.MigrationSnapshotter` can save it.
        """
        from harness.lab import criuimage  # imports protobuf, which only this method needs

        if machine.criu is None or machine.shares_ram:
            raise InfrastructureError("this QEMU cannot be saved as a process")
        process = machine.running()
        machine.stop_forwarding()

        def disconnected() -> None:
            if "TCP" in (connections := machine.monitor("info usernet")):
                raise ConditionNotMet(connections)

        deadline.capped(_LINGER).wait("the connections to dom0 to end", disconnected, 0.02)
        process.command("stop")
        process.release()
        images = machine.directory / "criu"
        for attempt in range(3):
            shutil.rmtree(images, ignore_errors=True)
            images.mkdir()
            try:
                self.dump(process.pid, images)
                break
            except InfrastructureError:  # QEMU has not noticed yet that the monitor's connection is closed
                if attempt == 2:
                    raise
                time.sleep(0.05)
        machine.stop()
        memory = machine.directory / "ram"
        try:
            criuimage.take_memory_out(images, machine.ram, machine.spec.memory << 20, memory, place / "ram")
        except criuimage.Unknown as exc:
            log.info("CRIU's images have an unknown format (%s): each restore will read all of the machine's memory", exc)
            for half in (memory, *images.glob("*.new")):
                half.unlink(missing_ok=True)
        return {path.name: path for path in (*images.iterdir(), *machine.directory.glob("*.qcow2"), *machine.directory.glob("ram"))}

    def restore(self, machine: Machine, saved: Checkpoint, deadline: Deadline, *, private_memory: bool = False) -> None:
        """The disks are copied. ``private_memory`` has no effect."""
        machine.clean()
        machine.spec = saved.spec
        for disk in saved.directory.glob("*.qcow2"):
            shutil.copyfile(disk, machine.directory / disk.name)
        machine.drives = [Drive(number, saved.disk(f"fxh{number}").name) for number in saved.spec.drives]
        (machine.directory / "xen.log").touch()
        machine.ram, machine.shares_ram = saved.memory, False
        machine.start(self.restore_command(saved.directory, machine.directory, machine.sockets), deadline)
        _take_our_priority(machine.running().pid)
        machine.forward_ssh()
        machine.running().command("cont")

    def namespace_command(self, directory: Path, sockets: Path, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` in new namespaces. They end with it, and it ends with its parent."""
        return self._enter(directory, sockets, _PID - 1, ["setsid", *argv])

    def restore_command(self, images: Path, directory: Path, sockets: Path) -> list[str]:
        """The command that restores a process from ``images`` in new namespaces."""
        argv = [*self.criu, "restore", "-D", str(images), "-W", str(self.view.directory), *_OPTIONS, "-o", "criu.log"]
        return self._enter(directory, sockets, 1, argv)

    def dump(self, pid: int, images: Path) -> None:
        """Stop the process ``pid`` (as seen from here) and write it to ``images``, an empty directory.

        The process must have no connections. Raises InfrastructureError with CRIU's message; then the process continues.
        """
        # Without --leave-stopped, CRIU ends the process, and with it the namespace in which CRIU still has to report success.
        dump = [*self.criu, "dump", "--leave-stopped", "-t", str(_PID), "-D", str(images), *_OPTIONS, "-o", "criu.log"]
        # timeout(1) ends CRIU, too: it is in another PID namespace than nsenter, but in the same process group.
        limit = ["timeout", "--kill-after=5", str(_DUMP)]
        argv = [*limit, "nsenter", "-t", str(pid), "--mount", "--pid", "--", *dump]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        messages = images / "criu.log"
        if done.returncode in _TIMED_OUT:
            raise InfrastructureError(
                f"CRIU did not save QEMU within {_DUMP} s", hint="look for a slow or full disk under the store"
            )
        if done.returncode:
            text = messages.read_text(errors="replace") if messages.exists() else done.stderr
            raise InfrastructureError(
                f"CRIU could not save QEMU: {' / '.join(text.strip().splitlines()[-4:]) or done.stderr.strip()}"
            )
        for leftover in (messages, images / "stats-dump"):
            leftover.unlink(missing_ok=True)

    def _enter(self, directory: Path, sockets: Path, last_pid: int, argv: Sequence[str]) -> list[str]:
        view = self.view
        for path in (view.directory, view.sockets):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounts = [str(directory), str(view.directory), str(sockets), str(view.sockets)]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*unshare, "/bin/sh", "-c", _ENTER, "fxh-lab-namespace", *mounts, str(last_pid), *argv]


def _take_our_priority(pid: int) -> None:
    """Give every thread of a process our nice value: CRIU restores that of the run which made the checkpoint."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread of QEMU's pool may end meanwhile, and a container may forbid a higher priority.
        with suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, int(task.name), os.getpriority(os.PRIO_PROCESS, 0))


def pid_in_namespace(pid: int) -> int:
    """The pid, as seen from here, of the QEMU in a namespace at or below process ``pid``; ``pid`` itself if no such QEMU runs."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            status = Path(f"/proc/{current}/status").read_text()
            pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            if len(pids) > 1 and pids[-1] == str(_PID):
                return current
            waiting += map(int, Path(f"/proc/{current}/task/{current}/children").read_text().split())
        except OSError:
            continue
    return pid
