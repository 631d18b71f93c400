# SPDX-License-Identifier: BSD-2-Clause
"""Looks into a hung or silent guest from dom0: the stack of each vCPU, and FreeBSD's message buffer.

The guest need not answer, so a kernel that dies before it has a console still gives its last words.
Sources: Xen's tools/xentrace/xenctx.c; FreeBSD sys/sys/msgbuf.h (struct msgbuf), sys/kern/subr_msgbuf.c, sys/kern/kern_shutdown.c
(panicstr).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.console.backtrace import Frame
from harness.deadline import Deadline
from harness.dom0 import read_memory
from harness.errors import HarnessError
from harness.guests import sourcelines
from harness.images.debugfile import KernelSymbols
from harness.safetext import plain
from harness.transport import Completed, Transport
from harness.xen import dom0_program, elfsymbols

SECONDS = 10.0
"""Limit of one inspection in dom0."""
# Limit for the source lines, which this machine looks up. A slow dom0 must not take this time, too.
_LINES = 3.0

NOT_READ = "not read: "
"""Begins a text that says why its part failed."""

# MSG_MAGIC of sys/sys/msgbuf.h; ptr, magic, size, wseq, rseq of struct msgbuf.
_MAGIC, _MSGBUF = 0x063062, struct.Struct("<QIIII")
# kern.msgbufsize is 96 KiB by default.
_LARGEST_MSGBUF = 4 << 20
_PANICSTR = 256

# rip: ffffffff807c95f2      cr3: 000000000179c000
_REGISTER = re.compile(r"\b(rip|cr3|cr4): ([0-9a-f]{16})")
# fffffe0045e9cdd8:   [<ffffffff807c86dd>]                      [<ffffffff807c95f2>] <--
_CALL = re.compile(r"\[<([0-9a-f]{16})>\]")
# <118>Mounting late filesystems:.
_PRIORITY = re.compile(r"^<\d{1,3}>", re.MULTILINE)

# Of SECONDS, those for the vCPUs: a guest may have so many that nothing would be left for its messages.
_CPUS = 6
# Arguments: domid, number of vCPUs, seconds. Each xenctx is a process in dom0, which is slow under emulation.
_XENCTX = """
x=$(command -v xenctx || ls /usr/lib/xen-*/bin/xenctx /usr/local/lib/xen/bin/xenctx 2>/dev/null | head -n 1)
[ -n "$x" ] || { echo "no xenctx in dom0" >&2; exit 127; }
n=0; end=$(($(date +%s) + $3))
while [ "$n" -lt "$2" ]; do
  [ "$(date +%s)" -lt "$end" ] || { echo "left $n"; break; }
  echo "vcpu $n"; "$x" -a "$1" "$n" 2>&1; n=$((n + 1))
done
"""
# left 12      The first vCPU for which there was no time.
_LEFT = re.compile(r"^left (\d+)\n?\Z", re.MULTILINE)


@dataclass(frozen=True)
class VCPU:
    """One virtual CPU as xenctx shows it. ``calls`` are addresses on its stack, innermost first: a guess where frames are omitted."""

    number: int
    registers: dict[str, int]
    calls: tuple[int, ...]
    text: str


def parse(text: str) -> tuple[VCPU, ...]:
    """The vCPUs in the output of :data:`_XENCTX`."""
    found = []
    for part in re.split(r"^vcpu (?=\d+$)", _LEFT.sub("", text), flags=re.MULTILINE)[1:]:
        number, _, body = part.partition("\n")
        registers = {name: int(value, 16) for name, value in _REGISTER.findall(body)}
        calls = tuple(int(address, 16) for address in _CALL.findall(body.partition("Call Trace:")[2]))
        found.append(VCPU(int(number), registers, calls, body.strip()))
    return tuple(found)


Read = Callable[[Sequence[tuple[int, int]]], Sequence[bytes]]
"""Reads ranges of the guest's memory, each a virtual address and a number of bytes; less where memory is not mapped."""


def message_buffer(read: Read, symbol: Callable[[str], int | None]) -> str:
    """The kernel's messages, oldest first, and ``panic: ...`` at the end if the kernel has panicked; "" if they cannot be found.

    ``symbol`` returns the address of a variable. ``read`` is called three times at most.
    """
    places = [symbol(name) or 0 for name in ("msgbufp", "panicstr")]
    buffer, panicstr = (int.from_bytes(word, "little") for word in _read(read, [(place, 8) for place in places]))
    header, message = _read(read, [(buffer, _MSGBUF.size), (panicstr, _PANICSTR)])
    text = ""
    if len(header) == _MSGBUF.size:
        start, magic, size, written, _ = _MSGBUF.unpack(header)
        if magic == _MAGIC and 0 < size <= _LARGEST_MSGBUF:
            (data,) = _read(read, [(start, size)])
            turn = written % size
            ring = data[turn:] + data[:turn] if len(data) == size else data
            text = _PRIORITY.sub("", ring.replace(b"\0", b"").decode("utf-8", "replace"))
    panic = message.partition(b"\0")[0].decode("utf-8", "replace")
    return text + (f"\npanic: {panic}\n" if panic else "")


def _read(read: Read, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """``read``, but without the ranges of null pointers, which have no bytes."""
    known = [(address, size) for address, size in ranges if address]
    found = dict(zip(known, read(known) if known else (), strict=True))
    return [found.get(one, b"") for one in ranges]


def inspect(transport: Transport, domid: int, vcpus: int, symbols: KernelSymbols | None) -> dict[str, str]:
    """Describe a domain in two texts, ``vcpus`` and ``messages``. A text says why if its part failed.

    Takes 10 s at most in dom0, and 3 s here. ``symbols`` are those of the guest's kernel. The domain is paused by xenctx for some milliseconds and otherwise left alone.
    Never raises.
    """
    deadline = Deadline(SECONDS)
    try:
        done = transport.run(["sh", "-c", _XENCTX, "sh", str(domid), str(vcpus), str(_CPUS)], deadline, check=False)
    except HarnessError as exc:
        return {"vcpus": f"{NOT_READ}{exc.message}\n"}
    cpus = parse(done.text)
    if not any(cpu.registers for cpu in cpus):
        return {"vcpus": f"{NOT_READ}{_last_line(done) or 'xenctx printed nothing'}\n"}
    found: dict[str, str] = {}
    registers = cpus[0].registers

    def read(ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        words = [str(domid), f"{registers['cr3']:x}", *(f"{address:x}:{size}" for address, size in ranges)]
        words += ["la57"] if registers.get("cr4", 0) & 1 << 12 else []
        out = dom0_program.run(transport, read_memory, *words, deadline=deadline)
        return [bytes.fromhex(one) for one in json.loads(out.text)]

    try:
        messages = message_buffer(read, symbols.address_of) if symbols is not None and "cr3" in registers else ""
    except (HarnessError, OSError, ValueError, TypeError) as exc:
        messages = f"{NOT_READ}{exc}\n"
    if messages:
        found["messages"] = plain(messages)
    found["vcpus"] = _described(cpus, symbols)
    if left := _LEFT.search(done.text):
        found["vcpus"] += f"vCPUs {left[1]} to {vcpus - 1} are missing: to read the others took {_CPUS} s\n"
    return found


def _last_line(done: Completed) -> str:
    """The last line that dom0 printed: the error of xenctx, or of the shell."""
    lines = plain((done.stdout + done.stderr).decode("utf-8", "replace")).strip().splitlines()
    return lines[-1] if lines else ""


def _described(cpus: Sequence[VCPU], symbols: KernelSymbols | None) -> str:
    """For each vCPU its stack with names and source lines, then xenctx's own text."""
    try:
        functions = symbols.functions if symbols is not None else None
    except OSError:
        functions = None
    traces = [_frames(cpu, functions) for cpu in cpus]
    stacks, why = [_named(frames, functions) for frames in traces], ""
    if symbols is not None:
        try:
            lines = sourcelines.backtraces(traces, symbols, seconds=_LINES)
            stacks = [found or named for found, named in zip(lines, stacks, strict=True)]
        except (HarnessError, OSError) as exc:
            why = f"no source lines: {exc}\n\n"
    return why + "".join(
        "\n".join([f"vcpu {cpu.number}", *stack, "", plain(cpu.text), "", ""]) for cpu, stack in zip(cpus, stacks, strict=True)
    )


def _frames(cpu: VCPU, functions: elfsymbols.Functions | None) -> list[Frame]:
    # xenctx prints every word of the stack that looks like code: a function's address is a pointer, no return address.
    calls = [
        address for number, address in enumerate(cpu.calls)
        if number == 0 or functions is None or ((hit := functions.at(address)) and hit[1] != address)
    ]  # fmt: skip
    return [Frame("", address=hex(address), exact=number == 0) for number, address in enumerate(calls)]


def _named(frames: Sequence[Frame], functions: elfsymbols.Functions | None) -> list[str]:
    lines = []
    for number, frame in enumerate(frames):
        place = int(frame.address, 16)
        hit = functions.at(place) if functions is not None else None
        lines.append(f"#{number:<2} {hit[0]}+{place - hit[1]:#x}" if hit else f"#{number:<2} {frame.address}")
    return lines
