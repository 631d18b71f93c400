# SPDX-License-Identifier: BSD-2-Clause
"""Parses Xen's own call traces: of its panics, of WARN and BUG, and of debug key d, which dumps the state of each CPU.

Sources: Xen xen/arch/x86/traps.c (show_registers(), show_trace(), fatal_trap()), xen/common/keyhandler.c, xen/drivers/char/console.c
(panic()).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from harness.console.backtrace import Frame
from harness.console.text import XEN_STAMP

# (XEN) [   54.859377] Xen call trace:     (XEN) [2026-12-01 04:50:00.123] Xen call trace:     (d1) (XEN) is a shim's, on its guest's console
_STAMP = re.compile(rf"^\(XEN\) +(?:{XEN_STAMP} )?")
# *** Dumping CPU1 host state: ***
_DUMPED = re.compile(r"\*\*\* Dumping CPU(\d+) host state")
# CPU:    0
_CPU = re.compile(r"CPU: +(\d+)\s*$")
# Xen BUG at common/sched/core.c:123     Xen WARN at arch/x86/mm.c:45
_BUG = re.compile(r"Xen (?:BUG|WARN) at \S+")
# Panic on CPU 0:
_PANIC = re.compile(r"Panic on CPU (\d+):")
#    [<ffff82d040318b72>] S arch/x86/mm.c#mod_l1_entry.isra.0+0x1a2/0x510
#    [<ffff82d04024ff60>] R dump_runq+0/0x40                                   up to Xen 4.8 without a letter
#    [<000000000005f5b2>] S 000000000005f5b2
# R: the value of the register; S: a word of the stack; F: a frame of a build with frame pointers.
_FRAME = re.compile(
    r" *\[<(?P<address>[0-9a-f]{16})>\](?: (?P<kind>[RSF]))?(?: (?:(?P<file>[\w./-]+)#)?(?P<name>[A-Za-z_.$][\w.$]*)\+(?P<offset>0x[0-9a-f]+|0)/)?"
)
# Lines of Xen's console from "Panic on CPU" to its end: reason, frame, "Reboot in five seconds...".
_AFTER_PANIC = 8


@dataclass(frozen=True)
class XenTrace:
    """A call trace of Xen. ``why`` is its panic message, or another reason for the trace; "" if unknown."""

    cpu: int
    frames: tuple[Frame, ...]
    why: str = ""
    panic: bool = False

    @property
    def title(self) -> str:
        return f"CPU {self.cpu}" + (f": {self.why}" if self.why else "")


def traces(text: str) -> tuple[XenTrace, ...]:
    """The call traces in Xen's log or on its serial console, in their order."""
    found: list[XenTrace] = []
    cpu, why = 0, ""
    inside = reason = False
    for row in text.splitlines():
        stamp = _STAMP.match(row)
        if stamp is None:
            continue
        line = row[stamp.end() :]
        if inside and (frame := _FRAME.match(line)):
            found[-1] = replace(found[-1], frames=(*found[-1].frames, _frame(frame)))
            continue
        # An emulated serial port repeats or drops characters under load: one bad frame does not end the trace.
        inside = inside and "[<" in line
        if line.startswith("Xen call trace:"):
            found.append(XenTrace(cpu, (), why))
            inside, why = True, ""
        elif match := _DUMPED.match(line):
            cpu, why = int(match[1]), "its state, by debug key d"
        elif match := _CPU.match(line):
            cpu = int(match[1])
        elif match := _BUG.match(line):
            why = match[0]
        elif match := _PANIC.match(line):
            reason = True
        elif reason and line.strip():
            reason = False
            if found and not found[-1].panic:
                found[-1] = replace(found[-1], why=": ".join(filter(None, (found[-1].why, line.strip()))), panic=True)
    return tuple(trace for trace in found if trace.frames)


def panic(text: str) -> str:
    """What Xen's panic at the end of ``text`` says, and where: ``FATAL TRAP: vector = 6 (invalid opcode) in dump_runq()``.

    Returns "" if there is none, or if Xen restarted after it.
    """
    last = next(reversed(traces(text)), None)
    lines = text.rstrip().splitlines()
    if last is None or not last.panic or not any(_PANIC.search(line) for line in lines[-_AFTER_PANIC:]):
        return ""
    function = last.frames[0].function
    return f"{last.why} in {function}()" if function else last.why


def _frame(match: re.Match[str]) -> Frame:
    offset = match["offset"] or ""
    return Frame(match["name"] or "", "0x0" if offset == "0" else offset, f"0x{match['address']}", exact=match["kind"] == "R")
