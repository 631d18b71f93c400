# SPDX-License-Identifier: BSD-2-Clause
"""The parts of the lifecycle cases that need no host: announcements, what a kernel holds, clocks, the balloon's sums, xl's words."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import dpkt
import pytest

from harness.errors import CannotRun
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.guests.os.values import Balloon
from harness.oracles import announcements
from harness.oracles.announcements import Announcement
from harness.transport import Completed
from harness.xen.config import DomainConfig
from harness.xen.xl import Xl

MAC = "00:16:3e:00:00:07"
HARDWARE = bytes.fromhex(MAC.replace(":", ""))
V4, V6 = socket.inet_aton("198.18.77.2"), socket.inet_pton(socket.AF_INET6, "2001:2:0:77::2")


def said(text: str) -> Callable[[str], str]:
    """A guest whose commands all print ``text``."""
    return lambda command: text


# -- announcements ----------------------------------------------------------------------------------------------------


def arp(sender: bytes, target: bytes, operation: int = dpkt.arp.ARP_OP_REQUEST) -> bytes:
    return bytes(dpkt.arp.ARP(op=operation, sha=HARDWARE, spa=sender, tpa=target))


def advertisement(flags: int) -> bytes:
    """A neighbour advertisement with the target link-layer address option."""
    body = bytes((136, 0, 0, 0, flags, 0, 0, 0)) + V6 + b"\2\1" + HARDWARE
    return bytes(
        dpkt.ip6.IP6(src=V6, dst=socket.inet_pton(socket.AF_INET6, "ff02::1"), nxt=58, hlim=255, plen=len(body), data=body)
    )


def ethernet(kind: int, payload: bytes, vlan: int = 0) -> bytes:
    tag = struct.pack("!HH", 0x8100, 0x2000 | vlan) if vlan else b""
    return b"\xff" * 6 + HARDWARE + tag + struct.pack("!H", kind) + payload


def captured(path: Path, *packets: bytes) -> tuple[Announcement, ...]:
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for packet in packets:
            writer.writepkt(packet, ts=1)
    return announcements.read(path)


def test_announcements_of_each_kind_are_found(tmp_path: Path) -> None:
    reply = arp(V4, V4, dpkt.arp.ARP_OP_REPLY)
    seen = captured(
        tmp_path / "a.pcap", ethernet(0x0806, arp(V4, V4)), ethernet(0x0806, reply, 5), ethernet(0x86DD, advertisement(0x20))
    )
    assert seen == (Announcement(MAC, "198.18.77.2"), Announcement(MAC, "198.18.77.2", 5), Announcement(MAC, "2001:2:0:77::2"))


def test_other_packets_announce_nothing(tmp_path: Path) -> None:
    question = ethernet(0x0806, arp(V4, socket.inet_aton("198.18.77.1")))
    answer = ethernet(0x86DD, advertisement(0x60))
    short = [ethernet(0x0806, arp(V4, V4))[:30], ethernet(0x86DD, advertisement(0x20))[:60], b"\0" * 14]
    assert captured(tmp_path / "a.pcap", question, answer, ethernet(0x0800, bytes(60)), *short) == ()


def test_a_missing_announcement_is_named() -> None:
    wanted = (Announcement(MAC, "198.18.77.2"), Announcement(MAC, "198.18.82.2", 5))
    assert announcements.missing(wanted, wanted[:1]) == (f"no announcement of 198.18.82.2 in VLAN 5 by {MAC}",)
    assert announcements.missing(wanted, wanted) == ()


# -- what a kernel says -----------------------------------------------------------------------------------------------


def test_what_freebsd_holds_for_its_devices() -> None:
    text = "        xbd      98      57K      130 64,128\n     xenbus      23       2K       40 16,64,128\n\n4\n2"
    assert FreeBSD().holdings(said(text)) == {"allocations": 121, "interrupts": 4, "disk devices": 2}
    # -5 allocations of xenbus, as vmstat prints them.
    assert FreeBSD().holdings(said(f"   xenstore 18 1K 9 16\n xenbus {2**64 - 5} 1K 9 16\n\n4\n2"))["allocations"] == 13


def test_what_linux_holds_for_its_devices() -> None:
    assert Linux().holdings(said("5\n11")) == {"devices": 5, "interrupts": 11}


def test_clocks_of_negative_quality_are_left_out() -> None:
    commands = FreeBSD().clock_commands(said("XENTIMER(950) LAPIC(100)\nTSC(-100) XENTIMER(950) dummy(-1000000)"))
    assert commands == {
        "the event timer XENTIMER": "sysctl kern.eventtimer.timer=XENTIMER kern.eventtimer.periodic=0",
        "the event timer LAPIC": "sysctl kern.eventtimer.timer=LAPIC kern.eventtimer.periodic=0",
        "the event timer XENTIMER, periodic": "sysctl kern.eventtimer.timer=XENTIMER kern.eventtimer.periodic=1",
        "the event timer LAPIC, periodic": "sysctl kern.eventtimer.timer=LAPIC kern.eventtimer.periodic=1",
        "the timecounter XENTIMER": "sysctl kern.timecounter.hardware=XENTIMER",
    }


def test_clocks_of_linux() -> None:
    where = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert Linux().clock_commands(said("xen tsc")) == {
        f"the clocksource {name}": f"echo {name} > {where}" for name in ("xen", "tsc")
    }


def test_pages_that_no_counter_explains() -> None:
    # current, target, low_mem, v_page_count, v_free_count, active, inactive, laundry, wire
    page = 4096
    assert FreeBSD().balloon(said("900\n900\n100\n1000\n400\n100\n150\n50\n136")) == Balloon(
        900 * page, 900 * page, 1000 * page, 400 * page, 64 * page
    )
    meminfo = "MemTotal: 1000 kB\nMemFree: 400 kB\nBuffers: 1 kB\nCached: 199 kB\nAnonPages: 100 kB\nSlab: 200 kB"
    assert Linux().balloon(said(f"1100\n1100\n{meminfo}\n60")).unexplained == 40 << 10, "60 kB are in the lists of the CPUs"


def test_linux_has_no_ping_with_df_and_no_vlan() -> None:
    with pytest.raises(CannotRun, match="sets DF"):
        Linux().ping_command("198.18.77.1", 1, 1472, whole=True)
    with pytest.raises(CannotRun, match="needs VLANs"):
        Linux().vlan_command("eth0", 5)
    assert FreeBSD().ping_command("198.18.77.1", 1, 1472, whole=True) == "ping -c 1 -W 1000 -D -s 1472 198.18.77.1"


# -- the toolstack ----------------------------------------------------------------------------------------------------


class Recorder:
    """A transport that runs nothing."""

    name = "recorder"

    def __init__(self) -> None:
        self.argv: list[str] = []

    def run(self, argv: list[str], *rest: object, **more: object) -> Completed:
        self.argv = list(argv)
        return Completed(tuple(argv), 0, b"", b"")


def test_words_of_a_save() -> None:
    transport = Recorder()
    xl = Xl(transport, "/run")  # type: ignore[arg-type]
    xl.save(3, "/x")
    assert transport.argv == ["xl", "save", "3", "/x"]
    xl.save(3, "/x", stay=True)
    assert transport.argv == ["xl", "save", "-c", "3", "/x"]
    xl.vcpu_set(3, 1)
    assert transport.argv == ["xl", "vcpu-set", "--ignore-host", "3", "1"]


def test_a_limited_save_writes_no_more(tmp_path: Path) -> None:
    transport, target = Recorder(), tmp_path / "file"
    Xl(transport, "/run").save(3, "/x", limit=1024)  # type: ignore[arg-type]
    at = transport.argv.index("xl")
    writes = ["dd", "if=/dev/zero", f"of={target}", "bs=512", "count=9"]
    done = subprocess.run([*transport.argv[:at], *writes], capture_output=True, check=False)
    assert (target.stat().st_size, done.returncode) == (1024, 1)


def test_a_domain_can_get_more_vcpus() -> None:
    assert "maxvcpus = 4\n" in DomainConfig("g", "pvh", 64, kernel="/k", vcpus=2, maxvcpus=4).render()
    assert "maxvcpus" not in DomainConfig("g", "pvh", 64, kernel="/k", vcpus=2).render()
