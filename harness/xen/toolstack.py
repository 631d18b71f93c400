# SPDX-License-Identifier: BSD-2-Clause
"""The interface of a toolstack: the operations that the harness uses in dom0."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol

from harness.deadline import Deadline
from harness.transport import Stream
from harness.xen.config import Disk, DomainConfig, Vif
from harness.xen.event_wait import Pause
from harness.xen.listing import DomainState, HostInfo

# The command that takes a migrated domain. -e: no xl waits in the background for the end of the domain. Its command line would not
# name the run.
RECEIVER = "xl migrate-receive -e"

ConsoleKind = Literal["pv", "serial", "both"]


class Console(Stream, Protocol):
    """A domain's console, through a client in dom0. Only one client can be connected."""

    def leave(self) -> None:
        """Make the client exit, and wait until the reader has seen its end. Then another client can connect.

        A client that does not exit keeps the lock of the console; in a checkpoint it does so for ever. Stops waiting after 5
        seconds.
        """
        ...


class Toolstack(Protocol):
    """Operations on domains, which are identified by name or domid. Each raises CommandFailed with the tool's message.

    The only implementation is :class:`harness.xen.xl.Xl`.
    """

    def create(self, config: DomainConfig, deadline: Deadline | None = None, *, paused: bool = True) -> int:
        """Build the domain and return its domid. It starts paused, so the console can be attached before the first output."""
        ...

    def unpause(self, domain: str | int) -> None:
        """Let the vCPUs of a paused domain run."""
        ...

    def pause(self, domain: str | int) -> None:
        """Stop the vCPUs until :meth:`unpause`."""
        ...

    def destroy(self, domain: str | int) -> None:
        """End the domain at once, without its cooperation."""
        ...

    def reboot(self, domain: str | int, *, force: bool = False) -> None:
        """Request a reboot from the guest (``control/shutdown``). ``force``: send an ACPI event if it has no PV driver."""
        ...

    def shutdown(self, domain: str | int, *, force: bool = False) -> None:
        """Request a shutdown from the guest; ``force`` as in :meth:`reboot`."""
        ...

    def domains(self) -> tuple[DomainState, ...]:
        """All domains, including dom0."""
        ...

    def find(self, domain: str | int) -> DomainState | None:
        """The row of the domain in ``xl list``, or None if there is none."""
        ...

    def mem_set(self, domain: str | int, mib: int) -> None:
        """Set the target of the guest's balloon driver, in MiB."""
        ...

    def mem_max(self, domain: str | int, mib: int) -> None:
        """Set the most memory that Xen lets the domain have, in MiB."""
        ...

    def vcpu_set(self, domain: str | int, count: int) -> None:
        """Request that the guest uses ``count`` vCPUs, even if the host has fewer CPUs."""
        ...

    def info(self) -> HostInfo:
        """The values of ``xl info``. Raises ValueError if they cannot be parsed."""
        ...

    def dmesg(self, *, clear: bool = False) -> str:
        """The hypervisor's log."""
        ...

    def console(self, domain: str | int, *, kind: ConsoleKind = "pv", new: bool = True) -> Console:
        """The domain's PV console, the serial port of an HVM domain, or both. ``new``: wait for the console of a new domain.

        Input to ``both`` goes to the PV console.
        """
        ...

    def dump_core(self, domain: str | int, path: str) -> None:
        """Write the domain's memory to ``path`` in dom0."""
        ...

    def save(self, domain: str | int, path: str, *, stay: bool = False, limit: int = 0) -> None:
        """Suspend the guest and write it to the save file ``path`` in dom0. This destroys its domain, or continues it with ``stay``.

        With ``limit`` the file can have at most this many bytes. A larger save fails, and the toolstack continues the guest.
        """
        ...

    def restore(self, path: str, name: str) -> int:
        """Restore the domain ``name`` from the save file ``path``. It runs. Returns the new domid."""
        ...

    def migrate(self, domain: str | int, receiver: str) -> None:
        """Migrate the running domain live. The standard streams of ``receiver``, a shell command, carry it. Raises CommandFailed.

        If the migration fails, the domain continues with its old domid, or no longer exists. After its shutdown the migrated domain
        stays, independent of its on_reboot and on_crash.
        """
        ...

    def block_attach(self, domain: str | int, disk: Disk) -> None:
        """Attach a disk to the running domain."""
        ...

    def block_detach(self, domain: str | int, vdev: str, *, force: bool = False) -> None:
        """Request that the guest releases the disk. ``force``: remove the backend even if the guest does not answer."""
        ...

    def network_attach(self, domain: str | int, vif: Vif) -> None:
        """Attach a network interface to the running domain."""
        ...

    def network_detach(self, domain: str | int, devid: int) -> None:
        """Request that the guest releases the interface ``devid``, counted from 0."""
        ...

    def log(self, name: str) -> str:
        """The toolstack's log of the domain ``name`` (shutdown reasons, actions)."""
        ...

    def follow_log(self, name: str, *, seconds: float) -> AbstractContextManager[Pause]:
        """Follow the log of the domain ``name`` for at most ``seconds``.

        The pauses end when the domain was rebuilt and runs, or could not be rebuilt.
        """
        ...
