# SPDX-License-Identifier: BSD-2-Clause
"""Compare several labs with one: the same cases with -n 1, -n 2 and -n 4, whole runs. By hand: python bench/throughput.py

The bound is 1.8 times as many cases a minute with two labs on two cores. A first run makes the checkpoints and is not counted.
The exit code is 1 if the bound is missed, 4 if a run was not green.

--keyword K   the cases, as pytest's -k (some twenty)
--suites S    the suites, comma-separated
--labs L      the numbers of labs, comma-separated (1,2,4)
--times N     rounds of runs; the medians are compared (1)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

FXH = [sys.executable, "-m", "harness.cli"]
BOUND = 1.8


def run(given: argparse.Namespace, workers: int, reports: Path) -> tuple[float, Counter[str]]:
    """Seconds from command line to exit, and how many cases had which outcome. Raises SystemExit for a run that is not green."""
    argv = [
        *FXH,
        "run",
        *given.suites.split(","),
        "-k",
        given.keyword,
        "--type",
        "pv",
        "-n",
        str(workers),
        "--reports",
        str(reports),
    ]
    begun = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    seconds = time.monotonic() - begun
    cases = [json.loads(path.read_text())["outcome"] for path in (reports / "latest").glob("cases/*/case.json")]
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:], file=sys.stderr)
        raise SystemExit(4)
    return seconds, Counter(cases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", default="boot,root_mount,reboot")
    parser.add_argument("--keyword", default="test_root_on or test_action or test_plain_reboot or test_every_vdev")
    parser.add_argument("--labs", default="1,2,4")
    parser.add_argument("--times", type=int, default=1)
    given = parser.parse_args()
    took: dict[int, list[float]] = {int(labs): [] for labs in given.labs.split(",")}
    with tempfile.TemporaryDirectory(prefix="fxh-throughput-") as directory:
        first, outcomes = run(given, 2, Path(directory))
        print(
            f"before, not counted: {first:.1f} s, {dict(outcomes)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            flush=True,
        )
        for _ in range(given.times):
            for workers, runs in took.items():
                seconds, outcomes = run(given, workers, Path(directory))
                runs.append(seconds)
                cases = sum(outcomes.values())
                print(
                    f"-n {workers}: {cases} cases in {seconds:.1f} s, {60 * cases / seconds:.1f} a minute; {dict(outcomes)}",
                    flush=True,
                )
    least, *others = took
    base, missed = statistics.median(took[least]), False
    for labs in others:
        ratio = base / statistics.median(took[labs])
        bounded = (least, labs) == (1, 2)
        missed |= bounded and ratio < BOUND
        print(f"{labs} labs have {ratio:.2f} times the throughput of {least}" + (f"   bound {BOUND}" if bounded else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
