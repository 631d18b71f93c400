# SPDX-License-Identifier: BSD-2-Clause
"""The gdb stub for a domain: gdb itself, if it is installed, on a domain of our own."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.dom0 import gdb_stub
from harness.dom0.gdb_stub import Stub
from harness.errors import InfrastructureError
from harness.hosts import guest_stub
from harness.transport.local import DescriptorStream, LocalTransport

TEXT = 0xFFFFFFFF80000000
# The offsets in struct vcpu_guest_context, by the headers of Xen 4.20 compiled for x86-64.
RIP, RAX, R15, EFLAGS, CS, CR3, CR4 = 648, 600, 520, 664, 656, 4984 + 24, 4984 + 32


class Domain:
    """Two vCPUs, or as many as given, and a page of memory. Remembers what was done to it."""

    def __init__(self, vcpus: Sequence[int] = (0, 1)) -> None:
        self.done: list[str] = []
        self._vcpus = list(vcpus)

    def pause(self) -> None:
        self.done.append("pause")

    def unpause(self) -> None:
        self.done.append("unpause")

    def vcpus(self) -> list[int]:
        return self._vcpus

    def context(self, vcpu: int) -> bytes | None:
        if vcpu not in self.vcpus():
            return None
        data = bytearray(gdb_stub._CONTEXT)
        for at, value in (
            (RIP, TEXT + 0x10 * (vcpu + 1)), (RAX, 0x1122334455667788), (R15, 15), (EFLAGS, 0x246), (CS, 0x20), (CR3, 0x1000), (CR4, 0x6E0),
        ):  # fmt: skip
            struct.pack_into("<Q", data, at, value)
        return bytes(data)

    def read(self, cr3: int, cr4: int, address: int, size: int) -> bytes:
        assert (cr3, cr4) == (0x1000, 0x6E0)
        page = b"a message\0".ljust(4096, b"\x90")
        return page[address - TEXT :][:size] if TEXT <= address < TEXT + 4096 else b""


def ask(stub: Stub, packet: bytes) -> bytes:
    """The reply to a packet, without its frame."""
    answer = stub.feed(gdb_stub._packet(packet))
    assert answer[:2] == b"+$", answer
    return answer[2:-3]


def test_the_domain_is_paused_from_the_first_packet_until_gdb_lets_it_run() -> None:
    domain = Domain()
    stub = Stub(domain)  # type: ignore[arg-type]
    assert domain.done == []
    assert ask(stub, b"?") == b"T05thread:1;"
    assert ask(stub, b"g").startswith(b"8877665544332211")
    assert stub.feed(gdb_stub._packet(b"c")) == b"+", "no answer while the domain runs"
    assert stub.feed(b"\x03") == gdb_stub._packet(b"T02thread:1;")
    assert ask(stub, b"k") == b"OK", "kill only lets the domain go"
    assert domain.done == ["pause", "unpause", "pause", "unpause"]


def test_threads_are_vcpus() -> None:
    stub = Stub(Domain())  # type: ignore[arg-type]
    assert ask(stub, b"qfThreadInfo") == b"m1,2"
    assert ask(stub, b"Hg2") == b"OK"
    assert ask(stub, b"qC") == b"QC2"
    assert ask(stub, b"Hg3") == gdb_stub._REFUSED
    assert ask(stub, b"T2") == b"OK"
    assert ask(stub, b"Hgc") == gdb_stub._REFUSED, "thread 12"
    assert ask(stub, b"Hc-1") == b"OK"
    assert bytes.fromhex(ask(stub, b"qThreadExtraInfo,2").decode()) == b"vCPU 1"


@pytest.mark.parametrize("count", [12, 13, 16, 33, gdb_stub._MOST_VCPUS])
def test_each_of_many_vcpus_is_a_thread(count: int) -> None:
    """Their numbers are hexadecimal, and the digit c also begins packets: thread 12 is "c", and 192 "c0"."""
    stub = Stub(Domain(range(count)))  # type: ignore[arg-type]
    listed = ask(stub, b"qfThreadInfo")
    assert len(listed) <= 2 * gdb_stub._LONGEST
    assert listed == b"m" + b",".join(b"%x" % thread for thread in range(1, count + 1))
    assert ask(stub, b"qsThreadInfo") == b"l"
    for thread in range(1, count + 1):
        number = b"%x" % thread
        for packet, reply in ((b"Hg" + number, b"OK"), (b"qC", b"QC" + number), (b"T" + number, b"OK"), (b"Hc" + number, b"OK")):
            assert ask(stub, packet) == reply
        assert ask(stub, b"?") == b"T05thread:%s;" % number
        rip = bytes.fromhex(ask(stub, b"g").decode())[16 * 8 : 17 * 8]
        assert int.from_bytes(rip, "little") == TEXT + 0x10 * thread
        assert bytes.fromhex(ask(stub, b"qThreadExtraInfo," + number).decode()) == b"vCPU %d" % (thread - 1)
    assert ask(stub, b"Hg%x" % (count + 1)) == gdb_stub._REFUSED
    assert ask(stub, b"T%x" % (count + 1)) == gdb_stub._REFUSED


def test_vcpus_that_are_off_are_no_threads() -> None:
    stub = Stub(Domain((0, 11, 12)))  # type: ignore[arg-type]
    assert ask(stub, b"qfThreadInfo") == b"m1,c,d"
    assert (ask(stub, b"T2"), ask(stub, b"Tc")) == (gdb_stub._REFUSED, b"OK")


@pytest.mark.parametrize("packet", [b"M0,1:00", b"X0,1:0", b"P0=1", b"Gff", b"s"])
def test_nothing_is_written(packet: bytes) -> None:
    assert ask(Stub(Domain()), packet) == gdb_stub._REFUSED  # type: ignore[arg-type]


def test_hostile_input_is_answered_or_dropped() -> None:
    stub = Stub(Domain())  # type: ignore[arg-type]
    assert stub.feed(b"$g#00") == b"-", "a wrong checksum"
    assert stub.feed(b"noise+-") == b""
    assert stub.feed(b"$" + b"x" * 20000) == b""
    assert ask(stub, b"m0,40") == gdb_stub._NO_MEMORY
    assert ask(stub, b"vMustReplyEmpty") == b""
    assert ask(stub, b"Z0,0,1") == b"", "no breakpoints"
    for packet in (b"Hgx", b"Tx", b"qThreadExtraInfo,zz", b"Hg" + b"f" * 40):
        assert ask(stub, packet) == gdb_stub._REFUSED
    assert stub.feed(b"$m0,4" + guest_stub._DETACH) == b"+" + guest_stub._DETACHED, "gdb was killed within a packet"
    assert ask(stub, b"QStartNoAckMode") == b"OK"
    stub.acknowledges = True
    half = gdb_stub._packet(b"qC")
    assert stub.feed(half[:3]) == b""
    assert stub.feed(half[3:]) == b"+" + gdb_stub._packet(b"QC1")


@pytest.fixture
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[guest_stub.Debugger, Domain]]:
    """The stub at a socket, for as many vCPUs as the parameter says. Its program runs in a thread instead of dom0."""
    ours, theirs = socket.socketpair()
    domain = Domain(range(getattr(request, "param", 2)))

    def program() -> None:
        stub = Stub(domain)  # type: ignore[arg-type]
        theirs.sendall(gdb_stub.READY)
        while data := theirs.recv(4096):
            theirs.sendall(stub.feed(data))

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    monkeypatch.setattr(guest_stub.dom0_program, "start", lambda *words: DescriptorStream(ours.detach()))
    with guest_stub.serve(LocalTransport(), 3, tmp_path / "gdb") as found:
        yield found, domain
    theirs.close()


def gdb(target: str, *commands: str) -> str:
    argv = ["gdb", "-q", "-nx", "-batch", "-ex", f"target remote {target}", *(word for one in commands for word in ("-ex", one))]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb: apt-get install gdb")
def test_gdb_reads_registers_memory_and_threads(served: tuple[guest_stub.Debugger, Domain]) -> None:
    found, domain = served
    assert not found.attached()
    for _ in range(2):  # one gdb after the other
        text = gdb(
            found.target, "p/x $rax", "p/x $eflags", "p/x $cs", "p/x $r15", f"x/s {TEXT:#x}", "info threads", "thread 2", "p/x $rip", "x/x 0"
        )  # fmt: skip
        for wanted in ("= 0x1122334455667788", "0x246", "= 0x20", "= 0xf", '"a message"', "vCPU 1", f"= {TEXT + 0x20:#x}"):
            assert wanted in text, text
        assert "Cannot access memory at address 0x0" in text
        assert "packet" not in text.lower(), text
    Deadline(60).wait("gdb to be gone", lambda: _gone(found), 0.05)
    assert domain.done[:2] == ["pause", "unpause"]
    assert domain.done[-1] == "unpause"


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb: apt-get install gdb")
@pytest.mark.parametrize("served", [33], indirect=True)
def test_gdb_reads_each_of_many_vcpus(served: tuple[guest_stub.Debugger, Domain]) -> None:
    text = gdb(served[0].target, "info threads", *(word for n in (12, 16, 33) for word in (f"thread {n}", "p/x $rip")), "thread 34")
    for wanted in (
        "vCPU 0",
        "vCPU 11",
        "vCPU 32",
        *(f"= {TEXT + 0x10 * thread:#x}" for thread in (12, 16, 33)),
        "Unknown thread 34",
    ):
        assert wanted in text, text
    assert "packet" not in text.lower(), text


def _gone(found: guest_stub.Debugger) -> None:
    if found.attached():
        raise ConditionNotMet("attached")


def test_a_gdb_that_is_killed_leaves_a_running_domain(served: tuple[guest_stub.Debugger, Domain]) -> None:
    found, domain = served
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(found.target)
        client.sendall(gdb_stub._packet(b"QStartNoAckMode") + gdb_stub._packet(b"?"))
        seen = b""
        while b"T05" not in seen:
            seen += client.recv(100)
        assert found.attached()
    Deadline(60).wait("the bridge to notice", lambda: _gone(found), 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(found.target)
        client.sendall(gdb_stub._packet(b"qC"))
        assert client.recv(100) == b"+" + gdb_stub._packet(b"QC1"), "the next client gets only its own answers"
    assert domain.done[:2] == ["pause", "unpause"]


def test_a_late_answer_does_not_reach_the_next_gdb() -> None:
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0fxh-test-{os.getpid()}")
        server.listen(1)
        bridge = guest_stub._Bridge(server, DescriptorStream(ours.detach()))
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(server.getsockname())
                client.sendall(b"$g#67")
                assert theirs.recv(5) == b"$g#67"
            assert theirs.recv(100) == guest_stub._DETACH
            theirs.sendall(b"+$late#00+$O")
            time.sleep(0.3)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(60)
                client.connect(server.getsockname())
                theirs.sendall(b"K#9a")
                client.sendall(b"$qC#b4")
                assert theirs.recv(100) == b"$qC#b4"
                theirs.sendall(b"own")
                assert client.recv(100) == b"own"
        finally:
            bridge.end()


def test_sockets_of_killed_processes_are_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        ended = subprocess.Popen(["true"])
        ended.wait()
        dead.bind(str(tmp_path / f"gdb-{ended.pid}-run-5"))
        alive.bind(str(tmp_path / guest_stub.socket_name("run", 5)))
        alive.listen(1)
        alive.settimeout(0)
        guest_stub.sweep(tmp_path)
        with pytest.raises(BlockingIOError):
            alive.accept()
    assert [path.name for path in tmp_path.iterdir()] == [f"gdb-{os.getpid()}-run-5"]


def test_a_dom0_without_libxenctrl_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InfrastructureError, match=r"localhost: the gdb stub does not start: .*libxen"),
        guest_stub.serve(LocalTransport(), 3, tmp_path / "gdb"),
    ):
        pass
    assert not (tmp_path / "gdb").exists()
