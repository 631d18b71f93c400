# SPDX-License-Identifier: BSD-2-Clause
"""What a guest operating system does differently from another: everything else in the harness is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from harness.console.stages import Stage
from harness.osversion import OSVersion

Run = Callable[[str], str]
"""Runs a shell command line in the guest and returns its output; raises CommandFailed, GuestDied."""


@dataclass(frozen=True)
class KernelIdentity:
    """Which kernel runs: ``release`` as of uname -r, ``ident`` the name of its configuration, ``version`` in full.

    ``osreldate`` is FreeBSD's ``kern.osreldate`` (``uname -K``), 0 for another system.
    """

    release: str
    ident: str
    version: str
    osreldate: int = 0

    def differences(self, given: KernelIdentity) -> list[str]:
        """What this running kernel says otherwise than ``given``, its file, in which an empty field says nothing."""
        pairs = [(name, getattr(self, name), wanted) for name, wanted in asdict(given).items() if wanted]
        return [f"its {name} is {seen!r}, the file has {wanted!r}" for name, seen, wanted in pairs if seen != wanted]


@dataclass(frozen=True)
class Interface:
    """A network interface. ``offloads`` are the OS's own words (TSO4, tx-checksumming) that are on."""

    name: str
    mac: str
    mtu: int
    offloads: frozenset[str]


@dataclass(frozen=True)
class ShutdownExpectation:
    """How a guest should end what it was asked: ``reason`` as of ``xl list``; "" when Xen is told nothing.

    Then it lives on, or ``halts``: its kernel stopped, its domain stays.
    """

    reason: str
    halts: bool = False
    why: str = field(default="", kw_only=True)
    """Where that is written."""


class GuestProfile(Protocol):
    """One operating system. ``os`` names it; ``version`` is known when an image is, and may be empty."""

    @property
    def os(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def os_version(self) -> OSVersion:
        """FreeBSD's version as far as it is known; for another system, harness.osversion.UNKNOWN."""
        ...

    @property
    def stages(self) -> Sequence[Stage]: ...

    @property
    def types(self) -> tuple[str, ...]:
        """The guest types it can run as."""
        ...

    @property
    def halted(self) -> bytes:
        """A regex for what it prints when it has halted for good."""
        ...

    @property
    def user(self) -> str:
        """Who logs in on the console; ``password`` may be empty."""
        ...

    @property
    def password(self) -> str: ...

    def command_line(self, variables: Mapping[str, str]) -> str:
        """The ``extra`` that gives the kernel these variables."""
        ...

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        """What a test boot sets: the root device, what arms the panic handling early, what spares an ``emulated`` CPU."""
        ...

    def disk_name(self, vdev: str) -> str:
        """What the guest calls the disk ``vdev``."""
        ...

    def identity(self, run: Run) -> KernelIdentity: ...

    def identity_of(self, kernel: bytes) -> KernelIdentity:
        """What a kernel file says that it is; a field on which it is silent is empty. Raises UsageError for no kernel of this OS."""
        ...

    def variables(self, run: Run) -> Mapping[str, str]:
        """The kernel's environment (kenv), or its command line taken apart."""
        ...

    def root_device(self, run: Run) -> str: ...

    def disks(self, run: Run) -> tuple[str, ...]: ...

    def interfaces(self, run: Run) -> tuple[Interface, ...]: ...

    def memory_mib(self, run: Run) -> int:
        """What the kernel manages, free or not."""
        ...

    def panic_command(self) -> str:
        """Typed in the guest, kills it by a panic."""
        ...

    def flood_command(self, lines: int, width: int) -> str:
        """Prints ``lines`` numbered lines of ``width`` characters on the console."""
        ...

    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        """What the guest does when dom0 writes ``control`` to control/shutdown."""
        ...

    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation: ...


def parse_assignments(text: str) -> dict[str, str]:
    """Lines ``name="value"`` (kenv) as a dict."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = value.strip().removeprefix('"').removesuffix('"')
    return found
