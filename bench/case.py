# SPDX-License-Identifier: BSD-2-Clause
"""The cost of a case that does nothing: restore a booted guest, get a shell, check for leaks, write the result.

    python bench/case.py [--type pv]

The harness itself may take 0.5 s of a case. Time that it waits for the guest or its host does not count.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import scratch_suite

COUNT = 12
SUITE = f"""
import time
import pytest

@pytest.mark.parametrize("n", range({COUNT}))
def test_guest(guest, n):
    note(["guest", time.monotonic(), time.process_time()])

@pytest.mark.parametrize("n", range({COUNT}))
def test_host(host, n):
    note(["host", time.monotonic(), time.process_time()])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="pv")
    chosen = parser.parse_args()
    rows, failure = scratch_suite.run(SUITE, ["--fxh-guest", "control", "--fxh-type", chosen.type])
    if failure:
        print(failure)
        return 1
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
