# SPDX-License-Identifier: BSD-2-Clause
"""Compare this checkout's HEAD with another revision on the control guest, in fresh clones with empty stores. By hand:

    python bench/against.py --against c9e930c [--whole] [--times 2]

The two revisions run in turn. Each run gives these rows; the last five only with --whole:

first verdict   seconds from `make run` to the line of the first case that ran; at most 180 s
silence         seconds without a line of output until then; at most 10 s (not for the other revision)
end             seconds from `make run` to its end
again           seconds of a second run with --workers labs and everything in the store
store           MiB on the disk after the second run
memory          MiB at the peak of the second run: the proportional set sizes of all its processes
make test       seconds of `make test` after that

`make run` and `make test` use as many labs as their revision chooses. Without --whole each run is interrupted after its first
verdict. Packages of Debian that are installed already stay installed. Exit code 1 when a bound is missed, 4 when a run of this
revision failed. Failed cases of the other revision do not change its rows, but a run that did not reach its end gives no row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FIRST_SECONDS, SILENCE = 180.0, 10.0
# The largest allowed ratio to the other revision's value.
BOUNDS = {"first verdict": 0.2, "end": 0.5, "again": 0.6, "store": 0.3, "memory": 0.6, "make test": 0.6}
MIB = 1 << 20
# [1/120] passed            4.6 s  boot/test_boot.py::test_boots_to_login[control-pv-xen-4.20]
_VERDICT = re.compile(rb"^(?:\r\x1b\[K)?\[\d+/\d+\] (?:passed|FAILED)", re.MULTILINE)
# 5023 passed, 25 skipped in 491.00s (0:08:11)
_SUMMARY = re.compile(r"\d+ passed")
# fxh and make print a few lines after the summary. An earlier summary belongs to the suites in `make test`.
_LAST_LINES = 8


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    seconds: float
    status: int
    output: str

    @property
    def summary(self) -> str:
        """pytest's summary, which is one of the last lines; "" if there is none."""
        return next((line for line in reversed(self.output.splitlines()[-_LAST_LINES:]) if _SUMMARY.search(line)), "")

    @property
    def ended(self) -> bool:
        """Whether it ran everything. Cases or tests may have failed."""
        return self.status == 0 or bool(self.summary)


@dataclass(frozen=True)
class FirstRun:
    """A run from an empty store: seconds from the command."""

    first: float
    silence: float
    silent_after: str
    """The last line before the longest silence."""
    done: Done


def measure(revision: str, whole: bool, workers: int) -> tuple[dict[str, float], list[str]]:
    """Returns the rows of the parts that succeeded, and what failed. Raises SystemExit when the first run ends without a verdict."""
    with tempfile.TemporaryDirectory(prefix="fxh-bench-") as scratch:
        clone, store = Path(scratch) / "clone", Path(scratch) / "store"
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(PROJECT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", revision], cwd=clone, check=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("FXH_", "MAKE", "MFLAGS"))}
        # The control guest alone: a release of FreeBSD would be fetched.
        environment |= {"FXH_STORE": str(store), "FXH_MIRROR": str(store / "none")}
        run = _first_run(clone, environment, whole)
        rows = {"first verdict": run.first, "silence": run.silence}
        print(
            f"{revision}: first verdict after {run.first:.1f} s; silent for {run.silence:.0f} s after {run.silent_after!r}",
            flush=True,
        )
        failed: list[str] = []

        def note(what: str, done: Done, more: dict[str, float]) -> None:
            print(f"{revision}: {what}: exit {done.status}, {_outcomes(clone)}, {more}\n{done.summary}", flush=True)
            if done.status:
                failed.append(what)
            if done.ended:
                rows.update(more)

        if whole:
            note("make run", run.done, {"end": run.done.seconds})
            with Memory(store) as memory:
                again = _timed([".venv/bin/fxh", "run", "-n", str(workers)], clone, environment)
            note("second run", again, {"again": again.seconds, "store": _size(store) / MIB, "memory": memory.peak / MIB})
            tests = _timed(["make", "test"], clone, environment)
            note("make test", tests, {"make test": tests.seconds})
        return rows, failed


def _size(directory: Path) -> int:
    """Bytes of all files on the disk. Names of one file count once."""
    found: dict[tuple[int, int], int] = {}
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _first_run(clone: Path, environment: dict[str, str], whole: bool) -> FirstRun:
    begun = time.monotonic()
    process = subprocess.Popen(
        ["make", "run"], cwd=clone, env=environment,
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
    if not first:
        print(text.decode(errors="replace")[-3000:], file=sys.stderr)
        raise SystemExit(4)
    return FirstRun(first, silence, silent_after, Done(time.monotonic() - begun, status, text.decode(errors="replace")))


def _timed(argv: list[str], clone: Path, environment: dict[str, str]) -> Done:
    """Run a command. A failure prints the end of the output."""
    begun = time.monotonic()
    done = subprocess.run(
        argv, cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    seconds = time.monotonic() - begun
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
    return Done(seconds, done.returncode, done.stdout)


def _outcomes(clone: Path) -> str:
    """How many cases of the latest run had which outcome."""
    counts = Counter(json.loads(path.read_text())["outcome"] for path in clone.glob("reports/latest/cases/*/case.json"))
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


class Memory:
    """The peak of the memory of all processes that use a store, in bytes, while the context is open. Source: proc_pid_smaps(5)."""

    INTERVAL = 2.0

    def __init__(self, store: Path) -> None:
        self._mark = f"FXH_STORE={store}\0".encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, sum(self._size(process) for process in Path("/proc").glob("[0-9]*")))
            if self._over.wait(self.INTERVAL):
                return

    def _size(self, process: Path) -> int:
        try:
            if self._mark not in (process / "environ").read_bytes():
                return 0
            found = re.search(r"^Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
        except OSError:  # The process has ended.
            return 0
        return int(found[1]) * 1024 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="labs of the second run (default: one for each CPU)")
    given = parser.parse_args()
    names = {"this": "HEAD", "other": given.against}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in names}
    failures: list[str] = []
    for _ in range(given.times):
        for side in reversed(names):
            print(f"{names[side]}: begins, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
            rows, failed = measure(names[side], given.whole, given.workers)
            runs[side].append(rows)
            failures += failed if side == "this" else []
    return 4 if failures else _table(runs["this"], runs["other"])


def _table(this: list[dict[str, float]], other: list[dict[str, float]]) -> int:
    """Print medians, ratios, bounds and spreads. Returns 1 if a bound is missed."""
    missed = False
    for row, bound in BOUNDS.items():
        mine, theirs = ([rows[row] for rows in runs if row in rows] for runs in (this, other))
        if not mine or not theirs:
            print(f"{row:<14} not measured")
            continue
        ratio = statistics.median(mine) / statistics.median(theirs)
        spread = f"{min(mine):.1f} to {max(mine):.1f}, {min(theirs):.1f} to {max(theirs):.1f}"
        print(
            f"{row:<14} {statistics.median(mine):8.1f} {statistics.median(theirs):8.1f}   ratio {ratio:.2f}   bound {bound}   ({spread})"
        )
        missed |= ratio > bound or (row == "first verdict" and max(mine) > FIRST_SECONDS)
    silence = max(rows["silence"] for rows in this)
    print(f"{'silence':<14} {silence:8.1f}            bound {SILENCE}")
    return 1 if missed or silence > SILENCE else 0


if __name__ == "__main__":
    sys.exit(main())
