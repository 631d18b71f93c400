# SPDX-License-Identifier: BSD-2-Clause
"""A kernel file looked at before anything is booted: which FreeBSD, which machine, which guest types it can serve."""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.osversion import OSVersion
from harness.xen import elfnotes, elfsymbols

# FreeBSD 13.2-RELEASE XENA       (version[] in the kernel's data, sys/conf/newvers.sh)
_VERSION = re.compile(rb"FreeBSD (\d+\.\d+)-([A-Z][A-Za-z0-9_-]*)(?: [^\0\n]{0,80})?")
# version[] of a kernel that was built reproducibly, with the ident last. Words between are the checkout's (sys/conf/newvers.sh, 12 to 15):
#   FreeBSD 13.2-RELEASE XENA\n
#   FreeBSD 14.1-STABLE stable/14-n269000-0123456789ab GENERIC\n
_REPRODUCIBLE = re.compile(rb"(FreeBSD \d+\.\d+-[A-Z][\w.-]*)((?: (?!#\d)[!-~]+)*) ([!-~]+)\n?")
# version[] of any other kernel, and of all up to 11: the build's number, the checkout, the date, and the object directory, whose last
# part is the configuration's name.
#   FreeBSD 11.4-RELEASE #0 r1: Tue Jun 16 08:00:00 UTC 2020\n    root@host:/usr/obj/usr/src/sys/GENERIC\n
#   FreeBSD 14.0-CURRENT amd64 1400064 #4 main-n1-abc: Fri Aug  5 08:00:00 UTC 2022\n    me@host:/usr/obj/usr/src/amd64.amd64/sys/XENA\n
_DATED = re.compile(rb"(FreeBSD \d+\.\d+-[A-Z][\w.-]*)(?: (?!#\d)[!-~]+)* #\d+((?: [!-~]+?)*): [^\n]*\n[^\n]*/([^\n/]+)\n?")
_BEGINS = re.compile(rb"FreeBSD \d+\.\d+-[^\0]{1,511}\0")
# Texts of that form that are looked at: a kernel has two.
_TEXTS = 64
# What ZFS prints when it is initialised (sys/contrib/openzfs/module/os/freebsd/zfs/kmod_core.c, 13.2 to 15.1).
_ZFS = b"ZFS storage pool version: "
# The real-mode part of a bzImage names its kernel so (arch/x86/boot/version.c):
# 6.1.158 (fxh@lab) #1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2025-11-09)
_LINUX_SETUP = re.compile(rb"(\S+) \(\S+\) (#\d.*)", re.DOTALL)
# linux_banner (init/version-timestamp.c):
# Linux version 6.1.158 (fxh@lab) (gcc (Debian 12.2.0-14) 12.2.0, GNU ld 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1
_LINUX_BANNER = re.compile(rb"Linux version (\d\S*) \(\S+\) \([^\n\0]*\) (#\d[^\n\0]*)\n")
_HDRS = 0x202
_MACHINES = {3: "i386", 62: "amd64", 183: "arm64", 243: "riscv", 20: "powerpc", 21: "powerpc64"}


@dataclass(frozen=True)
class KernelFile:
    """``types``: the guest types Xen can start it as, from its ELF notes; an HVM guest's loader starts any.

    ``version`` is the release (``13.2``), ``branch`` what follows it (``RELEASE-p1``), ``osreldate`` its ``__FreeBSD_version``,
    0 if unknown. ``zfs``: ZFS is part of the kernel, not a module.
    """

    path: Path
    version: str
    machine: str
    types: tuple[str, ...]
    sha256: str
    branch: str = ""
    osreldate: int = 0
    zfs: bool = False

    @property
    def os_version(self) -> OSVersion:
        return OSVersion(self.version, self.branch, self.osreldate)


def version_of(kernel: bytes) -> str:
    """The release that a kernel file names itself by, for example ``13.2``; "" if it is not a FreeBSD kernel."""
    match = _VERSION.search(kernel)
    return match[1].decode() if match else ""


def osreldate_of(kernel: bytes) -> int:
    """``__FreeBSD_version`` of a kernel file: its variable ``osreldate`` (vers.c, made by sys/conf/newvers.sh).

    0 if the file has no symbols, or a value that no FreeBSD of the versions 4 to 99 has.
    """
    number = elfsymbols.read_int(kernel, "osreldate") or 0
    return number if 400_000 <= number < 10_000_000 else 0


def os_version(kernel: bytes) -> OSVersion:
    """What a kernel file says of its own version: name, branch and osreldate."""
    match = _VERSION.search(kernel)
    if match is None:
        return OSVersion()
    return OSVersion(match[1].decode(), match[2].decode(), osreldate_of(kernel))


def banner(kernel: bytes) -> str:
    """The version that a FreeBSD kernel names itself by, with its configuration's ident last; "" for any other file.

    Every form of ``version[]`` gives ``FreeBSD RELEASE [CHECKOUT] IDENT``: date, user and directory of the build are left out, and
    with them what differs between two builds of one source.
    """
    own = elfsymbols.read_text(kernel, "version").encode()
    texts = (match[0][:-1] for match in itertools.islice(_BEGINS.finditer(kernel), _TEXTS))
    for text in itertools.chain([own], texts):
        match = _DATED.fullmatch(text) or _REPRODUCIBLE.fullmatch(text)
        if match:
            release, checkout, named = (part.decode("ascii", "replace") for part in match.groups())
            # A configuration can give itself another name than its file has: uname -i shows kern_ident.
            return f"{release}{checkout} {elfsymbols.read_text(kernel, 'kern_ident') or named}"
    return ""


def linux_version(kernel: bytes) -> tuple[str, str]:
    """What ``uname -r`` and ``uname -v`` of a Linux kernel are, from its bzImage, or from the ELF file within (vmlinux).

    Raises UsageError for any other file.
    """
    text = b""
    if kernel[_HDRS : _HDRS + 4] == b"HdrS":
        # Linux Documentation/arch/x86/boot.rst: kernel_version points to a string, as an offset from byte 0x200.
        at = int.from_bytes(kernel[0x20E:0x210], "little")
        text = kernel[0x200 + at :].partition(b"\0")[0] if at else b""
        match = _LINUX_SETUP.fullmatch(text)
    else:
        match = _LINUX_BANNER.search(kernel)
    if match is None:
        raise UsageError("no Linux kernel: it does not name a version", hint="give a bzImage (vmlinuz) or a vmlinux")
    return match[1].decode("ascii", "replace"), match[2].decode("ascii", "replace").strip()


def machine_of(kernel: bytes) -> str:
    """FreeBSD's name for the machine of an ELF file."""
    # e_ident[EI_DATA] is 2 for big-endian (powerpc64).
    number = int.from_bytes(kernel[18:20], "big" if kernel[5:6] == b"\2" else "little")
    return _MACHINES.get(number, f"machine {number}")


def look(path: Path) -> KernelFile:
    """Raises UsageError for a file that is no FreeBSD kernel for this kind of machine."""
    notes = elfnotes.read(path)
    data = path.read_bytes()
    machine, version = machine_of(data), os_version(data)
    if machine not in ("amd64", "i386"):
        raise UsageError(f"{path}: a kernel for {machine}; Xen's guests here are amd64 and i386", hint="build with TARGET=amd64")
    if not version.release:
        raise UsageError(f"{path}: no FreeBSD kernel (it does not name a version)", hint="give .../boot/kernel/kernel")
    digest = hashlib.sha256(data).hexdigest()
    return KernelFile(path, version.release, machine, notes.guest_types, digest, version.branch, version.osreldate, _ZFS in data)


def why_not(kernel: KernelFile, layout_boots: bool) -> str:
    """What to say of a kernel without Xen's notes; "" for one that Xen can start itself."""
    if kernel.types:
        return ""
    stripped = int.from_bytes(kernel.path.read_bytes()[60:62], "little") == 0
    reason = "its section headers are stripped, and FreeBSD's Xen notes sit in a section" if stripped else "it has no Xen ELF notes"
    rest = "HVM can boot it through the loader" if layout_boots else "HVM could boot it, from a layout with a loader (gpt, mbr)"
    return f"{kernel.path}: FreeBSD {kernel.version}, but {reason}: neither PVH nor PV can start it; {rest}"


def build_id(path: Path) -> str:
    """The GNU build-id of a kernel file in hex, as ``sysctl kern.build_id`` shows it; "" when it has none."""
    data = path.read_bytes()
    # A note: namesz 4, descsz 20, type 3 (NT_GNU_BUILD_ID), "GNU\0".
    match = re.search(re.escape(struct.pack("<III", 4, 20, 3) + b"GNU\0") + rb"(.{20})", data, re.DOTALL)
    return match[1].hex() if match else ""
