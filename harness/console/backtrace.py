# SPDX-License-Identifier: BSD-2-Clause
"""Parses backtraces of FreeBSD and Linux, and finds the faulting function in them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from harness.console.machinery import Machinery, base

# Characters of a report to search for a trace.
_SPAN = 1 << 16


@dataclass(frozen=True)
class Frame:
    """One line of a backtrace. ``function`` and ``offset`` (for example ``0x2b``) are as printed.

    A frame without a name has only an ``address``. ``before``: the return address is the first byte of ``function``, so
    the caller is the function that ends there. Its last instruction was a call such as ``panic()``. ``exact``: the address is that
    of the faulting instruction (the frame of a trap) rather than a return address.
    """

    function: str
    offset: str = ""
    address: str = ""
    before: bool = False
    exact: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        return f"before {self.function}" if self.before else base(self.function) or self.address


class Symbols(Protocol):
    """The functions of a kernel file."""

    def at(self, address: int) -> tuple[str, int] | None:
        """The function that contains ``address``, and its start; None if there is none."""

    def address(self, name: str) -> int | None:
        """The start of the function ``name``; None if there is none."""


# Each optional, maybe after the stamp of a collector:
# [   12.3] [T7] [   12.3][  T123] <4>[   12.3]
_STAMP = r"(?:<\d{1,2}>)?(?:\[ *\d+\.\d+\][ \t]?){0,2}(?:\[ *[A-Z]?\d+(?:@\w+)?\][ \t]?)?"
_ITEM = re.compile(
    "|".join(
        (
            # vpanic() at vpanic+0x151/frame 0xfffffe0045071d60     i386: vpanic(c02edb88,c0302064) at vpanic+0x151/frame 0xc0302044
            # xyz_next() at xyz_next/frame 0xfffffe0045071d60       arm64: vpanic() at vpanic+0x151
            # ??() at 0xffffffff80311111/frame 0xffffffff81400000
            r"^[ \t]*(?P<ddb>(?P<called>[\w.$?]+)\([^()\n]*\) at (?:(?P<ddb_at>[A-Za-z_.$][\w.$]*)\+(?P<ddb_off>0x[0-9a-f]+|0)"
            r"|(?P<ddb_raw>0x[0-9a-f]+)|(?P=called))(?:/frame 0x[0-9a-f]+)?)[ \t]*$",
            # Without DDB:  #1 0xffffffff804a4861 at vpanic+0x151
            r"^[ \t]*(?P<kdb>#\d+ (?P<kdb_raw>0x[0-9a-f]+) at (?P<kdb_at>[\w.$?]+)\+(?P<kdb_off>0x[0-9a-f]+|0))[ \t]*$",
            # --- trap 0xc, rip = 0xffffffff80b1f0a4, rsp = 0xfffffe0045070fd8, rbp = 0xfffffe0045071040 ---
            r"^[ \t]*(?P<trap>--- (?:trap|interrupt))\b",
            # [   12.3] RIP: 0010:xyz_poll+0x1a/0x90 [xyz]     4.9 and older: RIP: 0010:[<ffffffff81aabbcc>]  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90
            # Xen PV: RIP: e030:xyz_poll+0x1a/0x90             i386: EIP: xyz_poll+0x1a/0x90     arm64: pc : xyz_poll+0x1a/0x90
            rf"^{_STAMP}[ \t]*(?P<rip>(?:RIP|EIP|IP|pc|PC)[ \t]*(?:(?::|is at)[ \t]*)?(?:(?:0010|e030|0060|e019|0061):[ \t]*)?(?:\[<[0-9a-f]+>\][ \t]*)*"
            r"(?:(?P<rip_at>[A-Za-z_.$][\w.$]*)\+(?P<rip_off>0x[0-9a-f]+)|(?P<rip_raw>0x[0-9a-f]{8,16})\b))",
            # [   12.3]  xyz_poll+0x1a/0x90 [xyz]      4.10 and older: [   12.3]  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90
            # With the module's build ID, and arm64's reliability mark: xyz_poll+0x1a/0x90 [xyz 0123abcd] (P)
            # Up to 4.8 the first frame of a stack has the stack's name:  <IRQ>  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90
            rf"^{_STAMP}[ \t]*(?:<+/?[A-Z#][\w#]*>+[ \t]*)*(?P<linux>(?:\[<[0-9a-f]+>\] )?(?P<linux_at>[A-Za-z_.$][\w.$]*)\+(?P<linux_off>0x[0-9a-f]+)/0x[0-9a-f]+"
            r"(?: \[[\w-]+(?: [0-9a-f]+)?\])?(?: \([A-Z]+\))?)[ \t]*$",
            # [   12.3]  0xffffffffc0311111
            rf"^{_STAMP}[ \t]+(?P<bare>(?:\[<[0-9a-f]+>\] )?(?P<bare_raw>0x[0-9a-f]{{8,16}}))[ \t]*$",
            rf"^{_STAMP}[ \t]*(?P<call>Call [Tt]race:)",
            # The end of a trace: the next trace, the debugger, or the lines after a report.
            rf"^{_STAMP}[ \t]*(?P<end>KDB: (?:stack backtrace|enter)|Tracing (?:pid|command)|Stopped at|Uptime: |Dumping \d|db> |---\[ end )",
        )
    ),
    re.MULTILINE,
)
# Stopped at      xyz_drain+0x10: movq    $0,0x1234(%rip)      Stopped at      xyz_drain:      pushq   %rbp
_STOPPED = re.compile(
    r"^[ \t]*Stopped at[ \t]+(?:(?P<at>[A-Za-z_.$][\w.$]*)(?:\+(?P<off>0x[0-9a-f]+))?|(?P<raw>0x[0-9a-f]+))[ \t]*:", re.MULTILINE
)
# instruction pointer     = 0x20:0xffffffff80b1f0a4         Fatal double fault: rip 0xffffffff80b1f0a4 rsp 0xfffffe0045070fd8
_POINTER = re.compile(r"^[ \t]*(?:instruction pointer[ \t]*= 0x[0-9a-f]+:|[re]ip[ \t]*=?[ \t]*)(0x[0-9a-f]+)", re.MULTILINE)


def frames(text: str, machinery: Machinery) -> tuple[Frame, ...]:
    """The first backtrace in ``text`` that has a faulting function, else the first one. The innermost frame comes first.

    If there is no backtrace, one frame with the address at which the debugger or the trap stopped the kernel, if known.
    """
    found = _traces(text[:_SPAN], machinery)
    with_function = next((trace for trace in found if faulting_function(trace, machinery)), found[0] if found else ())
    return with_function or _stopped(text[:_SPAN])


def faulting_function(trace: tuple[Frame, ...], machinery: Machinery) -> str:
    """The innermost frame that is not machinery, or ``""``.

    A frame with an unknown function counts (``before xyz_next``, an address); its caller must not be blamed instead. A frame
    without a name does not count if no frame has a name, or if machinery follows: then it is machinery, too.
    """
    for number, frame in enumerate(trace):
        if frame.before:
            return frame.name
        if frame.function:
            if frame.function not in machinery:
                return frame.name
        elif _calls_machinery(trace, number, machinery):
            return frame.address
    return ""


def _calls_machinery(trace: tuple[Frame, ...], number: int, machinery: Machinery) -> bool:
    """Whether a frame without a name is the caller of the machinery rather than a part of it."""
    later = [frame.function for frame in trace[number + 1 :] if frame.function]
    if any(frame.function for frame in trace[:number]):
        return True
    return bool(later) and not any(function in machinery for function in later)


def named(trace: tuple[Frame, ...], symbols: Symbols) -> tuple[Frame, ...]:
    """``trace`` with names for frames that lack one, and the real caller if a return address is the start of a function."""
    return tuple(_named(frame, symbols) for frame in trace)


def unnamed(trace: tuple[Frame, ...]) -> bool:
    """Whether :func:`named` may change ``trace``."""
    return any(frame.before or not frame.function for frame in trace)


def _named(frame: Frame, symbols: Symbols) -> Frame:
    if not frame.before and frame.function:
        return frame
    place = int(frame.address, 16) if frame.address else symbols.address(frame.function)
    hit = symbols.at(place - (not frame.exact)) if place else None
    if place is None or hit is None:
        return frame
    return Frame(hit[0], hex(place - hit[1]))


def _traces(text: str, machinery: Machinery) -> list[tuple[Frame, ...]]:
    traces: list[tuple[Frame, ...]] = []
    trace: list[Frame] = []
    exact = called = False
    last = ""

    def ended() -> None:
        nonlocal exact, called
        if trace:
            traces.append(tuple(trace))
            trace.clear()
        exact = called = False

    for item in _ITEM.finditer(text):
        kind = item.lastgroup or ""
        if kind == "trap":
            exact = True
        elif kind == "end" or (kind == "call" and called) or (kind == "rip" and faulting_function(tuple(trace), machinery)):
            ended()
            called = kind == "call"
        elif kind == "call":
            called = True
        if kind not in _FORMS:
            continue
        # A console on two devices shows each line twice. The frames of a recursion have different addresses.
        if item[0] == last and kind in ("ddb", "kdb"):
            continue
        last = item[0]
        frame = _frame(item, kind, exact)
        # On arm64 the innermost frame has no return address but the start of its function: db_trace_self() at db_trace_self
        if frame.before and not trace and frame.function in machinery:
            frame = Frame(frame.function, "0x0")
        trace.append(frame)
        exact = False
    ended()
    return traces


_FORMS = ("ddb", "kdb", "rip", "linux", "bare")


def _frame(item: re.Match[str], kind: str, exact: bool) -> Frame:
    if kind == "bare":
        return Frame("", address=item["bare_raw"])
    function, offset = item[f"{kind}_at"] or "", item[f"{kind}_off"] or ""
    raw = "" if kind == "linux" else item[f"{kind}_raw"] or ""
    if kind == "rip":
        return Frame(function, offset, raw, exact=True)
    if kind == "ddb" and not function and not raw:
        # DDB prints no offset if it is 0 (sys/ddb/db_sym.c, db_printsym()).
        function = item["called"]
    if kind in ("ddb", "kdb"):
        if not function or function.startswith("?"):
            return Frame("", address=raw, exact=exact)
        if offset in ("", "0", "0x0"):
            return Frame(function, "0x0") if exact else Frame(function, address=raw, before=True)
    return Frame(function, offset, exact=exact)


def _stopped(text: str) -> tuple[Frame, ...]:
    place = _STOPPED.search(text)
    if place and place["at"]:
        return (Frame(place["at"], place["off"] or "0x0"),)
    address = place["raw"] if place else (_POINTER.search(text) or ("", ""))[1]
    return (Frame("", address=address, exact=True),) if address else ()
