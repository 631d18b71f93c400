# SPDX-License-Identifier: BSD-2-Clause
"""Looks into a hung or silent guest from dom0: the stack of each vCPU, and FreeBSD's message buffer.

The guest does not have to answer, so a kernel that dies before it has a console still gives its last words.
Sources: Xen's tools/xentrace/xenctx.c; FreeBSD sys/sys/msgbuf.h (struct msgbuf), sys/kern/subr_msgbuf.c, sys/kern/kern_shutdown.c
(panicstr).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.console.backtrace import Frame
from harness.deadline import Deadline
from harness.dom0 import read_memory
from harness.errors import HarnessError
from harness.guests import sourcelines
from harness.safetext import plain
from harness.transport import Completed, Transport
from harness.xen import dom0_program, elfsymbols

SECONDS = 10.0
"""Limit of one inspection."""

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

# Arguments: domid, number of vCPUs.
_XENCTX = """
x=$(command -v xenctx || ls /usr/lib/xen-*/bin/xenctx /usr/local/lib/xen/bin/xenctx 2>/dev/null | head -n 1)
[ -n "$x" ] || { echo "no xenctx in dom0" >&2; exit 127; }
n=0; while [ "$n" -lt "$2" ]; do echo "vcpu $n"; "$x" -a "$1" "$n" 2>&1; n=$((n + 1)); done
"""


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
    for part in re.split(r"^vcpu (?=\d+$)", text, flags=re.MULTILINE)[1:]:
        number, _, body = part.partition("\n")
        registers = {name: int(value, 16) for name, value in _REGISTER.findall(body)}
        calls = tuple(int(address, 16) for address in _CALL.findall(body.partition("Call Trace:")[2]))
        found.append(VCPU(int(number), registers, calls, body.strip()))
    return tuple(found)


def message_buffer(read: Callable[[int, int], bytes], symbol: Callable[[str], int | None]) -> str:
    """The kernel's messages, oldest first, and ``panic: ...`` at the end if the kernel has panicked; "" if they cannot be found.

    ``read`` returns up to so many bytes at a virtual address, ``symbol`` the address of a variable.
    """

    def pointer(name: str) -> int:
        place = symbol(name)
        return int.from_bytes(read(place, 8), "little") if place is not None else 0

    text = ""
    header = read(pointer("msgbufp"), _MSGBUF.size)
    if len(header) == _MSGBUF.size:
        start, magic, size, written, _ = _MSGBUF.unpack(header)
        if magic == _MAGIC and 0 < size <= _LARGEST_MSGBUF:
            data = read(start, size)
            turn = written % size
            ring = data[turn:] + data[:turn] if len(data) == size else data
            text = _PRIORITY.sub("", ring.replace(b"\0", b"").decode("utf-8", "replace"))
    panic = read(pointer("panicstr"), _PANICSTR).partition(b"\0")[0].decode("utf-8", "replace")
    return text + (f"\npanic: {panic}\n" if panic else "")


def inspect(transport: Transport, domid: int, vcpus: int, kernel: Path | None, symbols: Sequence[Path] = ()) -> dict[str, str]:
    """Describe a domain in two texts, ``vcpus`` and ``messages``. A text says why if its part failed. Takes 10 s at most.

    ``kernel`` is the guest's kernel file, ``symbols`` see :func:`harness.images.debugfile.find`. The domain is paused by xenctx
    for some milliseconds and otherwise left alone. Never raises.
    """
    deadline = Deadline(SECONDS)
    try:
        done = transport.run(["sh", "-c", _XENCTX, "sh", str(domid), str(vcpus)], deadline, check=False)
    except HarnessError as exc:
        return {"vcpus": f"{NOT_READ}{exc.message}\n"}
    cpus = parse(done.text)
    if not any(cpu.registers for cpu in cpus):
        return {"vcpus": f"{NOT_READ}{_last_line(done) or 'xenctx printed nothing'}\n"}
    found: dict[str, str] = {}
    data = b""
    try:
        data = kernel.read_bytes() if kernel is not None else b""
        registers = cpus[0].registers

        def read(address: int, size: int) -> bytes:
            if not address:
                return b""
            words = [
                str(domid),
                f"{registers['cr3']:x}",
                f"{address:x}:{size}",
                *(["la57"] if registers.get("cr4", 0) & 1 << 12 else []),
            ]
            out = dom0_program.run(transport, read_memory, *words, deadline=deadline)
            return bytes.fromhex(json.loads(out.text)[0])

        messages = message_buffer(read, lambda name: elfsymbols.address_of(data, name)) if data and "cr3" in registers else ""
    except (HarnessError, OSError, ValueError, IndexError, TypeError) as exc:
        messages = f"{NOT_READ}{exc}\n"
    if messages:
        found["messages"] = plain(messages)
    functions = elfsymbols.functions(data) if data else None
    found["vcpus"] = "".join(_described(cpu, functions, kernel if data else None, symbols, deadline) for cpu in cpus)
    return found


def _last_line(done: Completed) -> str:
    """The last line that dom0 printed: the error of xenctx, or of the shell."""
    lines = plain((done.stdout + done.stderr).decode("utf-8", "replace")).strip().splitlines()
    return lines[-1] if lines else ""


def _described(
    cpu: VCPU, functions: elfsymbols.Functions | None, kernel: Path | None, symbols: Sequence[Path], deadline: Deadline
) -> str:
    """The stack with names, and with source lines if there is time left, then xenctx's own text."""
    # xenctx prints every word of the stack that looks like code: a function's address is a pointer, no return address.
    calls = [
        address for number, address in enumerate(cpu.calls)
        if number == 0 or functions is None or ((hit := functions.at(address)) and hit[1] != address)
    ]  # fmt: skip
    frames = [Frame("", address=hex(address), exact=number == 0) for number, address in enumerate(calls)]
    lines = _named(frames, functions)
    if kernel is not None and not deadline.expired:
        try:
            lines = sourcelines.backtrace(frames, kernel, symbols, seconds=deadline.remaining) or lines
        except (HarnessError, OSError) as exc:
            lines = [f"no source lines: {exc}", *lines]
    return "\n".join([f"vcpu {cpu.number}", *lines, "", plain(cpu.text), "", ""])


def _named(frames: Sequence[Frame], functions: elfsymbols.Functions | None) -> list[str]:
    lines = []
    for number, frame in enumerate(frames):
        place = int(frame.address, 16)
        hit = functions.at(place) if functions is not None else None
        lines.append(f"#{number:<2} {hit[0]}+{place - hit[1]:#x}" if hit else f"#{number:<2} {frame.address}")
    return lines
