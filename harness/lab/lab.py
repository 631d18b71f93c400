# SPDX-License-Identifier: BSD-2-Clause
"""One lab: a Xen host of its own inside QEMU, from a checkpoint where there is one."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from harness import preparing, stamp
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, InfrastructureError, LabDead, TransportError, UsageError
from harness.lab import checkpoint, hot, keys, prewarm, registry
from harness.lab.accel import Accel
from harness.lab.checkpoint import Checkpoint, CheckpointBroken
from harness.lab.heartbeat import SILENCE, Pulse
from harness.lab.hot import Hot
from harness.lab.machine import Machine
from harness.lab.qemu import MachineSpec, Qemu
from harness.lab.registry import LabRecord
from harness.lab.store import LabImage

if TYPE_CHECKING:
    from pathlib import Path

    from harness.transport.ssh import SshTransport

log = logging.getLogger("fxh.lab")

_COLD_BOOT = 180.0
_RESTORE = 30.0
_FREEZE = 180.0
# For so long may a machine compute without letting dom0 run.
_BUSY = 60.0

# Ends ssh's processes but the one that listens: a connection that is closed from here would linger in QEMU's network.
_HANG_UP = """
for p in $(busybox pidof dropbear); do
  grep -q '^Name:.dropbear$' "/proc/$(sed -n 's/^PPid:.//p' "/proc/$p/status")/status" && set -- "$@" "$p"
done
kill -9 "$@"
"""

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
    """A Xen host inside QEMU. :meth:`up` starts it, :meth:`down` ends it, :meth:`remove` takes its files away, too.

    Raises InfrastructureError and its kind from everything that talks to the machine.
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
        hot: Hot | None = None,
    ) -> None:
        self.image, self.qemu, self.accel, self.hot = image, qemu, accel, hot
        self.name = name or f"lab-{secrets.token_hex(3)}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", self.name):
            raise UsageError(f"lab name {self.name!r}", hint="use letters, digits, '-', '_' and '.', 41 at most")
        self.keep = keep
        self.directory = registry.directory(self.name)
        self.sockets = registry.sockets(self.name)
        self.machine = Machine(image, qemu, spec, self.directory, self.sockets, keep=keep, hot=hot)
        self.keys: keys.Keys | None = None
        self.parent = ""
        self.dead: str = ""
        """Why the lab is lost, once it is."""
        self._transport: SshTransport | None = None
        self._pulse: Pulse | None = None

    @property
    def spec(self) -> MachineSpec:
        return self.machine.spec

    # -- life ---------------------------------------------------------------------------------------------------------

    def up(self, deadline: Deadline | None = None) -> None:
        """Restore the "dom0 ready" checkpoint; the first time on this machine, boot and make it.

        Raises UsageError when a lab of that name is up already.
        """
        if registry.state(self.name) == "up":
            raise UsageError(f"a lab {self.name} is up already", hint=f"fxh lab down {self.name}, or choose another name")
        self.rest(deadline)

    def rest(self, deadline: Deadline | None = None, *, private_memory: bool = False) -> None:
        """Put this lab, up or not, into the state "dom0 ready"."""
        if self.hot is not None:
            self.restore_or_create(checkpoint.READY_HOT, lambda: self._heat(deadline), deadline, private_memory=private_memory)
        else:
            self._rest(deadline, private_memory=private_memory)

    def _rest(self, deadline: Deadline | None, *, private_memory: bool = False) -> None:
        self.restore_or_create(checkpoint.READY, lambda: self._first(deadline), deadline, private_memory=private_memory)

    def _heat(self, deadline: Deadline | None) -> str:
        self._rest(deadline)
        prewarm.run(self.ssh)
        return "dom0 at rest, and what cases use translated"

    def restore_or_create(
        self,
        name: str,
        make: Callable[[], str],
        deadline: Deadline | None = None,
        *,
        alone: bool = True,
        private_memory: bool = False,
        what: str = "",
    ) -> Checkpoint:
        """Put this lab into the state ``name``; whoever needs it first on this machine makes it. ``what`` says to people what it is.

        ``make`` brings the lab into that state and returns what is to be noted of it. Others wait meanwhile when it is made
        ``alone``. A checkpoint that QEMU cannot load is made anew. Raises what ``make`` does, and CheckpointBroken when the one
        just made is broken, too.
        """

        def there() -> Checkpoint:
            made = self.find(name)
            if made is None:
                with (
                    preparing.step(f"checkpoint {name}{f' ({what})' if what else ''}"),
                    checkpoint.lock(self.image, name, self.spec, self.qemu, self._key(name)) if alone else contextlib.nullcontext(),
                ):
                    made = self.find(name) or self._freeze(name, make(), anew=False)
            self.restore(made, deadline, private_memory=private_memory)
            return made

        try:
            return there()
        except CheckpointBroken:
            return there()

    def find(self, name: str) -> Checkpoint | None:
        """The checkpoint that a machine like this one can be put back to."""
        key = self._key(name)
        hot = checkpoint.find(self.image, name, self.spec, self.qemu, key) if key else None
        # Of the one that is there to be hot, one that once could not be made so is no substitute: all others come from it.
        if hot or (key and name == checkpoint.READY_HOT):
            return hot
        return checkpoint.find(self.image, name, self.spec, self.qemu)

    def _key(self, name: str) -> str:
        """That of a hot checkpoint, where this lab keeps what is called so as one."""
        return self.hot.key if self.hot is not None and checkpoint.is_disposable(name) else ""

    def _first(self, deadline: Deadline | None) -> str:
        log.info("no 'ready' checkpoint of this lab for %s and %s yet: booting once to make it", self.qemu.label, self.accel.name)
        self.boot(deadline)
        prewarm.run(self.ssh)
        return "dom0 at rest"

    def boot(self, deadline: Deadline | None = None) -> None:
        """Start cold, with keys made now."""
        deadline = deadline or Deadline(_COLD_BOOT)
        self._quiet()
        self._directories()
        self.keys, archive = keys.make()
        self.parent = self.dead = ""
        initrd = self.directory / "initrd"
        initrd.touch(mode=0o600)
        base = (self.image.directory / "initrd").read_bytes()
        # A second archive has to begin at a multiple of four (Linux init/initramfs.c).
        initrd.write_bytes(base + bytes(-len(base) % 4) + archive)
        self.machine.boot(initrd, deadline)
        self._reach(deadline)
        initrd.unlink()

    def restore(self, made: Checkpoint, deadline: Deadline | None = None, *, private_memory: bool = False) -> None:
        """Put this lab into the state of a checkpoint; a running machine is thrown away.

        ``private_memory`` makes a checkpoint that is to follow quick. Raises CheckpointBroken for one that QEMU cannot load.
        """
        deadline = deadline or Deadline(_RESTORE)
        self._quiet()
        self._directories()
        # A hot one is copied: whoever goes on from it stands on what it stood on.
        self.keys, self.parent, self.dead = made.keys, made.parent if made.hot else made.directory.name, ""
        try:
            if made.hot:
                self.machine.restore_process(made, deadline)
            else:
                self.machine.load(made, deadline, private_memory=private_memory)
        except (LabDead, DeadlineExpired, FileNotFoundError) as exc:
            self.machine.stop()
            registry.stopped(self.name)
            self._still(made)
            if isinstance(exc, FileNotFoundError):  # it is whole: something else is not there
                raise
            log.warning("checkpoint %s cannot be loaded and is removed: %s", made.directory.name, exc.message)
            checkpoint.remove(made.directory)
            if made.hot:
                self.hot = None
            raise CheckpointBroken(f"checkpoint {made.name} could not be loaded: {exc.message}", hint="it is made anew") from exc
        self._still(made)
        self._reach(deadline)

    def _still(self, made: Checkpoint) -> None:
        """Raises CheckpointBroken, and ends the machine, where it is no longer this checkpoint that lies there."""
        if not made.is_there():
            self.machine.stop()
            raise CheckpointBroken(
                f"checkpoint {made.name} was made anew or removed while it was loaded", hint="it is loaded again"
            )

    def checkpoint(self, name: str, note: str = "") -> Checkpoint:
        """Freeze the machine under ``name`` and go on from there."""
        made = self._freeze(name, note)
        self.restore(made)
        return made

    def _freeze(self, name: str, note: str, *, anew: bool = True) -> Checkpoint:
        if self.keys is None or self.machine.process is None:
            raise LabDead(f"lab {self.name} is not up")
        spec = replace(self.spec, drives=tuple(drive.number for drive in self.machine.drives))
        begun = time.monotonic()
        files: dict[str, Path] = {}
        key = self._key(name)
        if key:
            with contextlib.suppress(TransportError):
                self.ssh.run(["sh", "-c", _HANG_UP], Deadline(20), check=False)
        self._quiet()
        if key:
            try:
                files = self.machine.dump_process(checkpoint.path(self.image, name, spec, self.qemu, key), Deadline(_FREEZE))
            except (InfrastructureError, DeadlineExpired) as exc:
                log.warning("lab %s: checkpoint %s is not kept hot: %s", self.name, name, exc.message)
                self.hot, key = None, ""
        if not files:
            files = self.machine.freeze(Deadline(_FREEZE))
        directory = checkpoint.path(self.image, name, spec, self.qemu, key)
        made = Checkpoint(directory, name, spec, self.keys, self.parent, note, bool(key))
        saved = checkpoint.save(self.image, made, files, self.qemu, anew=anew)
        log.info("checkpoint %s: %d MiB, %.1f s", name, saved.size >> 20, time.monotonic() - begun)
        return saved

    def down(self) -> None:
        """End the machine; its logs stay."""
        self._quiet()
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
        """Let go of a lab that goes on without us."""
        self._quiet()
        if self.machine.process is not None:
            self.machine.process.release()

    def keep_for(self, seconds: float) -> None:
        """Let go of the lab; it ends, and its files go, after so long, or by `fxh lab rm`."""
        process = self.machine.process
        if process is None:
            return
        self.keep = True
        self.record()
        process.hand_over([sys.executable, "-c", _EXPIRE, self.name, str(seconds)])
        self.release()

    @classmethod
    def attach(cls, name: str, qemu: Qemu) -> Lab:
        """A lab that runs already (kept, or another's), from its record. Raises UsageError when there is none."""
        record = registry.read(name)
        if record is None or registry.state(name) != "up":
            raise UsageError(f"no lab {name} is up", hint="`fxh lab list` shows the labs, `fxh lab up` starts one")
        found = hot.find()[0] if record.chamber else None
        lab = cls(LabImage(record.image_path), qemu, Accel(record.accel, record.why), record.spec, name=name, keep=True, hot=found)
        lab.keys, lab.parent = keys.Keys(record.key(), record.host_key), record.checkpoint
        lab.machine.adopt(record.qemu_pid, record.ssh_port, record.drives)
        lab._reach(Deadline(10))
        return lab

    # -- what others use ----------------------------------------------------------------------------------------------

    @property
    def ssh(self) -> SshTransport:
        """The connection to dom0. Raises LabDead when the lab is lost or not up."""
        if self.dead:
            raise LabDead(f"lab {self.name}: {self.dead}", hint="the next case gets a fresh lab")
        if self._transport is None:
            raise LabDead(f"lab {self.name} is not up")
        return self._transport

    def record(self) -> None:
        """Write down what others may know of this lab."""
        process, made = self.machine.process, self.keys
        if process is None or made is None:
            return
        registry.write(
            LabRecord(
                name=self.name, image=str(self.image.directory), qemu=self.qemu.label, qemu_pid=process.pid,
                owner_pid=os.getpid(), kept=self.keep, ssh_port=self.machine.ssh_port, accel=self.accel.name,
                why=self.accel.why, checkpoint=self.parent, started=stamp.now(), host_key=made.host, spec=self.spec,
                drives=tuple(self.machine.drives), chamber=self.machine.hot is not None,
            ),
            made.client,
        )  # fmt: skip

    # -- inside -------------------------------------------------------------------------------------------------------

    def _directories(self) -> None:
        for path in (self.directory, self.sockets):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _reach(self, deadline: Deadline) -> None:
        made, process = self.keys, self.machine.process
        if made is None or process is None:
            raise LabDead(f"lab {self.name} is not up")
        self.record()
        # Heavy, and needed no sooner: it loads while QEMU starts.
        from harness.transport.ssh import SshTransport

        def connect() -> SshTransport:
            try:
                return SshTransport(
                    "127.0.0.1", self.machine.ssh_port, private_key=made.client, known_host_key=made.host, name=self.name,
                    deadline=deadline.capped(5),
                )  # fmt: skip
            except (TransportError, InfrastructureError) as exc:
                if not process.alive():
                    raise LabDead(f"QEMU ended: {process.last_words()}") from exc
                raise ConditionNotMet(str(exc)) from exc

        self._transport = deadline.wait(f"ssh to dom0 of lab {self.name}", connect, 0.05)
        self._pulse = Pulse(self.sockets / "com2", self._silent)
        self._pulse.start()

    def _silent(self, seconds: float) -> bool:
        """dom0 gave no sign of life: say what hangs, and end the machine so that every wait on it ends.

        Returns True while the machine is only busy (Xen clearing a dead guest's memory keeps the one CPU for seconds).
        """
        process = self.machine.process
        if process is None:
            return False
        what = f"dom0 gave no sign of life for {seconds:.0f} s"
        try:
            state = self.machine.cpu_state()
            if state.busy and seconds < _BUSY:
                # Asked again each second: once is enough to be told.
                log.log(
                    logging.INFO if seconds < SILENCE + 1 else logging.DEBUG, "lab %s: %s; it is busy: %s", self.name, what, state
                )
                return True
            what += f"; {state}"
        except LabDead as exc:
            what += f"; QEMU's monitor does not answer either ({exc.message})"
        if not process.alive():
            what = f"QEMU ended: {process.last_words() or 'killed'}"
        self.dead = what
        log.error("lab %s: %s", self.name, what)
        registry.mark_dead(self.name, what)
        process.stop()
        if self._transport is not None:
            self._transport.close()
        return False

    def _quiet(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None
