# SPDX-License-Identifier: BSD-2-Clause
"""How long verdicts, reports and comparisons take: a run of 500 cases over a history of 200. Exit code 1 over a bound."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from written import case, run, save

from harness import report as reporting
from harness.history import FILE, History
from harness.history.rows import observation
from harness.report import html
from harness.report.gather import MEASURED
from harness.results.model import Boot, CaseResult, Stamp
from harness.verdicts.run_verdicts import judge_run

RUNS, CASES, CELLS = 200, 125, 4
# Seconds, and bytes of the page.
VERDICTS, REPORT, COMPARE, PAGE = 1.0, 5.0, 1.0, 10_000_000
CONSOLE = b"".join(b"line %d of a console that tells of xbd%d and more\r\n" % (n, n) for n in range(2000))


def cases(number: int, random: Random) -> list[CaseResult]:
    found = []
    for n in range(CASES):
        for cell in range(CELLS):
            red = random.random() < (0.1 if number == RUNS else 0.02)
            stages = (*(Stamp(f"stage{s}", s + random.random()) for s in range(9)), Stamp("login", 10 + random.random()))
            boot = Boot("g", stages, 11.0 if red else None, 100.0, "g.console.log", 0, "at the disco" if red else "")
            made = case(
                "F" if red else "P", f"test_{n}", cell=f"freebsd-pvh-xen-4.{cell}", kernel="AB"[number // 199], boots=(boot,),
                metrics={"panic to verdict": random.random()}, directory=f"d{n}-{cell}", files=("g.console.log",) if red else (),
            )  # fmt: skip
            found.append(replace(made, suite=f"suite{n % 6}"))
    return found


def timed(what: str, bound: float, act: Callable[[], object]) -> bool:
    """Whether it took less CPU time than ``bound``; the time on the clock is what others leave of the machine."""
    begun, cpu = time.perf_counter(), sum(os.times()[:4])
    act()
    clock, spent = time.perf_counter() - begun, sum(os.times()[:4]) - cpu
    print(f"{what:<44} {spent:6.2f} s of CPU, {clock:6.2f} s by the clock (bound {bound:.0f} s)")
    return spent <= bound


def main() -> int:
    random = Random(5)
    with tempfile.TemporaryDirectory() as directory:
        reports = Path(directory)
        history = History(reports / FILE)
        begun = time.perf_counter()
        for number in range(RUNS):
            history.record(run(number, *cases(number, random)))
        size = (reports / FILE).stat().st_size
        print(f"{RUNS} runs of {CASES * CELLS} cases recorded: {time.perf_counter() - begun:.1f} s, {size / 1e6:.1f} MB")
        done = run(RUNS, *cases(RUNS, random))
        path = save(reports, done, {item.directory: CONSOLE for item in done.cases if item.files})
        history.record(done)
        well = [_verdicts(history, done)]
        well.append(timed("all reports", REPORT, lambda: reporting.write_reports(path, reporting.build_report(path, done))))
        page = html.render(path, reporting.build_report(path, done))
        print(
            f"page: {len(page) / 1e6:.1f} MB (bound {PAGE / 1e6:.0f} MB), {sum(bool(item.files) for item in done.cases)} red cases"
        )
        well.append(len(page) <= PAGE)
        argv = [
            sys.executable,
            "-c",
            "from harness.cli.main import main; main()",
            "compare",
            "run-150",
            done.run,
            "--reports",
            str(reports),
        ]
        well.append(timed("fxh compare, the command as a whole", COMPARE, lambda: subprocess.run(argv, capture_output=True)))
    return 0 if all(well) else 1


def _verdicts(history: History, done: reporting.RunResult) -> bool:
    def act() -> None:
        past: dict[tuple[str, str], list[object]] = {}
        for row in history.results(before=history.number(done.run), last=RUNS, measured=MEASURED):
            past.setdefault((row.seen.case, row.seen.cell), []).append(row.seen)
        found = judge_run([observation(done, item) for item in done.cases], past)  # type: ignore[arg-type]
        assert len(found) == CASES * CELLS

    return timed("verdicts, reading the history included", VERDICTS, act)


if __name__ == "__main__":
    raise SystemExit(main())
