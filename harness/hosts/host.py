# SPDX-License-Identifier: BSD-2-Clause
"""The interface of a Xen host: a dom0 reached over a transport, its toolstack, and the files and disks that guests need there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.hosts import inventory
from harness.hosts.access import Access
from harness.hosts.checkpoints import HostCheckpoints
from harness.hosts.debugger import Debugger
from harness.transport import Transport
from harness.xen.toolstack import Toolstack
from harness.xen.xenstore import Xenstore


@dataclass(frozen=True)
class HostFacts:
    """The host as reports describe it."""

    backend: str
    """``qemu`` for a lab, ``xl`` for a real host."""
    name: str
    """``lab``, or the name or address of a real host."""
    xen: str
    """The version as ``xl info`` gives it: ``4.20.5``, ``4.22-unstable``."""
    dom0: str
    """The kernel of dom0 and its release: ``Linux 6.12.9``."""
    note: str = ""
    """How the lab runs, in one line."""
    quirks: tuple[str, ...] = ()
    """Work-arounds that are active on this host."""
    emulated: bool = False
    """Its CPUs are emulated in software."""
    build_id: str = ""
    """The hypervisor's, in hex; "" if unknown."""
    builds: tuple[tuple[str, str], ...] = ()
    """Further inputs that tell two builds of one version apart: ``("xen build", "git:0123456789-dirty 0011aabb")``."""

    @property
    def label(self) -> str:
        """The part of a cell that names the host: ``xen-4.20.5``."""
        return f"xen-{self.xen.partition('-')[0]}"


class XenHost(Protocol):
    """The interface of a host. A lab and a real host implement it."""

    run_id: str
    bridge: str

    @property
    def transport(self) -> Transport:
        """The connection that runs commands in dom0 and copies files. It raises TransportError if it breaks."""
        ...

    @property
    def directory(self) -> str:
        """The path of the run's own directory in dom0, which may not exist yet. It is removed with the lease."""
        ...

    @property
    def toolstack(self) -> Toolstack:
        """xl in dom0."""
        ...

    @property
    def xenstore(self) -> Xenstore:
        """xenstore, by its command line tools in dom0."""
        ...

    @property
    def facts(self) -> HostFacts:
        """Raises InfrastructureError if dom0 does not answer ``xl info``."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Any of pv, pv32, pvh, hvm, pvshim (a PV shim is installed), pygrub, pygrub-restrict, console-log (xenconsoled logs the
        console of every guest), checkpoint, emulated (a lab without KVM).
        """
        ...

    @property
    def no_uefi(self) -> str:
        """The reason why dom0 cannot start UEFI guests, for example a missing OVMF file; "" if it can."""
        ...

    @property
    def own_ovmf(self) -> Path | None:
        """An OVMF file on this machine to upload for UEFI guests. None: use the one that libxl finds in dom0."""
        ...

    @property
    def slot(self) -> int:
        """The number of this run's lease, from 0 to 255, unique among the leases of this host. 0 without a lease."""
        ...

    def domain_name(self, label: str) -> str:
        """A name for a new domain: ``fxh-<run>-<n>-<label>``. Cleanup recognises domains of the run by it."""
        ...

    def mac(self, domain: str, index: int) -> str:
        """A MAC address for vif ``index`` of the domain, in Xen's range and unique on the network."""
        ...

    def make_directory(self) -> str:
        """Create the run's directory in dom0, if it is missing, and return its path. Acquire a lease if there is none.

        A writer must call this: a lab that was restored from the checkpoint of another run has only the directory of that run.
        """
        ...

    def files(self, *local: Path) -> tuple[str, ...]:
        """Upload files (kernel, ramdisk) unless dom0 has their content. Returns their paths in dom0."""
        ...

    def disk(self, local: Path, fmt: str = "raw") -> str:
        """Create a guest's disk from a copy of an image. Returns the disk target in dom0.

        Raises UsageError for a missing image or another format than raw, InfrastructureError if dom0 has no space.
        """
        ...

    def shared_disk(self, file: Path) -> str:
        """Use the raw file itself, which another host may have as well, as a disk until the host is reset. Returns the target in dom0.

        The host opens the file at once, so it may be deleted then. Raises CannotRun if the host cannot.
        """
        ...

    def drop_disk(self, target: str) -> None:
        """Remove a disk that :meth:`disk` returned. Ignores other targets."""
        ...

    def forget(self, domain: str) -> None:
        """Remove the logs and the configuration of a domain that no longer exists."""
        ...

    def inventory(self) -> inventory.Inventory:
        """The domains, devices, xenstore paths and processes that are in dom0 now: a case must leave none behind."""
        ...

    def hypervisor_log(self) -> str:
        """The end of Xen's log."""
        ...

    @property
    def xenstore_log(self) -> str:
        """The file in dom0 to which harness.dom0.xenstore_recorder writes the changes of the run's domains in xenstore."""
        ...

    def check(self) -> None:
        """Check the daemons and the disk space of dom0. Raises InfrastructureError if something is wrong."""
        ...

    @property
    def checkpoints(self) -> HostCheckpoints | None:
        """The checkpoints of a host that can be restored as a whole; None if each case must clean up."""
        ...

    @property
    def failure(self) -> str:
        """The reason why this host will never answer again, or ""."""
        ...

    def describe_access(self) -> Access:
        """The words with which a person reaches dom0 and its guests."""
        ...

    def keep_for(self, domains: Sequence[str], seconds: float) -> tuple[str, ...]:
        """Let ``domains`` outlive this process by ``seconds``. Returns the names of those that will.

        The run must not use the host afterwards.
        """
        ...

    @property
    def symbol_files(self) -> tuple[Path, ...]:
        """Files on this machine that may have the symbols of the hypervisor."""
        ...

    def debuggers(self, domain: int | None) -> AbstractContextManager[tuple[Debugger, ...]]:
        """Open the debugger stubs for ``domain``, if there is one, and for the host itself, until the block ends.

        Logs a warning for each that cannot be opened.
        """
        ...

    def last_words(self, limit: int, *, answers: bool) -> dict[str, bytes]:
        """The evidence of a failed case that needs no answer of dom0, by the name of its file: at most ``limit`` bytes of each log.

        ``answers``: dom0 answers, so the present end of Xen's log is evidence already.
        """
        ...

    def cleanup(self) -> None:
        """End the lease, which removes the resources of the run. Raises InfrastructureError if some remain."""
        ...

    def close(self) -> None:
        """End the lease, or the lab unless it is kept, and the connection. Logs what could not be removed."""
        ...
