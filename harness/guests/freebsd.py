"""FreeBSD, 8 to 15."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.console.stages import FREEBSD, Stage
from harness.errors import UsageError
from harness.guests.profile import Fate, Interface, KernelIdentity, Run, parse_assignments
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


@dataclass(frozen=True)
class FreeBSD:
    """See :class:`harness.guests.profile.GuestProfile`. ``version`` is a release such as ``13.2``."""

    version: str = ""
    os: str = "freebsd"
    stages: Sequence[Stage] = FREEBSD
    types: tuple[str, ...] = ("pvh", "hvm")
    # The operating system has halted.     (sys/kern/kern_shutdown.c, shutdown_halt)
    halted: bytes = rb"^\r*The operating system has halted\."
    user: str = "root"
    password: str = ""

    @property
    def number(self) -> tuple[int, int]:
        """The version as (major, minor); the newest where it is not known."""
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (99, 0)

    def command_line(self, variables: Mapping[str, str]) -> str:
        """Commas between variables: PV and PVH kernels up to 13 know no other separator (sys/x86/xen/pv.c)."""
        for name, value in variables.items():
            if "," in value or " " in value or '"' in value:
                raise UsageError(f"kernel variable {name}={value!r}: no blank, comma or quote can be passed in a command line")
        return ",".join(f"{name}={value}" for name, value in variables.items())

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        mountfrom = root if root.startswith(("ufs:", "zfs:")) else f"ufs:/dev/{root}"
        return {"vfs.root.mountfrom": mountfrom, **_ARMED, **(_EMULATED if emulated else {})}

    def disk_name(self, vdev_name: str) -> str:
        return vdev.freebsd_disk(vdev.number(vdev_name))

    def identity(self, run: Run) -> KernelIdentity:
        release, ident, version = run("uname -r; uname -i; sysctl -n kern.version").split("\n", 2)
        return KernelIdentity(release, ident, version.strip())

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

    def fate(self, control: str, guest_type: str) -> Fate:
        source = "sys/dev/xen/control/control.c, xctrl_on_watch_event"
        match control:
            case "poweroff":
                return Fate("poweroff", why=source)
            case "reboot":
                return Fate("reboot", why=source)
            case "halt":
                # "halt" is xctrl_poweroff, too: an HVM guest goes by ACPI, the PV guests of 8 to 10 by xen_pv_shutdown_final.
                return Fate("", halts=True, why=source) if guest_type == "pvh" else Fate("poweroff", why=source)
            case "crash":
                return self.fate_of_panic(guest_type)
        return Fate("", why="unknown to the guest")

    def fate_of_panic(self, guest_type: str) -> Fate:
        if self.number >= (14, 1):
            return Fate("crash", why="FreeBSD 9e0b0f5de67f: xctrl_shutdown_final tells Xen of a panic")
        return Fate("reboot", why="before FreeBSD 14.1 a panic ends as a reboot: sys/dev/xen/control/control.c")


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
