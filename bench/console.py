# SPDX-License-Identifier: BSD-2-Clause
"""The console reader on a 100 MB log, compared with pexpect's own expect on the same log. Run by hand: python bench/console.py

`python bench/console.py --other TREE` compares this tree's reader and its verdict on a 1 MB tail with those of another checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect
from pexpect.spawnbase import SpawnBase

from harness.console import deaths
from harness.console.reader import ConsoleReader
from harness.guests.os.freebsd_console import CONSOLE
from harness.transport.replay import ReplayStream

SIZE = 100 << 20
CHUNK = 1 << 14
# Of the log that two trees are compared on, and of a tail that is classified.
COMPARED, TAIL = 24 << 20, 1 << 20
BOOT = (Path(__file__).parent.parent / "tests" / "consoles" / "freebsd-13.2-pvh-boot-login-panic.log").read_bytes()


def log(size: int = SIZE) -> bytes:
    """A boot, then lines as a chatty guest prints them, then the panic; at least ``size`` bytes."""
    head, panic, tail = BOOT.partition(b"panic: ")
    filler = b"".join(b"%08d the quick brown fox jumps over the lazy daemon and its ringbuffer\r\n" % n for n in range(20000))
    return head + filler * ((size - len(BOOT)) // len(filler) + 1) + panic + tail


class Fed(SpawnBase):
    """pexpect over the same chunks, all of them there at once."""

    def __init__(self, data: bytes) -> None:
        super().__init__(timeout=600, maxread=CHUNK)
        self._data, self._at = data, 0

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        if self._at >= len(self._data):
            raise pexpect.EOF("end")
        chunk = self._data[self._at : self._at + CHUNK]
        self._at += CHUNK
        return chunk


def ours(data: bytes, directory: Path) -> float:
    path = directory / f"c{time.monotonic_ns()}.log"
    reader = ConsoleReader(ReplayStream(data, sizes=(CHUNK,)), path, tables=CONSOLE)
    begun = time.monotonic()
    reader.start()
    reader.join(600)
    seconds = time.monotonic() - begun
    assert reader.death is not None
    assert reader.death.kind == "panic"
    path.unlink()
    return seconds


def theirs(data: bytes, window: int | None) -> float:
    begun = time.monotonic()
    Fed(data).expect(rb"panic: [^\r\n]+", searchwindowsize=window)
    return time.monotonic() - begun


def classified() -> dict[str, float]:
    """Seconds for the verdict on each kind of 1 MB tail, the best of seven."""
    panic = BOOT[BOOT.index(b"panic: ") :]
    lines = b"".join(b"%08d the quick brown fox jumps over the lazy daemon and its ringbuffer\r\n" % n for n in range(20000))
    linux = b"[   12.345678] xyz0: link: up, speed 1000: 0x12 [full duplex] with #4 of 8\r\n" * (TAIL // 70)
    tails = {
        "panic first": panic + lines[:TAIL],
        "panic last": lines[:TAIL] + panic,
        "a long backtrace": panic + b"xyz_deep() at xyz_deep+0x10/frame 0xfffffe0011110000\r\n" * (TAIL // 54),
        "panic, then a Linux": panic + linux[:TAIL],
    }
    best = {}
    for name, data in tails.items():
        runs = []
        for _ in range(7):
            begun = time.process_time()
            assert deaths.classify(data, CONSOLE) is not None
            runs.append(time.process_time() - begun)
        best[name] = min(runs)
    return best


def figures() -> dict[str, float]:
    """By the processor's time: other work on this machine does not count."""
    data = log(COMPARED)
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(3):
            begun = time.process_time()
            ours(data, Path(scratch))
            runs.append(time.process_time() - begun)
    return {"reader": len(data) / 1e6 / min(runs), **classified()}


def compare(tree: Path) -> None:
    """Both trees in turn, three times; printed is the median of each figure."""
    here = Path(__file__).resolve().parent.parent
    told: dict[Path, list[dict[str, float]]] = {here: [], tree.resolve(): []}
    for _ in range(3):
        for root, runs in told.items():
            done = subprocess.run(
                [sys.executable, __file__, "--figures"],
                env={**os.environ, "PYTHONPATH": str(root)},
                capture_output=True,
                check=True,
                text=True,
            )
            runs.append(json.loads(done.stdout))
    ours_now, before = ({name: statistics.median(run[name] for run in runs) for name in runs[0]} for runs in told.values())
    for name in ours_now:
        ratio = ours_now[name] / before[name]
        if name == "reader":
            print(f"reader: {ours_now[name]:.0f} MB/s, {ratio:.2f} times that of {tree}   bound 0.9")
        else:
            print(f"classify, {name}: {1000 * ours_now[name]:.1f} ms, {ratio:.2f} times that of {tree}   bound 1.2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, metavar="TREE", help="another checkout, to compare with")
    parser.add_argument("--figures", action="store_true", help="print this tree's figures for --other")
    args = parser.parse_args()
    if args.figures:
        print(json.dumps(figures()))
        return
    if args.other:
        compare(args.other)
        return
    data = log()
    megabytes = len(data) / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs = [ours(data, Path(scratch)) for _ in range(5)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    rate = megabytes / statistics.median(runs)
    print(f"reader (all stages and deaths, logged and stamped): {rate:.0f} MB/s on {megabytes:.0f} MB   bound 30 MB/s")
    print(f"    memory grown by {grown / 1024:.1f} MiB over five such logs (the replay holds its chunks)")
    windowed = [theirs(data, 4096) for _ in range(3)]
    print(f"pexpect, one pattern, searchwindowsize 4096: {megabytes / statistics.median(windowed):.0f} MB/s")
    small = data[: 4 << 20]
    small += data[-2000:]
    plain = theirs(small, None)
    print(f"pexpect, one pattern, no window, on {len(small) / 1e6:.0f} MB only: {len(small) / 1e6 / plain:.2f} MB/s")


if __name__ == "__main__":
    main()
