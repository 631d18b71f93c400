# SPDX-License-Identifier: BSD-2-Clause
"""The configurable part of a guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from harness.xen.config import Disk


class ShapeArgs(TypedDict, total=False):
    """The keywords of the fixtures ``new_guest`` and ``booted``: fields of :class:`Shape`, type and firmware by default the cell's."""

    type: str
    memory: int
    maxmem: int
    vcpus: int
    maxvcpus: int
    variables: tuple[tuple[str, str | None], ...]
    on_poweroff: str
    on_reboot: str
    on_crash: str
    vifs: int
    emulated_nic: str
    root_vdev: str
    disks: tuple[Disk, ...]
    bootloader: str
    firmware: str
    spared: bool


@dataclass(frozen=True)
class Shape:
    """The shape in which a source runs. ``type`` is pv, pvh, hvm or pvshim; ``memory`` and ``maxmem`` are in MiB, 0 for the source's own."""

    type: str
    memory: int = 0
    maxmem: int = 0
    vcpus: int = 1
    maxvcpus: int = 0
    """The vCPUs that the domain can get later; 0: as many as ``vcpus``."""
    variables: tuple[tuple[str, str | None], ...] = ()
    """Kernel variables in addition to the default ones of the OS; None removes a default one."""
    on_poweroff: str = "preserve"
    on_reboot: str = "preserve"
    on_crash: str = "preserve"
    vifs: int = 1
    emulated_nic: str = ""
    """HVM: QEMU also emulates a network card of this model (xl-network-configuration(5)) for each interface."""
    root_vdev: str = ""
    """The vdev of the first disk, after which its root device is named; empty for the source's own."""
    disks: tuple[Disk, ...] = ()
    """Further disks that exist in dom0."""
    bootloader: str = ""
    """``pygrub`` takes the kernel from the first disk; the source must be bootable."""
    firmware: str = ""
    """HVM: ``uefi`` starts from OVMF; empty or ``bios`` from SeaBIOS."""
    dump_device: bool = False
    """With a further disk for a kernel dump (:mod:`harness.guests.keptdump`), where that is possible."""
    spared: bool = True
    """On an emulated CPU: leave out work that is slow there (the OS's variables for it, a TSC that Xen traps)."""
