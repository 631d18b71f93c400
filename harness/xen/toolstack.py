# SPDX-License-Identifier: BSD-2-Clause
"""The verbs of a toolstack: what the harness asks of a host's dom0."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from harness.deadline import Deadline
from harness.transport import Stream
from harness.xen.config import Disk, DomainConfig, Vif
from harness.xen.event_wait import Pause
from harness.xen.listing import DomainState, HostInfo


class Console(Stream, Protocol):
    """A domain's console, held by a client in dom0: two cannot have it."""

    def leave(self) -> None:
        """Have the client go, and wait until whoever reads has seen its end; the next one can have the console then.

        One that is left holds the console's lock: in a checkpoint, for ever. Gives up after some seconds.
        """
        ...


class Toolstack(Protocol):
    """One implementation today: xl. Domains are named by name or domid. Raises CommandFailed with the tool's words."""

    def create(self, config: DomainConfig, deadline: Deadline | None = None, *, paused: bool = True) -> int:
        """Build the domain, paused: its console can be attached before the first byte. Returns the domid."""
        ...

    def unpause(self, domain: str | int) -> None: ...

    def pause(self, domain: str | int) -> None: ...

    def destroy(self, domain: str | int) -> None: ...

    def reboot(self, domain: str | int, *, force: bool = False) -> None:
        """Ask the guest to reboot (``control/shutdown``); ``force`` sends the ACPI button where it has no PV driver."""
        ...

    def shutdown(self, domain: str | int, *, force: bool = False) -> None: ...

    def domains(self) -> tuple[DomainState, ...]:
        """All domains, dom0 among them."""
        ...

    def find(self, domain: str | int) -> DomainState | None: ...

    def mem_set(self, domain: str | int, mib: int) -> None: ...

    def mem_max(self, domain: str | int, mib: int) -> None: ...

    def info(self) -> HostInfo: ...

    def dmesg(self, *, clear: bool = False) -> str:
        """The hypervisor's log."""
        ...

    def console(self, domain: str | int, *, serial: bool = False, new: bool = True) -> Console:
        """The domain's PV console, or the serial port of an HVM domain; of a ``new`` one it may not be there yet."""
        ...

    def dump_core(self, domain: str | int, path: str) -> None:
        """Write the domain's memory to ``path`` in dom0."""
        ...

    def save(self, domain: str | int, path: str) -> None:
        """Suspend the guest and write it to ``path`` in dom0; its domain goes."""
        ...

    def restore(self, path: str, name: str) -> int:
        """Make the domain ``name`` from what :meth:`save` wrote, running. Returns the new domid."""
        ...

    def block_attach(self, domain: str | int, disk: Disk) -> None: ...

    def block_detach(self, domain: str | int, vdev: str, *, force: bool = False) -> None: ...

    def network_attach(self, domain: str | int, vif: Vif) -> None: ...

    def network_detach(self, domain: str | int, devid: int) -> None: ...

    def log(self, name: str) -> str:
        """What the toolstack wrote of the domain ``name`` (shutdown reasons, actions)."""
        ...

    def watch(self, name: str, *, seconds: float) -> AbstractContextManager[Pause]:
        """For at most ``seconds``: pauses that end when a domain ``name`` was made anew and runs, or could not be made."""
        ...
