# SPDX-License-Identifier: BSD-2-Clause
"""The stages of a boot, as tables: what line shows that a stage was reached, and how long the next may take."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Reached when ``pattern`` is found. ``literal`` is a byte string without which the pattern cannot match.

    ``budget`` is how many seconds may pass, after this stage, until the next one is reached.
    """

    name: str
    literal: bytes
    pattern: re.Pattern[bytes]
    budget: float


# Bytes of console output, the most frequent first.
_FREQUENT = b" etaoinsrhdlu0123456789cmfpgwybvk:.,-/=xjqz_"


def rarest(literal: bytes) -> bytes:
    """The byte of ``literal`` that output holds least often: a search for it alone is many times faster, and mostly in vain."""
    return max((literal[n : n + 1] for n in range(len(literal))), key=lambda byte: _FREQUENT.find(byte) % (len(_FREQUENT) + 1))


@dataclass(frozen=True)
class StageReached:
    """``at`` is monotonic time in seconds, ``offset`` the stage's place in the console log in bytes."""

    name: str
    at: float
    offset: int


def _stage(name: str, literal: bytes, pattern: bytes, budget: float) -> Stage:
    return Stage(name, literal, re.compile(pattern, re.MULTILINE), budget)


# The literals of the kernels' stages.
KERNELS = (b"The FreeBSD Project", b"Linux version")
# Seconds from unpausing the domain to the first line of all.
FIRST_LINE = 60.0

# A line of an i386 PV kernel begins with a CR: its console driver puts one behind each LF (sys/dev/xen/console/console.c of 10).
# FreeBSD 8 to 15. The sources print these lines alike in 13.2, 14.2 and 15.1: sys/kern/init_main.c, vfs_mountroot.c,
# sys/dev/xen, sys/x86/xen, libexec/rc/rc.d, and for the loaders stand/common/newvers.sh and load_elf.c.
FREEBSD = (
    # BdsDxe: starting Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x4,0x0)/Sata(0x0,0xFFFF,0x0)
    # HVM with UEFI (edk2 MdeModulePkg/Universal/BdsDxe); a BIOS prints on the screen only.
    _stage("firmware", b"BdsDxe: ", rb"BdsDxe: (?:loading|starting) Boot[0-9A-Fa-f]{4} ", 300),
    # Only if a loader talks on the same console (HVM):
    # BTX loader 1.00  BTX version is 1.02     CD Loader 1.20     PXE Loader 1.00      (BIOS, first)
    # FreeBSD/x86 bootstrap loader, Revision 1.1     FreeBSD/x86 ZFS enabled bootstrap loader, Revision 1.1     (BIOS)
    # >> FreeBSD EFI boot block                                 (boot1.efi, up to 12)
    # FreeBSD/amd64 EFI loader, Revision 3.0                    (UEFI)
    # /boot/kernel/kernel text=0xa8080 ...                      (spelled ELF sizes: load_elf.c)
    _stage(
        "loader",
        b"o",
        rb"FreeBSD/\w+ (?:[\w ]{1,24} )?(?:bootstrap|EFI) loader, |^/?\S*/boot/kernel/kernel (?:text|data)=|(?:BTX|CD|PXE) [Ll]oader \d"
        rb"|>> FreeBSD EFI boot block",
        300,
    ),
    # Copyright (c) 1992-2021 The FreeBSD Project.
    _stage("kernel", KERNELS[0], rb"Copyright \(c\) 1992-\d{4} The FreeBSD Project", 60),
    # XEN: Hypervisor version 4.17 detected.   /   Hypervisor: Origin = "XenVMMXenVMM"   /   i386 PV: Xen reported: 2599.996 MHz processor.
    _stage(
        "xen",
        b"or",
        rb"XEN: Hypervisor version [\d.]+ detected|Hypervisor: Origin = \"XenVMMXenVMM\"|Xen reported: [\d.]+ MHz processor",
        90,
    ),
    # xenbusb_front0: <Xen Frontend Devices> on xenstore0
    _stage("xenbus", b"Xen Frontend Devices", rb"<Xen Frontend Devices>", 60),
    # xbd0: 256MB <Virtual Block Device> at device/vbd/51712 on xenbusb_front0
    _stage("disk", b"Virtual Block Device", rb"<Virtual Block Device> at device/vbd/\d+", 60),
    # Trying to mount root from ufs:/dev/xbd0 []...
    _stage("mountroot", b"Trying to mount root", rb"Trying to mount root from ", 60),
    # Setting hostuuid: ...  /  Starting file system checks:  /  Mounting local filesystems:.
    _stage(
        "rc",
        b"ing ",
        rb"^\r*(?:Setting hostuuid|Starting file system checks|Mounting local file ?systems|Loading kernel modules)",
        180,
    ),
    # login:
    _stage("login", b"login: ", rb"^\r*(?:\S+ )?login: ", 0),
)

# A Linux of 5 to 6 and the control guest's busybox init (images/control/init).
LINUX = (
    # [    0.000000] Linux version 6.12.118+deb13-amd64 ...
    _stage("kernel", KERNELS[1], rb"Linux version \d", 60),
    # [    0.000000] Hypervisor detected: Xen PV     /    Booting paravirtualized kernel on Xen PVH
    _stage("xen", b"Xen", rb"Hypervisor detected: Xen|Booting paravirtualized kernel on Xen|Booting kernel on Xen", 90),
    # [    5.3] Run /init as init process
    _stage("init", b"init", rb"Run /init as init process|^FXH control guest init", 60),
    # control login:
    _stage("login", b"login: ", rb"^(?:\S+ )?login: ", 0),
)

# The first words of a boot, wherever its console begins, by the literal of the kernel's stage. Where that stage was reached before,
# it is a second boot.
BOOTS = {
    KERNELS[0]: (
        # ---<<BOOT>>---
        _stage("boot", b"---<<BOOT>>---", rb"^\r*---<<BOOT>>---", 0),
        # FreeBSD/x86 bootstrap loader, Revision 1.1     FreeBSD/amd64 EFI loader, Revision 3.0
        _stage("boot", b" loader, Revision", rb"^\r*FreeBSD/\w+ (?:[\w ]{1,24} )?(?:bootstrap|EFI) loader, Revision", 0),
        # BdsDxe: loading Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)
        _stage("boot", b"BdsDxe: loading Boot", rb"^\r*BdsDxe: loading Boot[0-9A-Fa-f]{4} ", 0),
    ),
    KERNELS[1]: (
        # [    0.000000] Linux version 6.12.118 ...
        _stage("boot", b"] Linux version ", rb"^\r*\[ *0\.0+\](?:\[ *[TC]\d+\])? Linux version \d", 0),
    ),
}
# A kernel's banner. login(1) of FreeBSD up to 9 prints the same line at a login, but not the lines behind it.
# Copyright (c) 1992-2021 The FreeBSD Project.
# Copyright (c) 1979, 1980, 1983, 1986, 1988, 1989, 1991, 1992, 1993, 1994
#         The Regents of the University of California. All rights reserved.
# FreeBSD is a registered trademark of The FreeBSD Foundation.
BANNER = _stage("boot", KERNELS[0], rb"^\r*Copyright \(c\) 1992-\d{4} The FreeBSD Project", 0)
BANNER_GOES_ON = re.compile(rb"^\r*FreeBSD is a registered trademark of The FreeBSD Foundation", re.MULTILINE)
# All of the output since the banner: it is cut off there, or the kernel went no further.
ONLY_BANNER = re.compile(rb"(?:[ \t\r]*(?:(?:Copyright|The Regents|FreeBSD )[^\n]*)?(?:\n|\Z))*")
# A Linux kernel prints its log once more when a console takes over from an early one.
# [    0.301234] printk: console [hvc0] enabled
REPLAYED = re.compile(rb"console \[\w+\] enabled")
