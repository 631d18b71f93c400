# SPDX-License-Identifier: BSD-2-Clause
"""How a source is to be run."""

from __future__ import annotations

from dataclasses import dataclass

from harness.xen.config import Disk


@dataclass(frozen=True)
class Shape:
    """How a source is to be run: guest type (pv, pvh, hvm, pvshim), memory (MiB, 0 for the source's own), vCPUs, what it is told."""

    type: str
    memory: int = 0
    maxmem: int = 0
    vcpus: int = 1
    variables: tuple[tuple[str, str], ...] = ()
    """Added to the profile's own kernel variables; an empty value of None removes one."""
    on_poweroff: str = "preserve"
    on_reboot: str = "preserve"
    on_crash: str = "preserve"
    vifs: int = 1
    root_vdev: str = ""
    """The vdev of the first disk; its root device is named after it. Empty for the source's own."""
    disks: tuple[Disk, ...] = ()
    """Further disks, which are in dom0 already."""
    bootloader: str = ""
    """Takes the kernel from the first disk (``pygrub``); the source has to be a bootable one."""
    firmware: str = ""
    """HVM: ``uefi`` starts from OVMF; empty or ``bios`` from SeaBIOS."""
    spared: bool = True
    """On an emulated CPU: without what is dear there (the profile's variables for it, a TSC that Xen traps). False: as elsewhere."""
