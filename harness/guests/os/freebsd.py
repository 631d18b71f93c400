# SPDX-License-Identifier: BSD-2-Clause
"""FreeBSD, 8 to 15. Its console is in freebsd_console, its end in freebsd_endings, its sources are in freebsd_source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError, UsageError
from harness.guests.os import freebsd_console, freebsd_endings, freebsd_kernel
from harness.guests.os.base import GuestOS
from harness.guests.os.values import (
    Balloon,
    BalloonLimits,
    BootVolume,
    Interface,
    KernelIdentity,
    Run,
    ShutdownExpectation,
    SmallBlocks,
)
from harness.images import kernelfile
from harness.oracles import counters, disk_causes
from harness.osversion import OSVersion
from harness.xen import elfnotes
from harness.xen import vdev as vdevs

# A panic prints its backtrace and reboots after 3 s. Set in the kernel environment (CTLFLAG_RWTUN, sys/kern/subr_kdb.c), since rc runs
# too late for a boot test.
_PANIC = {"debug.trace_on_panic": "1", "kern.panic_reboot_wait_time": "3"}

# QEMU 7.2 keys translated blocks by virtual address, and address space randomisation gives each process other addresses. A boot
# made a million blocks instead of 180,000. To free the guest's memory at its end took the whole machine ten seconds
# (sys/kern/imgact_elf.c, CTLFLAG_RWTUN). Under Xen, FreeBSD does not use the x2APIC by itself. Without it, each boot times 100,000
# reads of the local APIC's memory (sys/x86/x86/local_apic.c, native_lapic_init()). Each read exits to Xen, which took 13 of a
# boot's 38 s.
_EMULATED = {"kern.elf64.aslr.enable": "0", "kern.elf64.aslr.pie_enable": "0", "hw.x2apic_enable": "1"}

# Without a valid port in the first variable, the port with flag 0x10 is the console: Xen's guests have no SPCR table
# (sys/dev/uart/uart_cpu_x86.c, uart_cpu_getdev()). The loader sets the first one earlier: for BIOS when it reads `console` in
# loader.conf (stand/i386/libi386/comconsole.c, comc_setup()), for UEFI at its start (stand/efi/loader/main.c).
_PV_CONSOLE = {"hw.uart.console": "none", "hint.uart.0.flags": "0x0"}

# The characters that end a variable on the kernel's command line: sys/x86/xen/pv.c, xen_pvh_parse_preload_data(), read in 13.2,
# 14.2 and 15.1; sys/i386/xen/xen_machdep.c of 10 for PV. 14.0-CURRENT changed at an unknown number; here it has the longer list.
_SEPARATORS = (("<14.0", ","), (">=14.0", ", \t\n"))


# How many counters of 64 bits precede tcps_rcvbadsum in struct tcpstat of FreeBSD 13 and of 14 and 15.
_RCVBADSUM_13, _RCVBADSUM_14 = 30, 31
# Types of malloc(9) of the Xen drivers (MALLOC_DEFINE in sys/xen, sys/dev/xen and sys/x86/xen).
_MALLOC = ("xenbus", "xenstore", "xbd", "xen_intr")
_OFFLOADS = {"TXCSUM": "tx", "RXCSUM": "rx", "TSO4": "tso", "LRO": "lro"}
_SOURCES = {
    "names in a backtrace": "sys/x86/xen/pv.c, xen_pvh_parse_symtab(); xen tools/libs/guest/xg_dom_elfloader.c",
    "balloon": "sys/dev/xen/balloon/balloon.c, balloon_process() and set_new_target()",
    "balloon pages": "sys/dev/xen/balloon/balloon.c, decrease_reservation()",
    "blkfront": "sys/dev/xen/blkfront/blkfront.c",
    "disk names": "sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(); xen tools/libs/light/libxl_device.c",
    "netfront": "sys/dev/xen/netfront/netfront.c, create_netdev() and xn_configure_features(); sys/netinet/tcp_subr.c",
    "console": "sys/dev/xen/console/xen_console.c (console.c up to FreeBSD 10)",
    "xenbus": "sys/xen/xenbus/xenbusb.c, xenbusb_release_confighook(); sys/dev/xen/blkfront/blkfront.c, xbd_backend_changed()",
    "clock": "sys/dev/xen/timer/timer.c, xentimer_get_timecount() (32 bits of nanoseconds: they wrap every 4.3 s); "
    "sys/dev/xen/control/control.c",
    "xenstore device": "sys/dev/xen/xenstore/xenstore_dev.c",
    "suspend": "sys/dev/xen/control/control.c, xctrl_suspend(); sys/xen/xenbus/xenbusb.c, xenbusb_resume()",
    "vcpus": "sys/x86/xen/pv.c, xen_pvh_start_all_aps(); sys/x86/x86/mp_x86.c",
    "memory map": "sys/x86/xen/pv.c, xen_pvh_parse_memmap() (FreeBSD 023a025b5c reads it from start_info)",
}
# 6: the backend is closed; 1: it began and never got further.
_DEAD_BACKENDS = {"xvdk": "6", "xvdl": "1"}
# FreeBSD gives each of them a name; a disk with an unknown major is an xbd, too.
_VDEVS = (
    "hda", "hdb", "hdc", "hdd", "sda", "sdb", "sdp", "xvdb", "xvdp", "xvdq", "xvdz", "xvdaa", "d1000p0",
    "51776", "0xCA50", "d6p0", "0x4100", "0x2100", "0x5B40", "0x87F0", "0xCBE0",
)  # fmt: skip


@dataclass(frozen=True)
class FreeBSD(GuestOS):
    """``version`` is a release such as ``13.2``, "" if unknown.

    ``branch`` and ``osreldate`` as in :class:`harness.osversion.OSVersion`.
    """

    types: tuple[str, ...] = ("pvh", "hvm")
    branch: str = ""
    osreldate: int = 0

    name = "freebsd"
    title = "FreeBSD"
    console = freebsd_console.CONSOLE
    panic_kind = "panic"
    panic_function = "kdb_sysctl_panic"
    # The operating system has halted.     (sys/kern/kern_shutdown.c, shutdown_halt)
    halted = rb"^\r*The operating system has halted\."
    # ELFOSABI_FREEBSD (sys/sys/elf_common.h)
    elf_osabi = 9
    sources = _SOURCES
    balloon_limits = BalloonLimits(garbage=("", "abc", "-1", "9223372036854775808", "99999999999999999999999", "0"))
    reboot_command = "shutdown -r now"
    tmpfs_command = "mount -t tmpfs tmpfs /mnt"
    xenstore_device = "/dev/xen/xenstore"
    # By default FreeBSD reassembles no packet of more than 16 fragments (sys/netinet/ip_reass.c, V_maxfragsperpacket) and sends no
    # datagram of more than 9216 bytes (sys/netinet/udp_usrreq.c, udp_dgram).
    large_packets_command = "sysctl net.inet.udp.maxdgram=65535 net.inet.ip.maxfragsperpacket=64"
    dead_backends = _DEAD_BACKENDS
    # 16 bits at 1.19 MHz: 55 ms (sys/x86/isa/clock.c, i8254_get_timecount()). Seen on a busy machine: `sleep 3` took over a minute.
    short_clocks = frozenset({"the timecounter i8254"})
    # The clock loses each multiple of 4.295 s of a pause (known_issues.toml, boot/test_time_goes_on_while_paused).
    longest_pause = 2
    # sys/kern/kern_thread.c, weed_inhib(): stop_all_proc() aborts sleeps with ERESTART, which poll(2) and select(2) turn into EINTR
    # (known_issues.toml, lifecycle/test_waiting_programs_go_on). Seen in 15.1.
    suspension_breaks_poll = True
    # sys/dev/xen/control/control.c, xctrl_on_watch_event(): it does not free an empty string, and control/shutdown is empty after a
    # restore (known_issues.toml, lifecycle/test_ignored_requests). Seen in 15.1.
    kept_per_restore = 1
    vdev_names = _VDEVS

    @classmethod
    def of(cls, version: OSVersion, types: tuple[str, ...]) -> FreeBSD:
        """The OS of a kernel of ``version`` that can run as ``types``."""
        return cls(version=version.release, branch=version.branch, osreldate=version.osreldate, types=types)

    @property
    def os_version(self) -> OSVersion:
        return OSVersion(self.version, self.branch, self.osreldate)

    def fatal_events(self, guest_type: str) -> frozenset[str]:
        # known_issues.toml, */test_saved*: 4ece79968e70, and with two vCPUs e7e2431586a4. Both fixes are in 15.0.
        killed = guest_type == "pvh" and self.os_version.within(">=14.0,<15.0")
        return frozenset({"save and restore"}) if killed else frozenset()

    @property
    def pv_console(self) -> Mapping[str, str]:
        # Before 15.0 an HVM guest learns that it runs under Xen after it has chosen its consoles, so xencons_cnprobe() finds no Xen
        # (sys/x86/xen/hvm.c: SI_SUB_HYPERVISOR up to 14.2, xen_early_init() in 15.1).
        return _PV_CONSOLE if self.os_version.within(">=15.0") else {}

    def command_line(self, variables: Mapping[str, str]) -> str:
        """The variables separated by commas, as every version reads them. Raises UsageError for a value that would be cut."""
        for name, value in variables.items():
            separators = {char for span, chars in _SEPARATORS if self.os_version.within(span) for char in chars}
            wrong = sorted(char for char in set(value) if char in separators or char == '"' or not char.isprintable())
            if wrong:
                raise UsageError(
                    f"kernel variable {name}={value!r}: FreeBSD {self.os_version} ends a variable at "
                    f"{' and '.join(map(repr, wrong))} on its command line, or rejects it",
                    hint="choose another value, or HVM from an image of `fxh image build`, whose loader accepts it",
                )
        return ",".join(f"{name}={value}" for name, value in variables.items())

    def appended(self, words: str) -> str:
        # The comma is the only separator up to 13.
        return f",{words}" if words else words

    @property
    def separator(self) -> str:
        return ","

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        mountfrom = root if root.startswith(("ufs:", "zfs:")) else f"ufs:/dev/{root}"
        return {"vfs.root.mountfrom": mountfrom, **_PANIC, **(_EMULATED if emulated else {})}

    def kernel_bits(self, kernel: Path) -> int:
        return elfnotes.read(kernel).bits

    def alternate(self, kernel: bytes, ramdisk: bytes | None, running: str) -> tuple[bytes, str]:
        own = freebsd_kernel.ident(kernel)
        return (kernel, own) if own != running else freebsd_kernel.renamed(kernel)

    def build_mark(self, run: Run) -> str:
        return run("uname -i")

    def boot_volume(self, run: Run, disk: str) -> BootVolume:
        # In front of the other arguments: up to 13 the blank after the last one becomes part of its value.
        change = "s|^\\(kernel [^ ]*\\) |\\1 fxh.menu=two,|"
        return BootVolume("/boot/grub/menu.lst", "/boot/kernel/kernel", "kernel", "/boot/kernel/kernel", change)

    def disk_name(self, vdev: str) -> str:
        return vdevs.freebsd_disk(vdevs.number(vdev))

    def identity(self, run: Run) -> KernelIdentity:
        release, ident, osreldate, version = run("uname -r; uname -i; sysctl -n kern.osreldate kern.version").split("\n", 3)
        return KernelIdentity(release, ident, version.strip(), int(osreldate))

    def identity_of(self, kernel: bytes) -> KernelIdentity:
        version = kernelfile.os_version(kernel)
        if not version.release:
            raise UsageError("not a FreeBSD kernel: it does not name a version", hint="give .../boot/kernel/kernel")
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

    def dump_variables(self, disk: str) -> Mapping[str, str]:
        # sys/geom/geom_dev.c, init_dumpdev(): the kernel itself uses the disk as soon as it exists.
        return {"dumpdev": disk}

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

    def disk_bytes(self, run: Run, name: str) -> int:
        # xbd1	512	1048576	2048	0	0
        return int(run(f"diskinfo {name}").split()[2])

    def attach_log(self, run: Run) -> str:
        return run("dmesg | grep -E '^(xbd|ada|da)[0-9]+: |g_dev_taste|vbd'; true")

    def balloon(self, run: Run) -> Balloon:
        # sys/dev/xen/balloon/balloon.c: pages of 4 KiB
        names = " ".join([
            "dev.xen.balloon.current dev.xen.balloon.target dev.xen.balloon.low_mem vm.stats.vm.v_page_count vm.stats.vm.v_free_count",
            *(f"vm.stats.vm.v_{use}_count" for use in ("active", "inactive", "laundry", "wire")),
        ])  # fmt: skip
        # A page of the balloon is allocated, but in no queue and not wired (decrease_reservation(), vm_page_alloc_noobj()).
        current, target, given, managed, free, *used = (int(word) * 4096 for word in run(f"sysctl -n {names}").split())
        return Balloon(current, target, managed, free, managed - free - given - sum(used))

    def cpus(self, run: Run) -> int:
        return int(run("sysctl -n kern.smp.cpus"))

    def on_cpu(self, number: int, command: str) -> str:
        return f"cpuset -l {number} {command}"

    def holdings(self, run: Run) -> Mapping[str, int]:
        #        Type   InUse   MemUse Requests   Size(s)
        #      xenbus      23     2 KB       40   16,64,128
        text = run(f"vmstat -m | grep -E '^ *({'|'.join(_MALLOC)}) '; echo; vmstat -ia | grep -c xen; ls /dev | grep -c '^xbd'")
        kept, counts = text.split("\n\n")
        # Only the sum counts: xen_net_read_mac() frees as `xenbus` a string that xs_read() allocated as `xenstore`
        # (sys/dev/xen/netfront/netfront.c, read in 15.1). So the count of `xenbus` can fall below 0, where it wraps.
        allocations = sum(int(line.split()[1]) for line in kept.splitlines()) % (1 << 64)
        return {"allocations": allocations} | dict(zip(("interrupts", "disk devices"), map(int, counts.split()), strict=True))

    def clock_commands(self, run: Run) -> Mapping[str, str]:
        # XENTIMER(950) LAPIC(600)        TSC(-100) XENTIMER(950) dummy(-1000000)
        # A clock of negative quality is not for general use (sys/kern/kern_tc.c, tc_init()).
        timers, clocks = (
            [name for name, quality in re.findall(r"(\S+)\((-?\d+)\)", line) if int(quality) >= 0]
            for line in run("sysctl -n kern.eventtimer.choice kern.timecounter.choice").splitlines()
        )
        found = {
            f"the event timer {name}{', periodic' if periodic else ''}": f"sysctl kern.eventtimer.timer={name} kern.eventtimer.periodic={periodic}"
            for periodic in (0, 1)
            for name in timers
        }
        return found | {f"the timecounter {name}": f"sysctl kern.timecounter.hardware={name}" for name in clocks}

    def hog(self, mib: int) -> str:
        # tail keeps a line without an end in memory.
        return f"( dd if=/dev/zero bs=1m count={mib} 2>/dev/null; echo; sleep 30 ) | tail -n 1"

    def address(self, run: Run, interface: str, cidr: str) -> None:
        run(f"ifconfig {interface} {'inet6 no_dad' if ':' in cidr else 'inet'} {cidr} up")

    def add_address(self, run: Run, interface: str, cidr: str) -> None:
        run(f"ifconfig {interface} {'inet6 no_dad' if ':' in cidr else 'inet'} {cidr} alias")

    def network(self, interface: str) -> str:
        return f"ifconfig -m {interface}; netstat -n -I {interface} -d; netstat -rn; arp -an; ndp -an"

    def has_ipv6(self, run: Run) -> bool:
        return run("sysctl -n kern.features.inet6 2>/dev/null || true").strip() == "1"

    def vlan_command(self, interface: str, tag: int) -> str:
        return f"ifconfig vlan{tag} create vlan {tag} vlandev {interface}"

    def set_mtu(self, run: Run, interface: str, mtu: int) -> None:
        run(f"ifconfig {interface} mtu {mtu}")

    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        text = run(f"ifconfig -m {interface}")
        # options=503<RXCSUM,TXCSUM,TSO4,LRO>        capabilities=503<RXCSUM,TXCSUM,TSO4,LRO>
        able = re.search(r"capabilities=[0-9a-f]+<([^>]*)>", text)
        on = re.search(r"options=[0-9a-f]+<([^>]*)>", text)
        words = set(on[1].split(",")) if on else set()
        return {_OFFLOADS[word]: word in words for word in (able[1].split(",") if able else ()) if word in _OFFLOADS}

    def offload_command(self, interface: str, name: str, on: bool) -> str:
        word = {"tx": "txcsum", "rx": "rxcsum", "tso": "tso", "lro": "lro"}[name]
        return f"ifconfig {interface} {'' if on else '-'}{word}"

    def checksum_errors(self, run: Run) -> int:
        """See the base class.

        A netstat of another major release than the kernel's reads struct tcpstat at wrong offsets: 14.0 put tcps_progdrops before
        tcps_rcvbadsum (sys/netinet/tcp_var.h). Then read the number from the kernel's struct.
        """
        kernel, _, world = run("sysctl -n kern.osreldate; uname -U 2>/dev/null || true").partition("\n")
        if world.strip().isdigit() and int(world) // 100_000 != int(kernel) // 100_000:
            at = 8 * (_RCVBADSUM_13 if int(kernel) < 1_400_000 else _RCVBADSUM_14)
            # od of 13 fails on numbers of eight bytes (`od: u: bad byte count`; usr.bin/hexdump/parse.c), so read single bytes.
            counter = run(f"sysctl -b net.inet.tcp.stats | od -A n -t x1 -j {at} -N 8")
            return int.from_bytes(bytes.fromhex(counter), "little")
        # 		0 discarded for bad checksums
        match = re.search(r"(\d+) discarded for bad checksum", run("netstat -s -p tcp"))
        if match is None:
            raise InfrastructureError("the guest's netstat -s -p tcp has no line `discarded for bad checksums`")
        return int(match[1])

    def received(self, run: Run, interface: str) -> tuple[int, int]:
        # xn0    1500 <Link#2>      00:16:3e:48:e5:d8     1234     0     0     1234     0     0
        # 	1300 total packets received
        text = run(f"netstat -n -I {interface} | grep Link; netstat -s -p ip")
        frames, packets = re.search(r"<Link#\d+>\s+\S+\s+(\d+)", text), re.search(r"(\d+) total packets? received", text)
        if frames is None or packets is None:
            raise InfrastructureError("the guest's netstat has no line <Link#..> or no line `total packets received`")
        return int(frames[1]), int(packets[1])

    def forwarding_command(self, ipv6: bool) -> str:
        return f"sysctl net.{'inet6.ip6' if ipv6 else 'inet.ip'}.forwarding=1"

    def ping_command(self, address: str, seconds: int, size: int | None = None, *, whole: bool = False) -> str:
        # -W counts milliseconds; -t sets an alarm that can also end the shell. Without -b the buffer for IPv6 is too small.
        data = "" if size is None else f"{'-b 140000 ' if ':' in address else ''}-s {size} "
        return f"ping -c 1 -W {seconds * 1000} {'-D ' if whole else ''}{data}{address}"

    def nc_command(self, seconds: float) -> str:
        return f"timeout {int(seconds)} nc -N"

    def listen_words(self, address: str, port: int) -> str:
        return f"{address} {port}"

    def netfront_queues(self, vcpus: int, variables: Mapping[str, str]) -> int:
        # Independent of its CPUs (sys/dev/xen/netfront/netfront.c, xn_num_queues).
        return int(variables.get("hw.xn.num_queues", "4"))

    def network_counters(self, interface: str) -> str:
        # See checksum_errors() about a netstat of another major release. -ss leaves out the counters that are 0.
        same = '[ "$(uname -K | cut -c 1-2)" = "$(uname -U | cut -c 1-2)" ] && netstat -ss'
        up = f"ifconfig {interface} | grep -q '<UP' && echo interface_up 1 || echo interface_up 0"
        return f"{same}; netstat -n -I {interface} -bd; sysctl dev.xn 2>/dev/null; {up}"

    def parse_counters(self, text: str, interface: str) -> Mapping[str, int]:
        return counters.freebsd(text)

    disk_counters = "iostat -Ix; dmesg | tail -n 20"

    def requests_in_flight(self, text: str) -> Mapping[str, int]:
        return disk_causes.freebsd_in_flight(text)

    def sha256_command(self, path: str) -> str:
        return f"sha256 -q {path}"

    @property
    def small_blocks(self) -> SmallBlocks:
        # UFS1 with blocks of 4 KiB has 12 direct ones and 1024 addresses in an indirect one (sys/ufs/ffs/fs.h, UFS_NDADDR).
        # -r: a block of space at the end, without which pygrub may miss a directory (bootable.make_ufs).
        make = "newfs -O 1 -b 4096 -f 512 -r 8 /dev/{0} >/dev/null && mount /dev/{0} /mnt"
        return SmallBlocks(make, 12 << 12, (12 + 1024) << 12)

    def flood_lines(self, guest_type: str, *, serial: bool) -> int:
        # xc0 passes single bytes, at 10 kB/s (3 on a slow machine). Each byte of an HVM guest's serial port goes through QEMU in dom0: on
        # a busy machine, 170 bytes/s.
        return 5 if serial else 40

    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        row = freebsd_endings.of(self.os_version, guest_type)
        match control:
            case "poweroff" | "reboot" | "halt":
                reason = str(getattr(row, control))
                return ShutdownExpectation(reason, halts=reason == freebsd_endings.HALTS, why=row.source)
            case "crash":
                return self.fate_of_panic(guest_type)
        return ShutdownExpectation("", why=f"{freebsd_endings.CONTROL}: not among xctrl_shutdown_reasons")

    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation:
        row = freebsd_endings.of(self.os_version, guest_type)
        return ShutdownExpectation(row.panic, why=row.source)


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


def parse_assignments(text: str) -> dict[str, str]:
    """Lines ``name="value"`` (kenv) as a dict."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = value.strip().removeprefix('"').removesuffix('"')
    return found
