# SPDX-License-Identifier: BSD-2-Clause
"""Read the CPUs' state from the text of QEMU's monitor command ``info registers -a``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# RAX=0000000000000000 RBX=ffff830071b8a000 ...   RIP=ffff82d040216247 RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=0
_CPU = re.compile(r"RIP=([0-9a-f]{16}) .*?HLT=(\d).*?CR0=([0-9a-f]{8})", re.DOTALL)
# CR0.PG
_PAGING = 0x80000000
# IDT=     ffff82d04057f000 00000fff
_IDT = re.compile(r"IDT=\s*([0-9a-f]{16})")


@dataclass(frozen=True)
class CpuState:
    """``busy``: a CPU makes progress, so the machine may answer later. ``text`` says where each CPU is."""

    busy: bool
    text: str

    def __str__(self) -> str:
        return self.text


def cpu_state(samples: Sequence[str]) -> CpuState:
    """Compare a few samples of the registers. Xen's code begins at 0xffff82d040000000.

    A CPU whose registers do not change spins. A hypervisor without paging (QEMU's defect, docs/lab.md) executes garbage.
    """
    last = _CPU.findall(samples[-1])
    if not last:
        return CpuState(False, "QEMU shows no registers")
    words = []
    for n, (rip, halted, cr0) in enumerate(last):
        place = "in Xen" if rip.startswith("ffff82d0") else "not in Xen"
        mode = "halted" if halted == "1" else "running" if int(cr0, 16) & _PAGING else "lost: paging is off"
        words.append(f"CPU {n} at {rip} ({place}, {mode})")
    lost = any(not int(cr0, 16) & _PAGING for _, _, cr0 in last)
    all_halted = all(halted == "1" for _, halted, _ in last)
    return CpuState(not lost and not all_halted and len(set(samples)) > 1, "; ".join(words))


def in_guest_mode(registers: str) -> bool:
    """Whether a CPU runs a PVH or HVM guest: its interrupt table is not Xen's, at 0xffff82... or 0xffff83..."""
    return any(not base.startswith(("ffff82", "ffff83")) for base in _IDT.findall(registers))
