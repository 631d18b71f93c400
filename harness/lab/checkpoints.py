# SPDX-License-Identifier: BSD-2-Clause
"""The checkpoints of one lab: find, create, save and restore. :mod:`harness.lab.checkpoint` has their files."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness import preparing, trace
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfrastructureError, LabDead, TransportError
from harness.lab import checkpoint, prewarm, progress, registry
from harness.lab.checkpoint import Checkpoint, CheckpointBroken, CheckpointKind
from harness.lab.snapshot import MigrationSnapshotter, Snapshotter

if TYPE_CHECKING:
    from harness.lab.lab import Lab

log = logging.getLogger("fxh.lab")
# The messages of this logger are shown at once.
_said = logging.getLogger("fxh.lab.build")

# Seconds that the steps of a lab's first start take on a machine with two CPUs, for the progress.
_BOOT, _PREWARM = 20.0, 15.0
# Seconds.
_RESTORE = 30.0
_SAVE = 180.0

# Ends the ssh server's processes except the listening one: a connection that is closed from here would linger in QEMU's network.
_HANG_UP = """
for p in $(busybox pidof dropbear); do
  grep -q '^Name:.dropbear$' "/proc/$(sed -n 's/^PPid:.//p' "/proc/$p/status")/status" && set -- "$@" "$p"
done
kill -9 "$@"
"""


class LabCheckpoints:
    """Restores and saves the machine of ``lab``. All methods raise InfrastructureError and its subclasses."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._machine = lab, lab.machine
        self._migration = MigrationSnapshotter()
        self.hot = lab.machine.criu is not None
        """Whether new checkpoints are hot where their kind allows it. False after CRIU failed once."""

    # -- get or create ------------------------------------------------------------------------------------------------

    def reset(self, deadline: Deadline | None = None, *, private_memory: bool = False) -> None:
        """Restore the idle dom0; the first time, boot and save it."""
        kind, build = (CheckpointKind.READY_HOT, self._prewarm) if self.hot else (CheckpointKind.READY, self._boot_and_prewarm)
        self.get_or_create(kind, "", lambda: build(deadline), deadline, private_memory=private_memory)

    def get_or_create(
        self,
        kind: CheckpointKind,
        key: str,
        build: Callable[[], str],
        deadline: Deadline | None = None,
        *,
        exclusive: bool = True,
        private_memory: bool = False,
        what: str = "",
    ) -> Checkpoint:
        """Restore the checkpoint ``key`` of ``kind``. If it does not exist, create it from the state that ``build`` makes.

        ``build`` brings the lab into the state and returns the checkpoint's note. With ``exclusive``, other processes that need
        the same checkpoint wait meanwhile. ``what`` describes the checkpoint for the reader of a log. A checkpoint that cannot be loaded is
        created again. Raises what ``build`` raises, and CheckpointBroken if the new checkpoint cannot be loaded either.
        """

        def restored() -> Checkpoint:
            found = self.find(kind, key) or self._create(kind, key, build, exclusive, what)
            self.restore(found, deadline, private_memory=private_memory)
            return found

        try:
            return restored()
        except CheckpointBroken:
            return restored()

    def _create(self, kind: CheckpointKind, key: str, build: Callable[[], str], exclusive: bool, what: str) -> Checkpoint:
        """The checkpoint from the state that ``build`` makes, or the one that another process has saved meanwhile."""
        lab, name, snapshot_key = self._lab, kind.name_of(key), self._snapshotter(kind).key
        lock = checkpoint.lock(lab.image, name, lab.spec, lab.qemu, snapshot_key) if exclusive else contextlib.nullcontext()
        with preparing.step(f"checkpoint {name}{f' ({what})' if what else ''}"), lock:
            return self.find(kind, key) or self._save(kind, name, build(), replace=False)

    def find(self, kind: CheckpointKind, key: str = "") -> Checkpoint | None:
        """The checkpoint to which this machine can be restored, or None."""
        lab, name, snapshot_key = self._lab, kind.name_of(key), self._snapshotter(kind).key
        if snapshot_key:
            hot = checkpoint.find(lab.image, name, lab.spec, lab.qemu, snapshot_key)
            # All other hot checkpoints are derived from READY_HOT, so a cold one cannot replace it.
            if hot or kind is CheckpointKind.READY_HOT:
                return hot
        return checkpoint.find(lab.image, name, lab.spec, lab.qemu)

    def find_named(self, name: str) -> Checkpoint | None:
        """As :meth:`find`, by the name in the store."""
        kind = CheckpointKind.of(name)
        return self.find(kind, name.removeprefix(kind.value))

    def _boot(self, deadline: Deadline | None) -> str:
        log.info("no ready checkpoint for %s and %s yet: booting dom0 once", self._lab.qemu.label, self._lab.accel.name)
        with progress.shown(_said, "first boot of the lab", progress.Expected(_BOOT)):
            self._lab.boot(deadline)
        return "dom0 idle"

    def _boot_and_prewarm(self, deadline: Deadline | None) -> str:
        note = self._boot(deadline)
        self._run_programs()
        return note

    def _run_programs(self) -> None:
        with progress.shown(_said, "first run of dom0's programs", progress.Expected(_PREWARM)):
            prewarm.run(self._lab.ssh)

    def _prewarm(self, deadline: Deadline | None) -> str:
        self.get_or_create(CheckpointKind.READY, "", lambda: self._boot(deadline), deadline)
        self._run_programs()
        return "dom0 idle, with the code that cases use translated"

    def _snapshotter(self, kind: CheckpointKind) -> Snapshotter:
        """The snapshotter that now saves checkpoints of ``kind``."""
        criu = self._machine.criu
        return criu if criu is not None and self.hot and kind.may_be_hot else self._migration

    # -- restore ------------------------------------------------------------------------------------------------------

    def restore(self, saved: Checkpoint, deadline: Deadline | None = None, *, private_memory: bool = False) -> None:
        """Replace this lab's machine by the one in ``saved``.

        ``private_memory`` makes a save that follows faster. Raises CheckpointBroken if QEMU cannot load the checkpoint.
        """
        with trace.step("restore", f"restore the checkpoint {saved.name}", self._lab.name):
            self._restore(saved, deadline or Deadline(_RESTORE), private_memory)

    def _restore(self, saved: Checkpoint, deadline: Deadline, private_memory: bool) -> None:
        snapshotter = self._machine.criu if saved.hot else self._migration
        if snapshotter is None:
            raise LabDead(f"lab {self._lab.name} runs without CRIU and cannot load the hot checkpoint {saved.name}")
        # The disks of a hot checkpoint are copied, so a child depends on the same parent.
        self._lab.begin(saved.keys, saved.parent if saved.hot else saved.directory.name)
        try:
            snapshotter.restore(self._machine, saved, deadline, private_memory=private_memory)
        except (LabDead, DeadlineExpired, FileNotFoundError) as exc:
            self._machine.stop()
            registry.stopped(self._lab.name)
            self._verify_unchanged(saved)
            if isinstance(exc, FileNotFoundError):  # the checkpoint is complete, so another file is missing
                raise
            log.warning("checkpoint %s cannot be loaded and is removed: %s", saved.directory.name, exc.message)
            saved.remove()
            if saved.hot:
                self.hot = False
            raise CheckpointBroken(
                f"checkpoint {saved.name} could not be loaded: {exc.message}", hint="try again: the harness creates a new one"
            ) from exc
        self._verify_unchanged(saved)
        self._lab.connect(deadline)

    def _verify_unchanged(self, saved: Checkpoint) -> None:
        """End the machine and raise CheckpointBroken if another process has replaced or removed the checkpoint."""
        if not saved.is_there():
            self._machine.stop()
            raise CheckpointBroken(f"checkpoint {saved.name} was replaced or removed while it was being loaded", hint="try again")

    # -- save ---------------------------------------------------------------------------------------------------------

    def save_as(self, name: str, note: str = "") -> Checkpoint:
        """Save the machine as the user's checkpoint ``name``, and continue from there."""
        saved = self._save(CheckpointKind.USER, name, note, replace=True)
        self.restore(saved)
        return saved

    def _save(self, kind: CheckpointKind, name: str, note: str, *, replace: bool) -> Checkpoint:
        lab, machine = self._lab, self._machine
        if lab.keys is None or machine.process is None:
            raise LabDead(f"lab {lab.name} is not up")
        spec = dataclasses.replace(lab.spec, drives=tuple(drive.number for drive in machine.drives))
        begun = time.monotonic()
        snapshotter = self._snapshotter(kind)
        if snapshotter is not self._migration:
            with contextlib.suppress(TransportError):
                lab.ssh.run(["sh", "-c", _HANG_UP], Deadline(20), check=False)
        lab.disconnect()
        directory = checkpoint.path(lab.image, name, spec, lab.qemu, snapshotter.key)
        try:
            files = snapshotter.save(machine, directory, Deadline(_SAVE))
        except (InfrastructureError, DeadlineExpired) as exc:
            if snapshotter is self._migration:
                raise
            log.warning("lab %s: checkpoint %s is saved cold: %s", lab.name, name, exc.message)
            self.hot, snapshotter = False, self._migration
            directory = checkpoint.path(lab.image, name, spec, lab.qemu)
            files = snapshotter.save(machine, directory, Deadline(_SAVE))
        new = Checkpoint(directory, name, spec, lab.keys, lab.parent, note, hot=snapshotter is not self._migration)
        saved = checkpoint.save(lab.image, new, files, lab.qemu, replace=replace)
        log.info("checkpoint %s: %d MiB, %.1f s", name, saved.size >> 20, time.monotonic() - begun)
        return saved
