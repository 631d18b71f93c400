# SPDX-License-Identifier: BSD-2-Clause
"""The times from a guest's start to each stage of its boot, and its exits to Xen, for several images in turn.

    python bench/boot.py [--type hvm] [--unspared] [--count 3] [IMAGE ...]

Without an image it boots the control guest. ``--unspared`` also boots each guest without the remedies of docs/lab.md (What a boot under
emulation is made of). The last column is the ratio to the first row. The exits are counted with xentrace, if dom0 has it, in a boot
of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SUITE = """
import json, os, pytest
from pathlib import Path

def note(**what):
    with open(os.environ["FXH_BENCH_NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")

@pytest.mark.parametrize("spared", json.loads(os.environ["FXH_BENCH_SPARED"]))
def test_boot(new_guest, spared):
    guest = new_guest(spared=spared).boot()
    note(spared=spared, stages={stage.name: stage.at - guest.unpaused for stage in guest.console.stages})

@pytest.mark.parametrize("spared", json.loads(os.environ["FXH_BENCH_SPARED"]))
def test_exits(new_guest, spared):
    guest = new_guest(spared=spared).create()
    run = guest.host.transport.run
    run(["sh", "-c", "xentrace -D -S 8192 -e 0x00081000 /run/exits > /dev/null 2>&1 & echo $! > /run/exits.pid"])
    guest.start().wait_stage("login")
    run(["sh", "-c", "kill -INT $(cat /run/exits.pid); sleep 2"])
    guest.host.transport.get("/run/exits", Path(os.environ["FXH_BENCH_NOTES"] + f".{spared}"))
"""
# xen/include/public/trace.h: a record has a head of 32 bits (event, count of further words, flag of a time stamp), 64 bits of time and
# the further words. The first one of TRC_HVM_VMEXIT is the code of the exit.
VMEXIT = (0x81003, 0x81103)
# AMD64 Architecture Programmer's Manual, volume 2, appendix C. QEMU emulates AMD's SVM.
CODES = {0x00: "CR0 read", 0x10: "CR0 write", 0x60: "interrupt", 0x72: "CPUID", 0x78: "HLT", 0x7B: "I/O port", 0x7C: "MSR", 0x81: "hypercall", 0x400: "page fault"}  # fmt: skip


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


def run(image: str, chosen: argparse.Namespace, function: str, notes: Path) -> list[dict[str, Any]]:
    """Run one function of the suite; return its notes."""
    with tempfile.TemporaryDirectory() as scratch:
        suite = Path(scratch) / "suites/boots/test_boots.py"
        suite.parent.mkdir(parents=True)
        suite.write_text(SUITE)
        (Path(scratch) / "conftest.py").write_text((PROJECT / "conftest.py").read_text())
        guest = ["--fxh-image", image, "--fxh-guest", "freebsd"] if image else ["--fxh-guest", "control"]
        options = ["-q", "-p", "no:cacheprovider", "--fxh-type", chosen.type, "--fxh-reports", f"{scratch}/r", "--rootdir", scratch]
        spared = json.dumps([True, False] if chosen.unspared else [True])
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *guest, f"{suite}::{function}"], cwd=scratch, capture_output=True, text=True,
            check=False, env={**os.environ, "FXH_BENCH_NOTES": str(notes), "FXH_BENCH_SPARED": spared},
        )  # fmt: skip
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-1000:], file=sys.stderr)
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


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
    first = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(chosen.count):
            for number, image in enumerate(chosen.images):
                for boot in run(image, chosen, "test_boot", Path(scratch) / f"{turn}-{number}"):
                    times.setdefault((image, boot["spared"]), []).append(boot["stages"])
        for number, image in enumerate(chosen.images):
            run(image, chosen, "test_exits", Path(scratch) / f"exits-{number}")
        for (image, spared), stages in times.items():
            name = f"{image or 'control'} {chosen.type}{'' if spared else ' unspared'}"
            line, last = row(name, stages, first)
            first = first or last
            print(line)
            trace = Path(scratch) / f"exits-{chosen.images.index(image)}.{spared}"
            counted = exits(trace.read_bytes()) if trace.exists() else {}
            reasons = ", ".join(f"{count} {reason}" for reason, count in list(counted.items())[:6])
            print(f"    exits to Xen: {sum(counted.values())}: {reasons}" if counted else "    exits to Xen: not counted")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
