# SPDX-License-Identifier: BSD-2-Clause
"""The end of a run with each database: record 500 results over 200 runs, judge them, write all reports.

Exit code 1 if PostgreSQL takes more than 5 % longer than SQLite. It needs Debian's package postgresql.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from postgres_server import SETTINGS, PostgresServer
from report import CASES, CELLS, CONSOLE, RUNS, cases
from written import run, save

from harness import report as reporting
from harness.history import FILE, History

# The allowed extra time.
BOUND = 0.05


def filled(where: Path | str, runs: int) -> None:
    history = History(where)
    random = Random(5)
    for number in range(runs):
        history.record(run(number, *cases(number, random)))


def end_of_run(reports: Path, number: int) -> tuple[float, float]:
    """Seconds by the clock, and of this process's CPU."""
    done = run(number, *cases(RUNS, Random(7)), run=f"run-{number:06}")
    path = save(reports, done, {item.directory: CONSOLE for item in done.cases if item.files})
    begun, cpu = time.perf_counter(), time.process_time()
    reporting.publish(path, done)
    return time.perf_counter() - begun, time.process_time() - cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="ends of runs with each database (default: 5)")
    chosen = parser.parse_args()
    # As Debian sets it up: with fsync.
    server = PostgresServer([setting for setting in SETTINGS if not setting.startswith("fsync")])
    try:
        with tempfile.TemporaryDirectory() as directory:
            urls = {"SQLite": "", "PostgreSQL": server.new()}
            for name, url in urls.items():
                filled(url or Path(directory) / name / FILE, RUNS)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
            # In turn, so that other load of the machine meets both.
            for number in range(chosen.rounds):
                for name, url in urls.items():
                    os.environ["FXH_RUN_HISTORY"] = url
                    times[name].append(end_of_run(Path(directory) / name, 1000 + number))
    finally:
        server.close()
    clock = {name: statistics.median(one for one, _ in found) for name, found in times.items()}
    for name, found in times.items():
        cpu = statistics.median(one for _, one in found)
        print(
            f"end of a run of {CASES * CELLS} cases over {RUNS} runs, {name:<10}: {clock[name]:6.2f} s by the clock, {cpu:6.2f} s of CPU"
        )
    more = clock["PostgreSQL"] / clock["SQLite"] - 1
    print(f"PostgreSQL: {more:+.1%} (bound {BOUND:+.0%})")
    return 0 if more <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
