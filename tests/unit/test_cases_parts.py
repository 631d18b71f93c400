# SPDX-License-Identifier: BSD-2-Clause
"""Parts that cases use: GEOM's text, drives without a medium, a small kernel module, partitioned disks, a network peer."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.dom0 import netpeer, xenstore_writer
from harness.errors import InfrastructureError, UsageError
from harness.guests.capture import COUNTS
from harness.guests.peer import Listener, Moved, moved
from harness.images import kmodule
from harness.images.disks import BootCode, write_disk
from harness.images.layout import FileSystem, Vdev
from harness.oracles import counters
from harness.oracles.naming import consumer_of, extent_of
from harness.transport.local import LocalTransport
from harness.xen.config import Disk

# kern.geom.conftxt of FreeBSD 13.2 with an MBR disk and a GPT disk, shortened at the right.
CONFTXT = """\
0 DISK xbd0 536870912 512 hd 0 sc 0
1 LABEL ufsid/65 536870912 512 i 0 o 0
0 DISK xbd1 538968064 512 hd 0 sc 0
1 PART xbd1s1 537919488 512 i 1 o 32256 ty freebsd xs MBR xt 165
2 PART xbd1s1a 536870912 512 i 1 o 0 ty !7 xs BSD xt 7
2 PART xbd1s1b 1048576 512 i 2 o 536870912 ty freebsd-swap xs BSD xt 1
0 DISK xbd2 539000832 512 hd 0 sc 0
1 PART xbd2p2 536870912 512 i 2 o 2097152 ty freebsd-ufs xs GPT
2 LABEL ufs/FBROOT 536870912 512 i 0 o 0
"""


@pytest.mark.parametrize(
    ("provider", "below"),
    [("xbd1s1a", "xbd1s1"), ("xbd1s1b", "xbd1s1"), ("xbd1s1", "xbd1"), ("xbd1", ""), ("ufs/FBROOT", "xbd2p2"), ("ada0", "")],
)
def test_the_provider_below_a_geom_provider(provider: str, below: str) -> None:
    assert consumer_of(CONFTXT, provider) == below


@pytest.mark.parametrize(
    ("partition", "place"),
    [
        ("xbd2p2", (2097152, 536870912)),
        ("xbd1s1", (32256, 537919488)),
        ("xbd1s1b", None),  # its offset counts from the slice
        ("xbd2", None),
        ("ufs/FBROOT", None),
        ("xbd9p1", None),
    ],
)
def test_the_place_of_a_partition_on_its_disk(partition: str, place: tuple[int, int] | None) -> None:
    assert extent_of(CONFTXT, partition) == place


def test_a_drive_without_a_medium() -> None:
    assert Disk("", "hdd", format="empty", cdrom=True).render() == "format=empty,vdev=hdd,access=ro,devtype=cdrom"
    assert Disk("/iso", "hdc", cdrom=True).render().endswith(",devtype=cdrom,target=/iso")
    with pytest.raises(UsageError):
        Disk("", "hdd", format="empty").render()


def test_a_module_is_an_object_file_that_depends_on_the_kernel() -> None:
    data = kmodule.module(1200000, 1299999)
    kind, machine = struct.unpack_from("<HH", data, 16)
    rows, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    assert (kind, machine, size, count) == (1, 62, 64, 8)
    assert rows + size * count == len(data)
    # The section .data: a name, then the lowest, the preferred and the highest version.
    at = struct.unpack_from("<Q", data, rows + size + 24)[0]
    assert data[at : at + 7] == b"kernel\0"
    assert struct.unpack_from("<iii", data, at + 8) == (1200000, 1200000, 1299999)


@pytest.mark.parametrize(("table", "place", "start"), [("mbr", 0, 63 << 9), ("gpt", 1, 2 << 20)])
def test_a_file_system_after_a_partition_table(tmp_path: Path, table: str, place: int, start: int) -> None:
    root = tmp_path / "root"
    root.write_bytes(b"root" * 1024 + bytes((2 << 20) - 4096))
    swap, fs = FileSystem("none", "swap", 1), FileSystem("/", "ufs1", 2)
    disk = replace(Vdev("xvdb", (), table), fs=(swap, fs) if place else (fs, swap))
    write_disk(disk, [None, root] if place else [root, None], BootCode(tmp_path), "seed", tmp_path / "disk")
    data = (tmp_path / "disk").read_bytes()
    assert data[510:512] == b"\x55\xaa"
    # UFS does not use its first 8 KiB, which hold the label of an MBR slice.
    assert data[start + 1024 : start + 4096] == root.read_bytes()[1024:4096]


def a_port(kind: int) -> str:
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def peer(verb: str, port: str, *words: str) -> Listener:
    return Listener(LocalTransport().open([sys.executable, netpeer.__file__, verb, "127.0.0.1", port, *words]), "the network peer")


def end(said: Listener) -> Moved:
    last = said.until(rb"{[^}]*}")[0]
    said.stream.close()
    return moved(last)


@pytest.mark.parametrize("lasting", [0, 0.3])
def test_a_peer_sends_for_the_given_time(lasting: float) -> None:
    port = a_port(socket.SOCK_STREAM)
    said = peer("send", port, "1000", "7", "300", str(lasting))
    said.until(b"listening")

    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        arrived = b"".join(iter(lambda: connection.recv(1 << 16), b""))

    done, rounds = end(said), len(arrived) // 1000
    assert arrived == random.Random(7).randbytes(1000) * rounds
    assert rounds > 1 if lasting else rounds == 1
    assert (done.bytes, done.md5, done.error) == (len(arrived), hashlib.md5(arrived, usedforsecurity=False).hexdigest(), "")
    assert lasting <= done.seconds < 10


@pytest.mark.parametrize(("out", "way_in"), [("connect", "recv"), ("send_datagrams", "recv_datagrams")])
def test_two_peers_agree(out: str, way_in: str) -> None:
    port = a_port(socket.SOCK_DGRAM if out == "send_datagrams" else socket.SOCK_STREAM)
    hears = peer(way_in, port, "1500")
    hears.until(b"listening")
    says = peer(out, port, "1500", "7", "1000,499,1" if out == "send_datagrams" else "300")
    # The receiver closes the connection when it has all bytes, and the sender waits for that.
    came, went = end(hears), end(says)
    assert (came.bytes, came.md5, came.error) == (went.bytes, went.md5, went.error)
    assert came.bytes == 1500


def test_one_peer_reads_and_writes_at_once() -> None:
    port = a_port(socket.SOCK_STREAM)
    said = peer("both", port, "5000", "7", "1460", "5")
    said.until(b"listening")
    down = socket.create_connection(("127.0.0.1", int(port) + 1))
    with socket.create_connection(("127.0.0.1", int(port))) as up, down:
        up.sendall(b"x" * 5000)
        arrived = b"".join(iter(lambda: down.recv(1 << 16), b""))
    assert arrived == random.Random(7).randbytes(5000)
    assert end(said).bytes == 5000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_a_peer_prints_the_counters_before_it_listens() -> None:
    said = peer("recv", a_port(socket.SOCK_STREAM), "1")
    text = said.until(b"(.*)listening")[1].decode()
    said.stream.close()
    assert "InCsumErrors" in text
    assert counters.linux(text, "lo")["rx_packets"] >= 0
    assert "Tcp.InSegs" in counters.linux(text, "lo")


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox's TFTP client (apt: busybox-static)")
def test_a_tftp_client_and_a_peer_agree(tmp_path: Path) -> None:
    """The control guest's client sends and receives files of one block, of several blocks, and of less than a block."""
    port, sizes = a_port(socket.SOCK_DGRAM), {1468: 1468, 3000: 512, 5: 64}
    said = peer("tftp", port, str(2 * sum(sizes)), "7")
    said.until(b"listening")
    got = b""
    for size, block in sizes.items():
        for way in ("-g", "-p"):
            argv = ["busybox", "tftp", way, "-b", str(block), "-l", f"{size}", "-r", f"{size}", "127.0.0.1", port]
            subprocess.run(argv, cwd=tmp_path, check=True, timeout=20, capture_output=True)
        # The client sends each file back unchanged.
        got += 2 * (tmp_path / str(size)).read_bytes()
    done = end(said)
    assert (done.bytes, done.error) == (2 * sum(sizes), "")
    assert done.md5 == hashlib.md5(got, usedforsecurity=False).hexdigest()
    assert got.startswith(random.Random(7).randbytes(2 * sum(sizes))[:1468])


def test_counts_of_a_capture_are_read() -> None:
    """The text is from tcpdump 4.99."""
    said = Listener(
        LocalTransport().open(
            [
                "printf",
                "%s",
                "tcpdump: 0 packets captured, 1 packet received by filter, 0 packets dropped by kernel\n"
                "tcpdump: 198 packets captured, 199 packets received by filter, 2 packets dropped by kernel\n",
            ]
        ),
        "tcpdump",
    )
    assert [said.until(COUNTS).groups() for _ in range(2)] == [(b"0", b"1", b"0"), (b"198", b"199", b"2")]


def test_a_missing_line_of_a_program_is_an_error() -> None:
    said = Listener(LocalTransport().open(["sh", "-c", "echo one; echo two; exit 3"]), "a program")
    assert said.until(b"o..")[0] == b"one"
    assert said.until(b"t..")[0] == b"two"
    with pytest.raises(InfrastructureError, match="a program in dom0 did not print 'three'"):
        said.until(b"three")


@pytest.mark.parametrize(("kind", "said"), [(11, b"OK\0"), (xenstore_writer.ERROR, b"EACCES\0")])
def test_a_write_to_xenstore_by_its_wire_protocol(kind: int, said: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(struct.pack("<4I", kind, 0, 0, len(said)) + said)
        if kind == xenstore_writer.ERROR:
            with pytest.raises(OSError, match="/a/target: xenstored replied 'EACCES"):
                xenstore_writer.write(here.fileno(), "/a/target", "12")
        else:
            xenstore_writer.write(here.fileno(), "/a/target", "12")
        assert there.recv(100) == struct.pack("<4I", 11, 0, 0, 12) + b"/a/target\x0012"
