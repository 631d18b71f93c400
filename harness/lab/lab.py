# SPDX-License-Identifier: BSD-2-Clause
"""One lab: a Xen host inside QEMU. Its life cycle and the connection to its dom0."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness import paths, stamp
from harness.console import xentrace
from harness.console.text import decode
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError, LabDead, TransportError, UsageError
from harness.lab import criu_probe, keys, registry
from harness.lab.accel import Accel
from harness.lab.checkpoints import LabCheckpoints
from harness.lab.criu import CriuSnapshotter
from harness.lab.gdbstub import GdbStub
from harness.lab.heartbeat import SILENCE, Pulse
from harness.lab.keys import Keys
from harness.lab.machine import Machine
from harness.lab.qemu import MachineSpec, Qemu
from harness.lab.registry import LabRecord
from harness.lab.store import LabImage

if TYPE_CHECKING:
    from harness.transport.ssh import SshTransport

log = logging.getLogger("fxh.lab")

# Seconds.
_COLD_BOOT = 180.0
# The longest time that a machine may compute without letting dom0 run.
_BUSY = 60.0
# Bytes of Xen's serial console that are searched for its panic, whose report has 7000.
_TAIL = 1 << 14

_EXPIRE = """
import contextlib, sys, time
from harness.errors import UsageError
from harness.lab import control, registry
pid = getattr(registry.read(sys.argv[1]), "qemu_pid", 0)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end and getattr(registry.read(sys.argv[1]), "qemu_pid", 0) == pid:
    time.sleep(5)
if getattr(registry.read(sys.argv[1]), "qemu_pid", 0) == pid:
    with contextlib.suppress(UsageError):
        control.remove(sys.argv[1])
"""


class Lab:
    """A Xen host inside QEMU. :meth:`up` starts it, :meth:`down` ends it, :meth:`remove` also deletes its files.

    With ``criu`` its checkpoints are hot. All methods that talk to the machine raise InfrastructureError and its subclasses.
    """

    def __init__(
        self,
        image: LabImage,
        qemu: Qemu,
        accel: Accel,
        spec: MachineSpec,
        *,
        name: str = "",
        keep: bool = False,
        criu: CriuSnapshotter | None = None,
    ) -> None:
        self.image, self.qemu, self.accel = image, qemu, accel
        self.name = name or f"lab-{secrets.token_hex(3)}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", self.name):
            raise UsageError(f"lab name {self.name!r}", hint="use letters, digits, '-', '_' and '.', 41 at most")
        self.keep = keep
        self.directory = registry.directory(self.name)
        self.sockets = registry.sockets(self.name)
        self.machine = Machine(image, qemu, spec, self.directory, self.sockets, keep=keep, criu=criu)
        self.checkpoints = LabCheckpoints(self)
        self.keys: Keys | None = None
        self.parent = ""
        """The directory name of the checkpoint that the machine's disks depend on."""
        self.dead: str = ""
        """Why the lab is lost, or ""."""
        self._transport: SshTransport | None = None
        self._pulse: Pulse | None = None

    @property
    def spec(self) -> MachineSpec:
        return self.machine.spec

    # -- life cycle ---------------------------------------------------------------------------------------------------

    def up(self, deadline: Deadline | None = None) -> None:
        """Start with the idle dom0, from its checkpoint.

        The first start on this machine creates the checkpoint. Raises UsageError if a lab of that name is up.
        """
        if registry.state(self.name) == "up":
            raise UsageError(f"a lab {self.name} is up already", hint=f"fxh lab down {self.name}, or choose another name")
        self.checkpoints.reset(deadline)

    def boot(self, deadline: Deadline | None = None) -> None:
        """Start cold, with new keys."""
        deadline = deadline or Deadline(_COLD_BOOT)
        new, archive = keys.make()
        self.begin(new, parent="")
        initrd = self.directory / "initrd"
        initrd.touch(mode=0o600)
        base = (self.image.directory / "initrd").read_bytes()
        # A second archive must begin at a multiple of four (Linux init/initramfs.c).
        initrd.write_bytes(base + bytes(-len(base) % 4) + archive)
        self.machine.boot(initrd, deadline)
        self.connect(deadline)
        initrd.unlink()

    def down(self) -> None:
        """End the machine; its logs stay."""
        self.disconnect()
        self.machine.stop()
        for disk in self.directory.glob("*.qcow2"):
            disk.unlink()
        registry.stopped(self.name)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def remove(self) -> None:
        """End the machine and remove all the lab's files."""
        self.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.keep:
            self.release()
        else:
            self.remove()

    def release(self) -> None:
        """Close all connections to a lab that continues to run without this process."""
        self.disconnect()
        if self.machine.process is not None:
            self.machine.process.release()

    def keep_for(self, seconds: float) -> None:
        """Release the lab. It ends and its files are removed after ``seconds``, or by `fxh lab rm`."""
        process = self.machine.process
        if process is None:
            return
        self.keep = True
        self.record()
        process.hand_over([sys.executable, "-c", _EXPIRE, self.name, str(seconds)])
        self.release()

    @classmethod
    def attach(cls, name: str, qemu: Qemu) -> Lab:
        """Connect to a running lab, kept or of another process. Raises UsageError if it does not run."""
        record = registry.read(name)
        if record is None or registry.state(name) != "up":
            raise UsageError(f"no lab {name} is up", hint="`fxh lab list` shows the labs, `fxh lab up` starts one")
        criu = criu_probe.find()[0] if record.in_namespace else None
        accel = Accel(record.accel, record.why)
        lab = cls(LabImage(record.image_path), qemu, accel, record.spec, name=name, keep=True, criu=criu)
        lab.keys, lab.parent = Keys(record.key(), record.host_key), record.checkpoint
        lab.machine.adopt(record.qemu_pid, record.ssh_port, record.drives)
        lab.connect(Deadline(10))
        return lab

    def record(self) -> None:
        """Write the lab's record for other processes."""
        process, present = self.machine.process, self.keys
        if process is None or present is None:
            return
        registry.write(
            LabRecord(
                name=self.name, image=str(self.image.directory), qemu=self.qemu.label, qemu_pid=process.pid,
                owner_pid=os.getpid(), kept=self.keep, ssh_port=self.machine.ssh_port, accel=self.accel.name,
                why=self.accel.why, checkpoint=self.parent, started=stamp.now(), host_key=present.host, spec=self.spec,
                drives=tuple(self.machine.drives), in_namespace=self.machine.criu is not None,
            ),
            present.client,
        )  # fmt: skip

    def begin(self, new: Keys, parent: str) -> None:
        """Prepare for a machine that replaces the present one: its keys, and the checkpoint that its disks depend on."""
        self.disconnect()
        for path in (self.directory, self.sockets):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys, self.parent, self.dead = new, parent, ""

    # -- connection to dom0 -------------------------------------------------------------------------------------------

    @property
    def ssh(self) -> SshTransport:
        """The connection to dom0. Raises LabDead if the lab is lost or not up."""
        if self.dead:
            raise LabDead(f"lab {self.name}: {self.dead}", hint="no action is needed: the next case gets a new lab")
        if self._transport is None:
            raise LabDead(f"lab {self.name} is not up")
        return self._transport

    def connect(self, deadline: Deadline) -> None:
        """Write the lab's record, connect to dom0 and read its heartbeat. Raises LabDead, DeadlineExpired."""
        present, process = self.keys, self.machine.process
        if present is None or process is None:
            raise LabDead(f"lab {self.name} is not up")
        self.record()
        # This import is slow. Here it runs while QEMU starts.
        from harness.transport.ssh import SshTransport

        def connected() -> SshTransport:
            try:
                return SshTransport(
                    "127.0.0.1", self.machine.ssh_port, private_key=present.client, known_host_key=present.host, name=self.name,
                    deadline=deadline.capped(5),
                )  # fmt: skip
            except (TransportError, InfrastructureError) as exc:
                if not process.alive():
                    raise LabDead(f"QEMU ended: {process.last_words()}") from exc
                raise ConditionNotMet(str(exc)) from exc

        self._transport = deadline.wait(f"ssh to dom0 of lab {self.name}", connected, 0.05)
        self._pulse = Pulse(self.sockets / "com2", self._on_silence)
        self._pulse.start()

    def disconnect(self) -> None:
        """Close the connection to dom0 and stop reading its heartbeat."""
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _serial_tail(self) -> str:
        """The end of Xen's serial console."""
        try:
            return decode(paths.tail(self.directory / "xen.log", _TAIL))
        except OSError:
            return ""

    @contextlib.contextmanager
    def debugging(self) -> Iterator[GdbStub]:
        """Open QEMU's gdb stub. Inside, a machine that a debugger has stopped does not count as dead. Raises LabDead."""
        stub = GdbStub(self.machine)
        stub.open()
        if self._pulse is not None:
            self._pulse.held = True
        try:
            yield stub
        finally:
            try:
                if not self.dead:
                    stub.close()
            finally:
                if self._pulse is not None:
                    self._pulse.held = False

    def _on_silence(self, seconds: float) -> bool:
        """Handle ``seconds`` without a heartbeat: log the state of the CPUs and end the machine, so that every wait on it ends.

        Returns True if the machine is only busy: Xen keeps the one CPU for seconds while it clears a dead guest's memory.
        """
        process = self.machine.process
        if process is None:
            return False
        reason = f"dom0 gave no sign of life for {seconds:.0f} s"
        try:
            state = self.machine.cpu_state()
            if state.busy and seconds < _BUSY:
                # This is called each second; report it once.
                level = logging.INFO if seconds < SILENCE + 1 else logging.DEBUG
                log.log(level, "lab %s: %s; it is busy: %s", self.name, reason, state)
                return True
            reason += f"; {state}"
        except LabDead as exc:
            reason += f"; QEMU's monitor does not answer either ({exc.message})"
        if not process.alive():
            reason = f"QEMU ended: {process.last_words() or 'killed'}"
        elif panic := xentrace.panic(self._serial_tail()):
            reason = f"Xen panicked: {panic}; {reason}"
        self.dead = reason
        log.error("lab %s: %s", self.name, reason)
        registry.mark_dead(self.name, reason)
        process.stop()
        if self._transport is not None:
            self._transport.close()
        return False
