# SPDX-License-Identifier: BSD-2-Clause
"""What an administrator does in a guest, where FreeBSD and the control guest say it differently: disks, memory, network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.errors import InfrastructureError
from harness.guests.profile import GuestProfile, Run

MIB = 1 << 20


@dataclass(frozen=True)
class Balloon:
    """The balloon driver's own numbers, in bytes. ``managed`` is what the kernel manages, ``free`` what of it nobody uses."""

    current: int
    target: int
    managed: int
    free: int


class Admin(Protocol):
    """One operating system's ways. ``run`` is :meth:`harness.guests.guest.Guest.sh`."""

    def disk_bytes(self, run: Run, name: str) -> int: ...

    def attach_log(self, run: Run) -> str:
        """What the kernel has printed about its disks since it booted."""
        ...

    def balloon(self, run: Run) -> Balloon: ...

    def cpus(self, run: Run) -> int:
        """How many CPUs run."""
        ...

    def on_cpu(self, number: int, command: str) -> str:
        """The shell command that runs ``command`` on that CPU alone."""
        ...

    def hog(self, mib: int) -> str:
        """A command that takes ``mib`` MiB of memory, holds them, and prints ``hog-ready`` when it has them."""
        ...

    def address(self, run: Run, interface: str, cidr: str) -> None:
        """Give the interface this address, of IPv4 or IPv6, and bring it up. Nobody else is asked whether it has that one."""
        ...

    def network(self, interface: str) -> str:
        """The command that shows all there is of it: addresses, counters, routes, neighbours."""
        ...

    def has_ipv6(self, run: Run) -> bool:
        """Whether the kernel speaks it."""
        ...

    def set_mtu(self, run: Run, interface: str, mtu: int) -> None: ...

    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        """Of ``tx``, ``rx``, ``tso``, ``lro`` and ``sg`` those that the OS can switch, and whether each is on."""
        ...

    def offload_command(self, interface: str, name: str, on: bool) -> str: ...

    def checksum_errors(self, run: Run) -> int:
        """TCP segments that the kernel threw away for their checksum since it booted."""
        ...

    def received(self, run: Run, interface: str) -> tuple[int, int]:
        """Frames that the interface took, and packets that IP got from all interfaces: fewer where segments were joined."""
        ...


def digests(run: Run, names: Sequence[str]) -> dict[str, str]:
    """md5 of the first MiB of each disk of the guest (``fxh_digest`` is defined in every session, harness/console/session.py)."""
    lines = run(
        f"for d in {' '.join(names)}; do echo $d $(dd if=/dev/$d bs=64k count=16 2>/dev/null | fxh_digest); done"
    ).splitlines()
    return {words[0]: words[1] for words in map(str.split, lines) if len(words) > 1}


class FreeBSDAdmin:
    def disk_bytes(self, run: Run, name: str) -> int:
        # xbd1	512	1048576	2048	0	0
        return int(run(f"diskinfo {name}").split()[2])

    def attach_log(self, run: Run) -> str:
        return run("dmesg | grep -E '^(xbd|ada|da)[0-9]+: |g_dev_taste|vbd'; true")

    def balloon(self, run: Run) -> Balloon:
        # sys/dev/xen/balloon/balloon.c: pages of 4 KiB
        names = "dev.xen.balloon.current dev.xen.balloon.target vm.stats.vm.v_page_count vm.stats.vm.v_free_count"
        current, target, managed, free = (int(word) * 4096 for word in run(f"sysctl -n {names}").split())
        return Balloon(current, target, managed, free)

    def cpus(self, run: Run) -> int:
        return int(run("sysctl -n kern.smp.cpus"))

    def on_cpu(self, number: int, command: str) -> str:
        return f"cpuset -l {number} {command}"

    def hog(self, mib: int) -> str:
        # tail keeps what has no line end in memory.
        return f"( dd if=/dev/zero bs=1m count={mib} 2>/dev/null; echo; echo hog-ready; sleep 30 ) | tail -n 1"

    def address(self, run: Run, interface: str, cidr: str) -> None:
        run(f"ifconfig {interface} {'inet6 no_dad' if ':' in cidr else 'inet'} {cidr} up")

    def network(self, interface: str) -> str:
        return f"ifconfig -m {interface}; netstat -n -I {interface} -d; netstat -rn; arp -an; ndp -an"

    def has_ipv6(self, run: Run) -> bool:
        return run("sysctl -n kern.features.inet6 2>/dev/null || true").strip() == "1"

    def set_mtu(self, run: Run, interface: str, mtu: int) -> None:
        run(f"ifconfig {interface} mtu {mtu}")

    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        text = run(f"ifconfig -m {interface}")
        # options=503<RXCSUM,TXCSUM,TSO4,LRO>        capabilities=503<RXCSUM,TXCSUM,TSO4,LRO>
        able = re.search(r"capabilities=[0-9a-f]+<([^>]*)>", text)
        on = re.search(r"options=[0-9a-f]+<([^>]*)>", text)
        words = set(on[1].split(",")) if on else set()
        return {
            _FREEBSD_OFFLOADS[word]: word in words for word in (able[1].split(",") if able else ()) if word in _FREEBSD_OFFLOADS
        }

    def offload_command(self, interface: str, name: str, on: bool) -> str:
        word = {"tx": "txcsum", "rx": "rxcsum", "tso": "tso", "lro": "lro"}[name]
        return f"ifconfig {interface} {'' if on else '-'}{word}"

    def checksum_errors(self, run: Run) -> int:
        """Segments that TCP threw away for their checksum.

        A netstat of another major release than the kernel's reads struct tcpstat at the wrong places: 14.0 put tcps_progdrops before
        tcps_rcvbadsum (sys/netinet/tcp_var.h). Then the number is taken from the kernel's own struct.
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
            raise InfrastructureError("the guest's netstat has no line <Link#..>, or none `total packets received`")
        return int(frames[1]), int(packets[1])


# How many counters of 64 bits precede tcps_rcvbadsum in struct tcpstat of FreeBSD 13 and of 14 and 15.
_RCVBADSUM_13, _RCVBADSUM_14 = 30, 31
_FREEBSD_OFFLOADS = {"TXCSUM": "tx", "RXCSUM": "rx", "TSO4": "tso", "LRO": "lro"}


class LinuxAdmin:
    def disk_bytes(self, run: Run, name: str) -> int:
        return int(run(f"cat /sys/class/block/{name}/size")) * 512

    def attach_log(self, run: Run) -> str:
        return run("dmesg | grep -E 'blkfront|vbd|xvd'; true")

    def balloon(self, run: Run) -> Balloon:
        where = "/sys/devices/system/xen_memory/xen_memory0"
        text = run(f"cat {where}/info/current_kb {where}/target_kb; grep -E 'MemTotal|MemFree' /proc/meminfo")
        current, target, managed, free = (int(number) << 10 for number in re.findall(r"\b\d+\b", text))
        return Balloon(current, target, managed, free)

    def cpus(self, run: Run) -> int:
        return int(run("grep -c ^processor /proc/cpuinfo"))

    def on_cpu(self, number: int, command: str) -> str:
        return f"taskset {1 << number:x} {command}"

    def hog(self, mib: int) -> str:
        return f"( mkdir -p /hog; mount -t tmpfs -o size=100% hog /hog; dd if=/dev/zero of=/hog/f bs=1M count={mib} 2>/dev/null; echo hog-ready )"

    def address(self, run: Run, interface: str, cidr: str) -> None:
        version = 4
        if ":" in cidr:
            version = 6
            run(f"echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad")
        run(f"ip -{version} addr flush dev {interface}; ip addr add {cidr} dev {interface}; ip link set {interface} up")

    def network(self, interface: str) -> str:
        return f"ip addr show dev {interface}; grep -H . /sys/class/net/{interface}/statistics/*; ip route; ip -6 route; ip neigh"

    def has_ipv6(self, run: Run) -> bool:
        return run("[ ! -e /proc/sys/net/ipv6 ] || echo 1").strip() == "1"

    def set_mtu(self, run: Run, interface: str, mtu: int) -> None:
        run(f"ip link set {interface} mtu {mtu}")

    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        found = {}
        for line in run(f"ethtool -k {interface}").splitlines():
            # tcp-segmentation-offload: on        rx-checksumming: on [fixed]
            name, _, value = line.strip().partition(": ")
            if name in _LINUX_OFFLOADS and "[fixed]" not in value:
                found[_LINUX_OFFLOADS[name]] = value.startswith("on")
        return found

    def offload_command(self, interface: str, name: str, on: bool) -> str:
        return f"ethtool -K {interface} {name} {'on' if on else 'off'}"

    def checksum_errors(self, run: Run) -> int:
        return linux_checksum_errors(run("cat /proc/net/snmp"))

    def received(self, run: Run, interface: str) -> tuple[int, int]:
        text = run(f"cat /sys/class/net/{interface}/statistics/rx_packets /proc/net/snmp")
        return int(text.split()[0]), _snmp(text, "Ip:", "InReceives")


_LINUX_OFFLOADS = {
    "tx-checksum-ipv4": "tx", "rx-checksumming": "rx", "tcp-segmentation-offload": "tso", "scatter-gather": "sg",
}  # fmt: skip


def linux_checksum_errors(snmp: str) -> int:
    """InCsumErrors of TCP in the text of /proc/net/snmp."""
    return _snmp(snmp, "Tcp:", "InCsumErrors")


def _snmp(text: str, protocol: str, name: str) -> int:
    names, values = (line.split() for line in text.splitlines() if line.startswith(protocol))
    return int(values[names.index(name)])


def of(profile: GuestProfile) -> Admin:
    """The administrator for a guest of this profile."""
    return FreeBSDAdmin() if profile.os == "freebsd" else LinuxAdmin()
