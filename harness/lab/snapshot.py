# SPDX-License-Identifier: BSD-2-Clause
"""Save a running QEMU as the files of a checkpoint, and restore it: the interface, and the way by QEMU's migration.

The other way, for hot checkpoints, is :mod:`harness.lab.criu`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError
from harness.lab.qemu import Drive
from harness.lab.registers import in_guest_mode
from harness.sparse import copy_sparse

if TYPE_CHECKING:
    from harness.lab.checkpoint import Checkpoint
    from harness.lab.machine import Machine


class Snapshotter(Protocol):
    """One way to save and restore a machine."""

    @property
    def key(self) -> str:
        """A value that must agree, besides QEMU and the machine, for a checkpoint to be usable, or ""."""
        ...

    def save(self, machine: Machine, place: Path, deadline: Deadline) -> dict[str, Path]:
        """Stop ``machine`` for good and return the files of its checkpoint by name. They will be moved to ``place``.

        Raises InfrastructureError, DeadlineExpired.
        """
        ...

    def restore(self, machine: Machine, saved: Checkpoint, deadline: Deadline, *, private_memory: bool = False) -> None:
        """Replace ``machine`` by the one in ``saved``, and run it. ``private_memory`` makes a save that follows faster.

        Raises LabDead, DeadlineExpired, FileNotFoundError.
        """
        ...


class MigrationSnapshotter:
    """Saves memory as a sparse file, the devices' state as QEMU's migration stream, and the disks.

    The stream leaves out memory that lies in a shared file (QEMU's capability ``x-ignore-shared``).
    """

    key = ""

    def save(self, machine: Machine, place: Path, deadline: Deadline) -> dict[str, Path]:
        """The files are ``ram``, ``state``, ``root.qcow2``, and each drive's disk by its serial."""
        ram = machine.directory / "ram"
        if not machine.shares_ram:
            # Copy-on-write memory is in no file yet. A second QEMU, with memory in a shared file, takes it over.
            whole = machine.directory / "whole"
            _outgoing(machine, whole, deadline, devices_only=False)
            machine.running().stop()
            (machine.sockets / "qmp").unlink(missing_ok=True)
            machine.launch(ram, True, machine.image.directory / "initrd", True, deadline)
            _incoming(machine, whole, deadline, devices_only=False)
            whole.unlink()
        state = machine.directory / "state"
        _outgoing(machine, state, deadline, devices_only=True)
        machine.stop()
        disks = {"root.qcow2": machine.directory / "root.qcow2"}
        disks |= {f"{drive.serial}.qcow2": machine.directory / drive.file for drive in machine.drives}
        return {"ram": ram, "state": state, **disks}

    def restore(self, machine: Machine, saved: Checkpoint, deadline: Deadline, *, private_memory: bool = False) -> None:
        """With ``private_memory``, copy the memory first, which takes a few tenths of a second."""
        machine.clean()
        machine.spec = saved.spec
        machine.overlay("root", saved.disk("root"))
        for number in saved.spec.drives:
            machine.drives.append(Drive(number, machine.overlay(f"fxh{number}", saved.disk(f"fxh{number}")).name))
        ram = saved.ram
        if private_memory:
            ram = machine.directory / "ram"
            copy_sparse(saved.ram, ram)
        machine.launch(ram, private_memory, machine.image.directory / "initrd", True, deadline)
        _incoming(machine, saved.state, deadline, devices_only=True)
        machine.running().command("cont")


def _ignore_shared(machine: Machine, on: bool) -> None:
    """Set whether the migration stream leaves out memory that lies in a shared file."""
    machine.running().command("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": on}])


def _incoming(machine: Machine, state: Path, deadline: Deadline, *, devices_only: bool) -> None:
    process = machine.running()
    _ignore_shared(machine, devices_only)
    process.command("migrate-incoming", uri=f"exec:cat {shlex.quote(str(state))}")

    def loaded() -> None:
        status = process.command("query-status")["status"]
        if status != "paused":  # the state in which it was saved: loading is complete
            raise ConditionNotMet(f"QEMU is in state {status}; {process.last_words()}")

    deadline.wait(f"{state} to load", loaded, 0.003)


def _outgoing(machine: Machine, target: Path, deadline: Deadline, *, devices_only: bool) -> None:
    process = machine.running()
    _ignore_shared(machine, devices_only)
    _stop_in_xen(machine, deadline)
    process.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
    process.command("migrate", uri=f"exec:cat > {shlex.quote(str(target))}")

    def saved() -> None:
        status = process.command("query-migrate").get("status")
        if status == "failed":
            raise InfrastructureError("QEMU could not write the checkpoint", hint=f"check the free space at {target.parent}")
        if status != "completed":
            raise ConditionNotMet(f"migration is {status}")

    deadline.wait("the checkpoint to be written", saved, 0.005)


def _stop_in_xen(machine: Machine, deadline: Deadline) -> None:
    """Stop at a moment when no CPU runs a PVH or HVM guest.

    QEMU cannot load the state of a CPU in guest mode if it was built with KVM and runs without it (7.2,
    target/i386/machine.c, cpu_post_load).
    """
    process = machine.running()

    def stopped() -> None:
        process.command("stop")
        if in_guest_mode(machine.registers()):
            process.command("cont")
            raise ConditionNotMet("a CPU is in a guest")

    deadline.wait("a moment when no CPU is in a guest", stopped, 0.003)
