# SPDX-License-Identifier: BSD-2-Clause
"""The times from a guest's start to each stage of its boot, and its exits to Xen, for several images in turn.

    python bench/boot.py [--type hvm] [--unspared] [--count 3] [IMAGE ...]

Without an image it boots the control guest. ``--unspared`` also boots each guest without the remedies of docs/lab.md (The cost of
a boot under emulation). The last column is the ratio to the first row. xentrace, if dom0 has it, counts the exits in a separate boot.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import scratch_suite

SUITE = """
import pytest

@pytest.mark.parametrize("spared", {spared})
def test_boot(new_guest, spared):
    guest = new_guest(spared=spared).boot()
    note([spared, {{stage.name: stage.at - guest.unpaused for stage in guest.console.stages}}])

@pytest.mark.parametrize("spared", {spared})
def test_exits(new_guest, spared):
    guest = new_guest(spared=spared).create()
    run = guest.host.transport.run
    run(["sh", "-c", "xentrace -D -S 8192 -e 0x00081000 /run/exits > /dev/null 2>&1 & echo $! > /run/exits.pid"])
    guest.start().wait_stage("login")
    run(["sh", "-c", "kill -INT $(cat /run/exits.pid); sleep 2"])
    note([spared, run(["base64", "/run/exits"]).text])
"""
# xen/include/public/trace.h: a record has a head of 32 bits (event, count of further words, flag of a time stamp), 64 bits of time and
# the further words. The first one of TRC_HVM_VMEXIT is the code of the exit.
VMEXIT = (0x81003, 0x81103)
# AMD64 Architecture Programmer's Manual, volume 2, appendix C. QEMU emulates AMD's SVM.
CODES = {0x00: "CR0 read", 0x10: "CR0 write", 0x60: "interrupt", 0x6E: "RDTSC", 0x72: "CPUID", 0x78: "HLT", 0x7B: "I/O port", 0x7C: "MSR", 0x81: "hypercall", 0x400: "page fault"}  # fmt: skip


def exits(data: bytes) -> dict[str, int]:
    """The exits of a trace by their reason, most frequent first."""
    found: dict[str, int] = {}
    at = 0
    while at + 4 <= len(data):
        head = int.from_bytes(data[at : at + 4], "little")
        at += 12 if head >> 31 else 4
        if head & 0x0FFFFFFF in VMEXIT:
            code = int.from_bytes(data[at : at + 4], "little")
            name = CODES.get(code, hex(code))
            found[name] = found.get(name, 0) + 1
        at += 4 * (head >> 28 & 7)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def run(image: str, chosen: argparse.Namespace, function: str) -> Iterator[tuple[tuple[str, bool], Any]]:
    """Run one function of the suite; return what it notes of each guest, an image and whether it is spared."""
    guest = ["--fxh-image", image, "--fxh-guest", "freebsd"] if image else ["--fxh-guest", "control"]
    text = SUITE.format(spared=[True, False] if chosen.unspared else [True])
    noted, failure = scratch_suite.run(text, ["--fxh-type", chosen.type, *guest], function)
    if failure:
        print(failure, file=sys.stderr)
    for spared, value in noted:
        yield (image, spared), value


def row(name: str, stages: list[dict[str, float]], first: float) -> tuple[str, float]:
    """The medians of the boots of one guest as a line, and that of the last stage. ``first`` is that of the first guest."""
    middle = {stage: statistics.median(boot[stage] for boot in stages if stage in boot) for stage in stages[0]}
    ends = [list(boot.values())[-1] for boot in stages]
    last = list(middle.values())[-1]
    shown = ", ".join(f"{stage} {at:.1f}" for stage, at in middle.items())
    return f"{name}: {shown} s ({min(ends):.1f} to {max(ends):.1f}); ratio {last / (first or last):.2f}", last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", default=[""])
    parser.add_argument("--type", default="pvh")
    parser.add_argument("--unspared", action="store_true")
    parser.add_argument("--count", type=int, default=3)
    chosen = parser.parse_args()
    times: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(chosen.count):
        for image in chosen.images:
            for guest, stages in run(image, chosen, "test_boot"):
                times.setdefault(guest, []).append(stages)
    counted = {
        guest: exits(base64.b64decode(trace)) for image in chosen.images for guest, trace in run(image, chosen, "test_exits")
    }
    first = 0.0
    for guest, boots in times.items():
        image, spared = guest
        line, last = row(f"{image or 'control'} {chosen.type}{'' if spared else ' unspared'}", boots, first)
        first = first or last
        print(line)
        found = counted.get(guest, {})
        reasons = ", ".join(f"{count} {reason}" for reason, count in list(found.items())[:6])
        print(f"    exits to Xen: {sum(found.values())}: {reasons}" if found else "    exits to Xen: not counted")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
