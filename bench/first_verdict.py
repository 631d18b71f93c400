# SPDX-License-Identifier: BSD-2-Clause
"""`make run` in a fresh clone with an empty store, of this checkout's HEAD and of another revision in turn. By hand:

    python bench/first_verdict.py --against c9e930c [--whole] [--times 2]

first verdict   from the command to the line of the first case that ran; at most 0.2 times the other's, and 180 s
end             with --whole: to the end of the control guest's matrix; at most 0.5 times the other's
silence         the longest time without a line of output; at most 10 s (not for the other revision)

Without --whole each run is interrupted after its first verdict. CPU seconds are those of all processes that ended. Packages of
Debian that are installed already stay installed. Exit code 1 when a bound is missed, 4 when a run failed.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FIRST_BOUND, FIRST_SECONDS, END_BOUND, SILENCE = 0.2, 180.0, 0.5, 10.0
# [1/120] passed            4.6 s  boot/test_boot.py::test_boots_to_login[control-pv-xen-4.20]
_VERDICT = re.compile(rb"^(?:\r\x1b\[K)?\[\d+/\d+\] (?:passed|FAILED)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """Seconds from the command: to the first verdict, to the end. ``cpu`` are seconds of user and system time until the end."""

    first: float
    end: float
    cpu: float
    silence: float
    silent_after: str
    """The last line before the longest silence."""


def measure(revision: str, whole: bool, workers: int) -> Run:
    """Raises SystemExit when the run ends without a verdict, or fails."""
    with tempfile.TemporaryDirectory(prefix="fxh-bench-") as scratch:
        clone, store = Path(scratch) / "clone", Path(scratch) / "store"
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(PROJECT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", revision], cwd=clone, check=True)
        return _timed_run(clone, store, whole, workers)


def _timed_run(clone: Path, store: Path, whole: bool, workers: int) -> Run:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FXH_", "MAKE", "MFLAGS"))}
    before = os.times()
    begun = time.monotonic()
    # The control guest alone: a release of FreeBSD would be fetched.
    process = subprocess.Popen(
        ["make", "run", f"WORKERS={workers}"], cwd=clone, env={**environment, "FXH_STORE": str(store), "FXH_MIRROR": str(store / "none")},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    text, first, last, silence, silent_after = b"", 0.0, begun, 0.0, ""
    try:
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 1.0)
            if not ready:
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            now = time.monotonic()
            if now - last > silence and not first:
                silence, silent_after = now - last, text.decode(errors="replace").strip().rpartition("\n")[2][-100:]
            last = now
            text += data
            if not first and _VERDICT.search(text):
                first = now - begun
                if not whole:
                    break
            if not data:
                break
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        with process.stdout:
            while os.read(process.stdout.fileno(), 1 << 16):
                pass
        status = process.wait()
    if not first or (whole and status):
        print(text.decode(errors="replace")[-3000:], file=sys.stderr)
        raise SystemExit(4)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(first, time.monotonic() - begun, cpu, silence, silent_after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    names = {"this": "HEAD", "other": given.against}
    runs: dict[str, list[Run]] = {side: [] for side in names}
    for _ in range(given.times):
        for side in reversed(names):
            run = measure(names[side], given.whole, given.workers)
            runs[side].append(run)
            print(
                f"{names[side]:<10} first verdict {run.first:6.1f} s, {'end' if given.whole else 'interrupted'} {run.end:7.1f} s, "
                f"{run.cpu:7.1f} CPU seconds, silent for {run.silence:.0f} s at most, after: {run.silent_after!r}; "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    missed = False

    def row(what: str, this: list[float], other: list[float], bound: float, most: float) -> bool:
        mine, theirs = statistics.median(this), statistics.median(other)
        ratio = mine / theirs
        spread = f"{min(this):.1f} to {max(this):.1f}, {min(other):.1f} to {max(other):.1f}"
        print(f"{what:<14} {mine:8.1f} s {theirs:8.1f} s   ratio {ratio:.2f}   bound {bound}   ({spread})")
        return ratio > bound or mine > most

    missed |= row("first verdict", [r.first for r in runs["this"]], [r.first for r in runs["other"]], FIRST_BOUND, FIRST_SECONDS)
    if given.whole:
        missed |= row("end", [r.end for r in runs["this"]], [r.end for r in runs["other"]], END_BOUND, float("inf"))
    silence = max(r.silence for r in runs["this"])
    print(f"{'silence':<14} {silence:8.1f} s   bound {SILENCE}")
    return 1 if missed or silence > SILENCE else 0


if __name__ == "__main__":
    sys.exit(main())
