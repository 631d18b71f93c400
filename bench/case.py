# SPDX-License-Identifier: BSD-2-Clause
"""The cost of a case that does nothing: restore a booted guest, get a shell, check for leaks, write the result.

    python bench/case.py [--type pv]

The harness itself may take 0.5 s of a case. Time that it waits for the guest or its host does not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parent.parent
COUNT = 12
SUITE = f"""
import json, os, time
import pytest

def note(what):
    with open(os.environ["FXH_BENCH_NOTES"], "a") as file:
        file.write(json.dumps([what, time.monotonic(), time.process_time()]) + "\\n")

@pytest.mark.parametrize("n", range({COUNT}))
def test_guest(guest, n):
    note("guest")

@pytest.mark.parametrize("n", range({COUNT}))
def test_host(host, n):
    note("host")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="pv")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        suite, notes = Path(scratch) / "suites/empty/test_empty.py", Path(scratch) / "notes"
        suite.parent.mkdir(parents=True)
        suite.write_text(SUITE)
        (Path(scratch) / "conftest.py").write_text((PROJECT / "conftest.py").read_text())
        argv = [
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "--guest",
            "control",
            "--type",
            chosen.type,
            "--reports",
            f"{scratch}/r",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *argv, "--rootdir", scratch, str(suite)],
            env={**os.environ, "FXH_BENCH_NOTES": str(notes)}, cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-1000:])
            return 1
        rows = [json.loads(line) for line in notes.read_text().splitlines()]
    for what in ("guest", "host"):
        times = [(wall, cpu) for name, wall, cpu in rows if name == what]
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(times[1:])]
        wall, own = (statistics.median(step[n] for step in steps) for n in (0, 1))
        print(
            f"an empty case with a {what}: {wall:.2f} s from one to the next, of which the harness computes {own:.2f} s   bound 0.5 s"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
