# SPDX-License-Identifier: BSD-2-Clause
"""Values that a guest OS returns: its kernel, interfaces, balloon, boot volume and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

Run = Callable[[str], str]
"""Runs a shell command line in the guest and returns its output. Raises GuestCommandFailed, GuestDied."""


@dataclass(frozen=True)
class KernelIdentity:
    """``release`` as ``uname -r`` prints it, ``ident`` the name of its configuration, ``version`` in full.

    ``osreldate`` is FreeBSD's ``kern.osreldate`` (``uname -K``), 0 for another OS.
    """

    release: str
    ident: str
    version: str
    osreldate: int = 0

    def differences(self, given: KernelIdentity) -> list[str]:
        """How this running kernel differs from ``given``, its file. An empty field of ``given`` is not compared."""
        pairs = [(name, getattr(self, name), wanted) for name, wanted in asdict(given).items() if wanted]
        return [f"its {name} is {seen!r}, the file has {wanted!r}" for name, seen, wanted in pairs if seen != wanted]


@dataclass(frozen=True)
class Interface:
    """A network interface. ``offloads`` are those that are on, by the OS's own names (TSO4, tx-checksumming)."""

    name: str
    mac: str
    mtu: int
    offloads: frozenset[str]


@dataclass(frozen=True)
class ShutdownExpectation:
    """The expected end of a guest: ``reason`` as ``xl list`` shows it, or "" if Xen learns of no shutdown.

    In the latter case the guest continues, or its kernel ``halts`` and its domain stays.
    """

    reason: str
    halts: bool = False
    why: str = field(default="", kw_only=True)
    """The source of this expectation."""


@dataclass(frozen=True)
class Balloon:
    """The balloon driver's numbers in bytes: ``managed`` is the memory that the kernel manages, ``free`` the unused part of it.

    ``unexplained`` is the part of ``managed`` that is neither free, nor in a use that the kernel counts, nor given to Xen.
    """

    current: int
    target: int
    managed: int
    free: int
    unexplained: int


@dataclass(frozen=True)
class BalloonLimits:
    """The sizes for the cases of the balloon suite, in MiB or as a part of the guest's memory."""

    memory: int = 0
    """MiB of the guest; 0: those of its source."""
    low: float = 0.5
    """The smallest part of its memory with which the guest works."""
    small: int = 256
    large: int = 384
    """MiB of ``memory`` and ``maxmem`` for a boot below its maximum."""
    dirty: float = 0.6
    """The part of its memory that a process can fill."""
    garbage: tuple[str, ...] = ("", "abc")
    """Values of memory/target that the driver must ignore."""


@dataclass(frozen=True)
class BootVolume:
    """A guest's boot volume as the guest sees it: ``file`` is the file that a case replaces, ``what`` its name in pygrub."""

    menu: str
    file: str
    what: str
    kernel: str
    """The kernel's file. It may differ from ``file``."""
    menu_change: str
    """A sed command that sets the kernel argument ``fxh.menu=two`` in ``menu``."""

    def sibling(self, name: str) -> str:
        """A path on the same file system that the bootloader does not read."""
        return f"{self.file}.{name}"


@dataclass(frozen=True)
class SmallBlocks:
    """A file system that pygrub reads, with small blocks, so that a kernel's file needs indirect ones.

    ``make`` is a command that makes it on the disk ``{0}`` and mounts it at /mnt. ``direct`` and ``single`` are the largest sizes
    of a file in bytes without and with a single indirect block.
    """

    make: str
    direct: int
    single: int
