# SPDX-License-Identifier: BSD-2-Clause
"""A hung guest from outside: xenctx's output and the message buffer, on a recorded text and a memory of our own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import DeadlineExpired
from harness.guests import postmortem
from harness.guests.postmortem import inspect, message_buffer, parse
from harness.images import debugfile
from harness.images.debugfile import KernelSymbols
from harness.plugin import evidence
from harness.transport import Completed
from harness.transport.local import LocalTransport

# xenctx -a of Xen 4.20 on a FreeBSD 15.1 PVH guest in our lab, shortened.
XENCTX = """\
vcpu 0
rip: ffffffff807c95f2
flags: 00000246 i z p
rsp: fffffe0045e9cdc0
 cs: 0020	 ss: 0028	 ds: 003b	 es: 003b

cr0: 000000008005003b
cr3: 000000000179c000
cr4: 00000000000106e0

Code (instr addr ffffffff807c95f2)
25 00 01 00 00 <c7> 83 00 01


Stack:
 00000000101e6d1a 0000000000000000 fffffe0045e9cdf0 ffffffff807c86dd

Call Trace:
                    [<ffffffff807c95f2>] <--
fffffe0045e9cdd8:   [<ffffffff807c86dd>]
fffffe0045e9cdf8:   [<ffffffff8051fc96>]
vcpu 1
rip: ffffffff807c95f4
cr3: 000000000179c000
"""


def test_registers_and_calls_of_each_vcpu() -> None:
    first, second = parse(XENCTX)
    assert first.registers == {"rip": 0xFFFFFFFF807C95F2, "cr3": 0x179C000, "cr4": 0x106E0}
    assert [hex(address) for address in first.calls] == ["0xffffffff807c95f2", "0xffffffff807c86dd", "0xffffffff8051fc96"]
    assert (second.number, second.calls) == (1, ())


PLACES = {"msgbufp": 0x100, "panicstr": 0x200}


class Memory:
    """A kernel's memory with msgbufp at 0x100 and panicstr at 0x200; counts how often it is read."""

    def __init__(self, ring: bytes, written: int, *, magic: int = 0x063062, panic: bytes = b"") -> None:
        self.content = {
            0x100: (0x1000).to_bytes(8, "little"),
            0x200: (0x5000 if panic else 0).to_bytes(8, "little"),
            0x1000: struct.pack("<QIIII", 0x2000, magic, len(ring), written, 0),
            0x2000: ring,
            0x5000: panic + b"\0" + b"z" * 300,
        }
        self.calls = 0

    def __call__(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.calls += 1
        assert all(address for address, _ in ranges), "nothing is at a null pointer"
        return [self.content.get(address, b"")[:size] for address, size in ranges]

    def messages(self) -> str:
        return message_buffer(self, PLACES.get)


def test_messages_come_in_the_order_they_were_written() -> None:
    memory = Memory(b"second\n<6>first\n\0", 7 + 17)
    assert memory.messages() == "first\nsecond\n"
    assert memory.calls == 3


def test_a_buffer_that_has_not_turned_has_zeros_only_after_its_text() -> None:
    assert Memory(b"---<<BOOT>>---\n<118>rc\n" + bytes(40), 23).messages() == "---<<BOOT>>---\nrc\n"


def test_the_panic_message_is_at_the_end() -> None:
    memory = Memory(b"booting\n" + bytes(8), 8, panic=b"page fault")
    assert memory.messages() == "booting\n\npanic: page fault\n"
    assert memory.calls == 3


@pytest.mark.parametrize("magic", [0, 0x063061])
def test_memory_without_the_magic_number_is_no_buffer(magic: int) -> None:
    assert Memory(b"noise", 5, magic=magic).messages() == ""


def test_a_kernel_without_symbols_has_no_messages() -> None:
    memory = Memory(b"x", 1)
    assert message_buffer(memory, lambda name: None) == ""
    assert memory.calls == 0


def test_memory_that_is_not_mapped_has_no_messages() -> None:
    assert message_buffer(lambda ranges: [b""] * len(ranges), PLACES.get) == ""


class Dom0:
    """Answers xenctx and the memory program."""

    def __init__(self, *answers: Completed | Exception) -> None:
        self.answers = list(answers)

    def run(self, argv: list[str], *_: object, **__: object) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def done(text: str, status: int = 0, error: str = "") -> Completed:
    return Completed((), status, text.encode(), error.encode())


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((done("", 127, "no xenctx in dom0\n"),), "no xenctx in dom0"),
        ((done(""),), "xenctx printed nothing"),
        ((DeadlineExpired("dom0 does not answer"),), "dom0 does not answer"),
    ],
)
def test_what_cannot_be_read_says_why(answers: tuple[Completed | Exception, ...], words: str) -> None:
    assert words in inspect(Dom0(*answers), 3, 1, None)["vcpus"]  # type: ignore[arg-type]


def test_vcpus_for_which_there_was_no_time_are_named() -> None:
    text = inspect(Dom0(done(f"{XENCTX}left 2\n")), 3, 33, None)["vcpus"]  # type: ignore[arg-type]
    assert text.endswith("\nvCPUs 2 to 32 are missing: to read the others took 6 s\n")
    assert "left" not in text


# The script counts whole seconds: of two, it has at least one.
@pytest.mark.parametrize(("seconds", "most"), [("2", 40), ("9", 41)])
def test_many_vcpus_do_not_take_the_time_of_the_messages(tmp_path: Path, seconds: str, most: int) -> None:
    """With the real script, and an xenctx that takes its time."""
    tool = tmp_path / "xenctx"
    tool.write_text("#!/bin/sh\nsleep 0.05; echo rip: 00000000000000ff\n")
    tool.chmod(0o755)
    argv = ["sh", "-c", f"PATH={tmp_path}:$PATH\n{postmortem._XENCTX}", "sh", "3", "41", seconds]
    text = LocalTransport().run(argv).text
    cpus = parse(text)
    assert 2 < len(cpus) <= most
    assert [cpu.number for cpu in cpus] == list(range(len(cpus)))
    left = postmortem._LEFT.search(text)
    assert (left is None) == (len(cpus) == 41)
    assert left is None or int(left[1]) == len(cpus)


def test_stacks_have_names_where_the_kernel_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {0xFFFFFFFF807C95F2: ("cpu_idle_hlt", 0xFFFFFFFF807C95E2), 0xFFFFFFFF807C86DD: ("cpu_idle", 0xFFFFFFFF807C86DD)}
    names = SimpleNamespace(at=known.get)
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(debugfile.elfsymbols, "functions", lambda data: names)
    (tmp_path / "kernel").write_bytes(b"none")
    found = inspect(Dom0(done(XENCTX), done("[]")), 3, 2, KernelSymbols(tmp_path / "kernel"))  # type: ignore[arg-type]
    assert "#0  cpu_idle_hlt+0x10\n\n" in found["vcpus"], "neither a pointer to a function nor data is a call"
    assert "messages" not in found


def test_an_error_of_xenctx_is_no_stack() -> None:
    text = "vcpu 0\nxenctx: error: xc_vcpu_getcontext: No such process\n"
    assert inspect(Dom0(done(text)), 3, 1, None) == {"vcpus": "not read: xenctx: error: xc_vcpu_getcontext: No such process\n"}  # type: ignore[arg-type]


def test_a_guest_that_was_not_created_is_left_out(tmp_path: Path) -> None:
    evidence.inspect([SimpleNamespace(domid=-1)], tmp_path)  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


def test_hostile_memory_is_escaped() -> None:
    found = postmortem.plain(Memory(b"\x1b]0;title\x07\x1b[2J<script>\n", 24).messages())
    assert "\x1b" not in found
    assert "\x07" not in found
