# SPDX-License-Identifier: BSD-2-Clause
"""The control guest: a small Linux and busybox (images/control), known to be good."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.console.stages import LINUX, Stage
from harness.guests.profile import Interface, KernelIdentity, Run, ShutdownExpectation
from harness.images import kernelfile
from harness.osversion import UNKNOWN, OSVersion
from harness.xen import vdev

# What spares an emulated CPU, beside what its kernel has not got (docs/lab.md, What a boot under emulation is made of): no pages
# made read-only after boot and all of them looked at for it; no lock prefix taken out for a single CPU, which changes the address
# space twice for each of thousands; and no TSC (CPUID bit 4) as far as the kernel knows. It would measure that by a PIT that
# these guests have not got: 100,000 reads of a port, each of which traps. Time comes from Xen. Without a TSC it has to be told
# how long a busy loop is (about, per 4 ms); it has no tick yet to measure that by either.
_QUICK = {"norandmaps": "", "rodata": "off", "noreplace-smp": "", "clearcpuid": "4", "lpj": "4000000"}


@dataclass(frozen=True)
class Linux:
    """See :class:`harness.guests.profile.GuestProfile`. Its root is its initramfs."""

    version: str = ""
    os: str = "linux"
    stages: Sequence[Stage] = LINUX
    types: tuple[str, ...] = ("pv", "pvh")
    # [   12.3] reboot: System halted
    halted: bytes = rb"reboot: System halted"
    user: str = "root"
    password: str = ""

    @property
    def os_version(self) -> OSVersion:
        return UNKNOWN

    def command_line(self, variables: Mapping[str, str]) -> str:
        return " ".join(f"{name}={value}" if value else name for name, value in variables.items())

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        # panic=-1 would reboot at once; 0 leaves it to Xen's panic notifier, which reports a crash. norandmaps: as in freebsd.py.
        # slub_max_order: from 6.3 on a packet's first bytes may lie across two pages (net/core/skbuff.c, skb_small_head_cache), and
        # xen-netfront silently drops such a packet at a backend without feature-sg (xennet_start_xmit()), now and then all of a
        # connection's: seen here once in some ten detach/attach, tx_dropped counts them. In slabs of one page nothing does.
        return {"console": "hvc0", "panic": "0", "slub_max_order": "0", **(_QUICK if emulated else {})}

    def disk_name(self, vdev_name: str) -> str:
        return vdev.linux_disk(vdev.number(vdev_name))

    def identity(self, run: Run) -> KernelIdentity:
        release, version = run("uname -r; uname -v").split("\n", 1)
        return KernelIdentity(release, release, version.strip())

    def identity_of(self, kernel: bytes) -> KernelIdentity:
        release, version = kernelfile.linux_version(kernel)
        return KernelIdentity(release, release, version)

    def variables(self, run: Run) -> Mapping[str, str]:
        return dict(word.partition("=")[::2] for word in run("cat /proc/cmdline").split())

    def root_device(self, run: Run) -> str:
        # rootfs on / type rootfs (rw,...)
        return run("mount").split(" ", 1)[0]

    def disks(self, run: Run) -> tuple[str, ...]:
        return tuple(sorted(run("ls /sys/block").split()))

    def interfaces(self, run: Run) -> tuple[Interface, ...]:
        found = []
        # One that goes while it is looked at is not there.
        each = 'a=$(cat $i/address 2>/dev/null) && m=$(cat $i/mtu 2>/dev/null) && echo "${i##*/} $a $m"'
        for line in run(f"for i in /sys/class/net/*; do {each}; done; true").splitlines():
            name, mac, mtu = line.split()
            found.append(Interface(name, mac, int(mtu), frozenset()))
        return tuple(found)

    def memory_mib(self, run: Run) -> int:
        # MemTotal:          97280 kB
        match = re.search(r"MemTotal:\s+(\d+) kB", run("cat /proc/meminfo"))
        return int(match[1]) >> 10 if match else 0

    def panic_command(self) -> str:
        return "echo c > /proc/sysrq-trigger"

    def flood_command(self, lines: int, width: int) -> str:
        return f"seq 1 {lines} | awk '{{printf \"%0{width}d\\n\", $1}}'"

    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        source = "Linux drivers/xen/manage.c, shutdown_handlers"
        match control:
            case "poweroff" | "halt":
                return ShutdownExpectation("poweroff", why=source)
            case "reboot":
                return ShutdownExpectation("reboot", why=source)
        return ShutdownExpectation("", why=f"{source}: {control!r} is not among them")

    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation:
        return ShutdownExpectation("crash", why="Linux arch/x86/xen/enlighten.c, xen_panic_event")
