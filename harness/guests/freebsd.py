# SPDX-License-Identifier: BSD-2-Clause
"""FreeBSD, 8 to 15."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.console.stages import FREEBSD, Stage
from harness.errors import UsageError
from harness.guests.profile import Interface, KernelIdentity, Run, ShutdownExpectation, parse_assignments
from harness.images import kernelfile
from harness.osversion import OSVersion
from harness.xen import vdev

# Armed from the kernel environment, since rc comes too late for a boot test (CTLFLAG_RWTUN, sys/kern/subr_kdb.c):
# a panic prints its backtrace and does not wait long for somebody to look.
_ARMED = {"debug.trace_on_panic": "1", "kern.panic_reboot_wait_time": "3"}

# Software emulation translates code anew for each address it runs at (QEMU 7.2 keys translated blocks by virtual address),
# and address space randomisation gives each process its own: a boot made a million blocks instead of 180 000, and clearing
# the guest's memory after its end took the whole machine for ten seconds. sys/kern/imgact_elf.c, CTLFLAG_RWTUN.
# And under Xen FreeBSD does not use the x2APIC, but times 100,000 reads of the local APIC's memory at each boot (sys/x86/x86/
# local_apic.c, native_lapic_init()): each leaves the guest for Xen, and all of them took 13 of a boot's 38 s.
_EMULATED = {"kern.elf64.aslr.enable": "0", "kern.elf64.aslr.pie_enable": "0", "hw.x2apic_enable": "1"}

# The characters that end a variable on the kernel's command line: sys/x86/xen/pv.c, xen_pvh_parse_preload_data(), read in 13.2,
# 14.2 and 15.1; sys/i386/xen/xen_machdep.c of 10 for PV. 14.0-CURRENT changed at an unknown number, and takes the longer list here.
_SEPARATORS = (("<14.0", ","), (">=14.0", ", \t\n"))


@dataclass(frozen=True)
class Ending:
    """How kernels within one of ``spans`` end as a guest of one of ``types``.

    ``poweroff``, ``reboot`` and ``halt`` are values of control/shutdown. Each field holds the reason that Xen is told, or
    ``HALTS`` if the kernel stops and its domain stays. ``source`` says where that is written.
    """

    spans: tuple[str, ...]
    types: tuple[str, ...]
    poweroff: str
    reboot: str
    halt: str
    panic: str
    source: str


HALTS = ""
_CONTROL = "sys/dev/xen/control/control.c"
# The first row that fits counts; a kernel of unknown version gets the first. "halt" calls the same handler as "poweroff"
# (xctrl_shutdown_reasons), with RB_POWEROFF.
ENDINGS = (
    # 9e0b0f5de67f went to main on 2023-11-23, when main counted 1500003 or 1500004 (Porter's Handbook), and to stable/14 with
    # c13f564f9176. 14.0-RELEASE (1400097) was branched before it; 1400507, 1402000, 1402501, 1500068 and 1501000 have it. Where
    # stable/14 got it between 1400097 and 1400507 is not known: such a kernel is taken for an old one.
    Ending(
        (">=1400507,<1500000", ">=1500005"), ("pvh", "hvm", "pv"),
        poweroff="poweroff", reboot="reboot", halt="poweroff", panic="crash",
        source=f"{_CONTROL}, xctrl_shutdown_final() for every domain type, before shutdown_halt() and shutdown_panic() "
        "(FreeBSD 9e0b0f5de67f; 14.0-STABLE 1400507 and later)",
    ),
    # Nothing tells Xen of a poweroff, and there is no ACPI to ask: 13.2 halts at each of the two. Halting is what "halt" asks for;
    # at "poweroff" it is a defect (known_issues.toml), so the row says what is right.
    Ending(
        ("<1500005",), ("pvh",), poweroff="poweroff", reboot="reboot", halt=HALTS, panic="reboot",
        source=f"{_CONTROL}, xen_pv_shutdown_final() for PV domains only; a panic ends in cpu_reset() (read in 1302001)",
    ),
    Ending(
        ("<1500005",), ("hvm",), poweroff="poweroff", reboot="reboot", halt="poweroff", panic="reboot",
        source=f"{_CONTROL}, xen_pv_shutdown_final() for PV domains only; ACPI powers off, a panic ends in cpu_reset()",
    ),
    Ending(
        ("<1500005",), ("pv",), poweroff="poweroff", reboot="reboot", halt="poweroff", panic="reboot",
        source=f"{_CONTROL} of 8 to 10, xen_pv_shutdown_final(): a panic is a reboot to it",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class FreeBSD:
    """See :class:`harness.guests.profile.GuestProfile`. ``version`` is a release such as ``13.2``, "" if unknown.

    ``branch`` and ``osreldate`` as in :class:`harness.osversion.OSVersion`.
    """

    version: str = ""
    os: str = "freebsd"
    stages: Sequence[Stage] = FREEBSD
    types: tuple[str, ...] = ("pvh", "hvm")
    # The operating system has halted.     (sys/kern/kern_shutdown.c, shutdown_halt)
    halted: bytes = rb"^\r*The operating system has halted\."
    user: str = "root"
    password: str = ""
    branch: str = ""
    osreldate: int = 0

    @classmethod
    def of(cls, version: OSVersion, types: tuple[str, ...]) -> FreeBSD:
        """The profile of a kernel of ``version`` that can run as ``types``."""
        return cls(version=version.release, branch=version.branch, osreldate=version.osreldate, types=types)

    @property
    def os_version(self) -> OSVersion:
        return OSVersion(self.version, self.branch, self.osreldate)

    def command_line(self, variables: Mapping[str, str]) -> str:
        """Commas between variables, which separate in every version. Raises UsageError for what a command line cannot hold."""
        for name, value in variables.items():
            separators = {char for span, chars in _SEPARATORS if self.os_version.within(span) for char in chars}
            wrong = sorted(char for char in set(value) if char in separators or char == '"' or not char.isprintable())
            if wrong:
                raise UsageError(
                    f"kernel variable {name}={value!r}: FreeBSD {self.os_version} ends a variable at "
                    f"{' and '.join(map(repr, wrong))} on its command line, or cannot take it",
                    hint="choose another value, or HVM from an image of `fxh image build`, whose loader takes it",
                )
        return ",".join(f"{name}={value}" for name, value in variables.items())

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        mountfrom = root if root.startswith(("ufs:", "zfs:")) else f"ufs:/dev/{root}"
        return {"vfs.root.mountfrom": mountfrom, **_ARMED, **(_EMULATED if emulated else {})}

    def disk_name(self, vdev_name: str) -> str:
        return vdev.freebsd_disk(vdev.number(vdev_name))

    def identity(self, run: Run) -> KernelIdentity:
        release, ident, osreldate, version = run("uname -r; uname -i; sysctl -n kern.osreldate kern.version").split("\n", 3)
        return KernelIdentity(release, ident, version.strip(), int(osreldate))

    def identity_of(self, kernel: bytes) -> KernelIdentity:
        version = kernelfile.os_version(kernel)
        if not version.release:
            raise UsageError("no FreeBSD kernel: it does not name a version", hint="give .../boot/kernel/kernel")
        ident = kernelfile.banner(kernel).rpartition(" ")[2]
        return KernelIdentity(f"{version.release}-{version.branch}", ident, "", version.osreldate)

    def variables(self, run: Run) -> Mapping[str, str]:
        return parse_assignments(run("kenv"))

    def root_device(self, run: Run) -> str:
        # /dev/xbd0		/			ufs	rw		1 1
        for line in run("mount -p").splitlines():
            words = line.split()
            if len(words) > 2 and words[1] == "/":
                return words[0]
        return ""

    def disks(self, run: Run) -> tuple[str, ...]:
        return tuple(sorted(run("sysctl -n kern.disks").split()))

    def interfaces(self, run: Run) -> tuple[Interface, ...]:
        return parse_ifconfig(run("ifconfig -a"))

    def memory_mib(self, run: Run) -> int:
        pages, size = run("sysctl -n vm.stats.vm.v_page_count hw.pagesize").split()
        return int(pages) * int(size) >> 20

    def panic_command(self) -> str:
        return "sysctl debug.kdb.panic=1"

    def flood_command(self, lines: int, width: int) -> str:
        return f"jot -w '%0{width}d' {lines} 1"

    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        row = self._ending(guest_type)
        match control:
            case "poweroff" | "reboot" | "halt":
                reason = str(getattr(row, control))
                return ShutdownExpectation(reason, halts=reason == HALTS, why=row.source)
            case "crash":
                return self.fate_of_panic(guest_type)
        return ShutdownExpectation("", why=f"{_CONTROL}: not among xctrl_shutdown_reasons")

    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation:
        row = self._ending(guest_type)
        return ShutdownExpectation(row.panic, why=row.source)

    def _ending(self, guest_type: str) -> Ending:
        return next(row for row in ENDINGS if guest_type in row.types and any(self.os_version.within(span) for span in row.spans))


# xn0: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> metric 0 mtu 1500
_HEAD = re.compile(r"^(\w+): flags=\S+.* mtu (\d+)", re.MULTILINE)


def parse_ifconfig(text: str) -> tuple[Interface, ...]:
    """The interfaces of ``ifconfig -a``."""
    heads = list(_HEAD.finditer(text))
    found = []
    for n, head in enumerate(heads):
        body = text[head.end() : heads[n + 1].start() if n + 1 < len(heads) else len(text)]
        # options=503<RXCSUM,TXCSUM,TSO4,LRO>        ether 00:16:3e:48:e5:d8
        options = re.search(r"^\s+options=[0-9a-f]+<([^>]*)>", body, re.MULTILINE)
        ether = re.search(r"^\s+ether (\S+)", body, re.MULTILINE)
        offloads = frozenset(options[1].split(",")) if options else frozenset()
        found.append(Interface(head[1], ether[1] if ether else "", int(head[2]), offloads))
    return tuple(found)
