# SPDX-License-Identifier: BSD-2-Clause
"""How long `fxh report --site` takes: 300 nights of 20 cells, and then one more night. Exit code 1 over a bound.

    python bench/site.py [--nights 300] [--cases 185] [--keep DIR]

CPU time counts, because the clock also shows what else runs on the machine. A cell has 185 cases, as the control guest's have. The
bounds are for the work and for the command as a whole, which adds the start of Python and its imports to either run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from written import case, run

from harness.history import FILE, History
from harness.report import site
from harness.results.model import Boot, CaseResult, KnownIssueMatch, Outcome, RunResult, Stamp

PROJECT = Path(__file__).resolve().parents[1]
CELLS = [
    f"freebsd-{kind}-{host}"
    for kind in ("pv", "pvh", "hvm", "hvm-uefi", "pvshim")
    for host in ("xen-4.17", "xen-4.20", "xen1", "xen2")
]
SUITES = ("boot", "root_mount", "netfront", "balloon", "reboot", "pygrub")
STAGES = ("firmware", "loader", "kernel", "xen", "xenbus", "disk", "mountroot", "rc", "login")
# Seconds of CPU, bytes, and the share of the first run that the second one may take.
SECONDS, BYTES, SHARE = 10.0, 20_000_000, 0.1


def base(cases: int) -> list[CaseResult]:
    """The cases of a night in which everything passes."""
    found = []
    for cell in CELLS:
        for n in range(cases):
            suite, name = SUITES[n % 6], "test_boots_to_login" if n == 0 else f"test_{n}"
            found.append(
                case("P", name, cell=cell, suite=suite, nodeid=f"suites/{suite}/test_{suite}.py::{name}[{cell}]", parameters="")
            )
    return found


def night(number: int, cases: list[CaseResult], random: Random) -> RunResult:
    """The results of a night: in each cell a few of the cases fail, are known issues, or lose their host."""
    started = datetime(2026, 2, 1, 1, tzinfo=UTC) + timedelta(days=number)
    mine = list(cases)
    for n, item in enumerate(mine):
        stages = tuple(Stamp(name, 3.0 * at + random.random()) for at, name in enumerate(STAGES))
        more: dict[str, object] = {"boots": (Boot("g", stages),), "inputs": item.inputs | {"host": f"host-{item.cell[-8:]}"}}
        if n % 20 == 3:
            more["metrics"] = {"throughput, MiB/s": 100 + 20 * random.random()}
        if (lot := random.random()) < 0.005:
            more |= {
                "outcome": Outcome.FAILED,
                "reason": "panic: at the disco in vm_fault()\n" * 5,
                "identity": "0badcafe panic: x @ y",
            }
        elif lot < 0.01:
            more |= {
                "outcome": Outcome.KNOWN,
                "known_issue": KnownIssueMatch(f"FreeBSD bug {n % 20}", "it is so"),
                "reason": "known",
            }
        elif lot < 0.012:
            more |= {"outcome": Outcome.INFRASTRUCTURE, "reason": "ssh: the host is lost"}
        mine[n] = replace(item, **more)  # type: ignore[arg-type]
    done = run(number, *mine, branch=("main", "stable/15", "stable/14")[number % 3])
    name = started.strftime("%Y%m%dT%H%M%SZ") + f"-{number:04x}"
    return replace(done, run=name, started=f"{started:%FT%TZ}", ended=f"{started + timedelta(hours=5):%FT%TZ}")


def timed(act: Callable[[], object]) -> float:
    """The CPU time of ``act`` and its children, in seconds."""
    before = sum(os.times()[:4])
    begun = time.perf_counter()
    act()
    spent = sum(os.times()[:4]) - before
    print(f"    {spent:.2f} s of CPU, {time.perf_counter() - begun:.2f} s by the clock")
    return spent


def command(reports: Path, target: Path) -> Callable[[], object]:
    argv = [sys.executable, "-m", "harness.cli", "report", "--site", str(target), "--reports", str(reports)]
    return lambda: subprocess.run(argv, cwd=PROJECT, check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=300)
    parser.add_argument("--cases", type=int, default=185, help="cases in a cell")
    parser.add_argument("--keep", type=Path, help="write history and site into this directory, and keep them")
    chosen = parser.parse_args()
    random = Random(5)
    with tempfile.TemporaryDirectory() as scratch:
        reports = chosen.keep or Path(scratch)
        cases, history = base(chosen.cases), History(reports / FILE)
        for number in range(chosen.nights):
            history.record(night(number, cases, random))
        print(
            f"{chosen.nights} nights of {len(CELLS)} cells with {chosen.cases} cases: {(reports / FILE).stat().st_size / 1e6:.0f} MB of history"
        )
        print("the first site:")
        first = timed(lambda: site.build(reports, reports / "site"))
        print("the command:")
        first_command = timed(command(reports, reports / "site2"))
        history.record(night(chosen.nights, cases, random))
        written: list[site.Built] = []
        print("one more night:")
        second = timed(lambda: written.append(site.build(reports, reports / "site")))
        print("the command:")
        second_command = timed(command(reports, reports / "site2"))
        size = sum(file.stat().st_size for file in (reports / "site").rglob("*"))
    print(f"{written[0].pages} pages, {len(written[0].written)} files written, {size / 1e6:.1f} MB (bound {BYTES / 1e6:.0f} MB)")
    print(f"first {first:.2f} s (bound {SECONDS:.0f} s); second {second / first:.3f} of the first (bound {SHARE})")
    share = second_command / first_command
    print(f"the command: {first_command:.2f} s (bound {SECONDS:.0f} s); second {share:.3f} of the first (bound {SHARE})")
    return 0 if max(first, first_command) <= SECONDS and max(second / first, share) <= SHARE and size <= BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
