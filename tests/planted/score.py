# SPDX-License-Identifier: BSD-2-Clause
"""make planted: run each planted regression through the real suites and print which ones were caught.

A regression counts as caught if its case fails with the right words and a case of each other suite passes. If no guest boots with
it, the other suites are not run. ``--clean N`` runs the cases N times without a plant. It prints each complaint and each line of
a boot's console that the first of these runs lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from plants import TABLE

from harness.config import lab_count
from harness.report import boot_consoles
from harness.report.trends import BOOTS
from harness.results import model
from harness.results.model import RunResult

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent

Thing = TypeVar("Thing")
Result = TypeVar("Result")

_running: set[subprocess.Popen[bytes]] = set()


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this program with SystemExit, so that it cleans up. More of them do not interrupt the clean-up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def ended(number: int, _frame: object) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, ended)


def map_in_parallel(work: Callable[[Thing], Result], things: Iterable[Thing], labs: int) -> Iterator[Result]:
    """Yield the result of ``work`` for each thing, in order. A signal or an error ends the running pytest processes."""

    end_on_signals()
    with ThreadPoolExecutor(labs) as pool:
        try:
            yield from pool.map(work, things)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            end_running()


def end_running() -> None:
    """End the pytest processes that :func:`run` waits for in other threads."""
    for child in list(_running):
        child.terminate()


def selected(word: str) -> str:
    """The expression of pytest's -k for ``function[parameters]``. It may select a few more parameters."""
    function, _, parameters = word.rstrip("]").partition("[")
    return f"({' and '.join(filter(None, (function, parameters)))})"


def run(
    cases: list[str],
    kind: str,
    plant: str = "",
    guest: list[str] | None = None,
    options: Iterable[str] = (),
    keep: Path | None = None,
) -> dict[str, dict[str, str]]:
    """Run cases and return outcome and reason by ``suite/function[parameters]``. ``guest`` and ``options`` are options of pytest.

    ``keep`` is a new directory for the files of the run (default: they are removed).
    """
    ids = [f"suites/{case.partition('/')[0]}" for case in cases]
    words = [case.partition("/")[2] for case in cases]
    with tempfile.TemporaryDirectory() as reports:
        path = keep or Path(reports) / "runs" / "r"
        argv = [
            sys.executable, "-m", "pytest", "-p", "plants", *(["--plant", plant] if plant else []), "-q", "--no-header", "--tb=no",
            "-p", "no:cacheprovider", "--rootdir", str(PROJECT), *(guest or ["--fxh-guest", "control"]), *options, "--fxh-type", kind, "--fxh-reports", reports,
            "--fxh-run", str(path), "-k", " or ".join(sorted({selected(word) for word in words})), *sorted(set(ids)),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{HERE}:{PROJECT}"}
        with subprocess.Popen(argv, env=environment, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            _running.add(child)
            try:
                child.wait()
            except BaseException:  # a signal; Popen's exit waits for the child
                child.terminate()
                raise
            finally:
                _running.discard(child)
        found = {}
        for file in sorted(path.glob("cases/*/case.json")):
            case = json.loads(file.read_text())
            rest = case["nodeid"].rpartition("[")[2].rstrip("]").replace(case["cell"], "", 1).strip("-")
            name = f"{case['suite']}/{case['case']}"
            for key in {name, f"{name}[{rest}]" if rest else name}:
                if key not in found or case["outcome"] == "failed":
                    found[key] = {"outcome": case["outcome"], "reason": case["reason"]}
        return found


# One quick case of each suite, which must pass while a plant makes another suite fail.
OTHERS = {
    "boot": "boot/test_runs_the_kernel_it_was_given",
    "root_mount": "root_mount/test_hot_plug",
    "pygrub": "pygrub/test_sparse_kernel",
    "netfront": "netfront/test_small_writes",
    "balloon": "balloon/test_above_maxmem_is_refused",
    "reboot": "reboot/test_plain_reboot",
    "lifecycle": "lifecycle/test_capabilities_after_boot",
}


def run_plant(name: str, freebsd: list[str]) -> tuple[bool, str]:
    """Run one plant; return whether it was caught and no other suite failed, and a line that says so."""
    plant = TABLE[name]
    begun = time.monotonic()
    others = [] if plant.fatal else [case for suite, case in OTHERS.items() if suite != plant.suite]
    found = run([plant.case, *others], plant.type, name, freebsd if plant.guest == "freebsd" else None, plant.options)
    got = found.get(plant.case, {"outcome": "not run", "reason": ""})
    good = got["outcome"] == "failed" and re.search(plant.words, got["reason"], re.DOTALL) is not None
    astray = [case for case in others if found.get(case, {"outcome": "not run"})["outcome"] not in ("passed", "skipped")]
    first = " / ".join(line.strip() for line in got["reason"].splitlines() if line.strip())[:150]
    word = "MISSED" if not good else "ASTRAY" if astray else "caught"
    line = f"{word} {name:<26} {plant.case:<50} {time.monotonic() - begun:5.0f} s  {got['outcome']}: {first}"
    return good and not astray, line + "".join(f"\n       {case}: {found.get(case, got)['reason'][:150]!r}" for case in astray)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(TABLE)} (default: all)")
    parser.add_argument("--clean", type=int, default=0, help="run the cases this many times without a plant instead")
    parser.add_argument("--image", default="", help="a FreeBSD image, for the plants in FreeBSD")
    parser.add_argument(
        "-n", type=int, default=1, help="number of labs to use at the same time; 0 for as many as the machine can run"
    )
    options = parser.parse_args()
    options.n = options.n or lab_count.automatic()
    freebsd = ["--fxh-image", options.image, "--fxh-guest", "freebsd"] if options.image else []
    if options.clean:
        return clean(options.clean, options.n)
    names = options.names or [name for name, plant in TABLE.items() if plant.guest == "control" or freebsd]
    if len(names) < len(TABLE) and not options.names:
        print(f"{len(TABLE) - len(names)} plants in FreeBSD need --image and are not run")
    caught = 0
    for good, line in map_in_parallel(lambda name: run_plant(name, freebsd), names, options.n):
        caught += good
        print(line, flush=True)
    print(f"{caught} of {len(names)} planted regressions caught")
    return 0 if caught == len(names) else 1


def clean(times: int, labs: int) -> int:
    """Run the cases of all plants ``times`` times without a plant, and print each failure as a false alarm.

    Also print what is news against the first run: lines of the boot's console and complaints. One line is allowed in 20 runs.
    """
    cases = [BOOTS.replace("test_boot::", ""), *(plant.case for plant in TABLE.values() if plant.guest == "control")]
    alarms, first, lines, complaints = 0, None, 0, 0
    with tempfile.TemporaryDirectory() as kept:
        turns = map_in_parallel(lambda turn: run(cases, "pv", keep=Path(kept) / str(turn)), range(times), labs)
        for turn, found in enumerate(turns):
            found = {**{case: {"outcome": "not run", "reason": ""} for case in cases}, **found}
            red = {name: got for name, got in found.items() if got["outcome"] not in ("passed", "skipped", "known")}
            alarms += len(red)
            print(f"turn {turn + 1}: {len(found)} results, {len(red)} failures", flush=True)
            for name, got in red.items():
                print(f"       {name}: {got['outcome']}: {got['reason'][:200]}", flush=True)
            this = model.read_run(Path(kept) / str(turn))
            first = first or this
            for line in new_console_lines(first, this, Path(kept)):
                lines += 1
                print(f"       console: {line}", flush=True)
            for complaint in new_complaints(first, this):
                complaints += 1
                print(f"       complaint: {complaint}", flush=True)
    print(f"{alarms} false alarms, {lines} new console lines and {complaints} new complaints in {times} runs without a plant")
    return 1 if alarms or complaints or lines > max(1, times // 20) else 0


def new_console_lines(first: RunResult, this: RunResult, where: Path) -> list[str]:
    """The lines that only one of the boots of test_boots_to_login printed, each after + or -. ``where`` holds both runs."""
    found = boot_consoles.between(first, this, where)
    marked = ((("+", change.difference.appeared), ("-", change.difference.disappeared)) for change in found)
    return [f"{mark} {line}" for pairs in marked for mark, group in pairs for line in group]


def new_complaints(first: RunResult, this: RunResult) -> list[str]:
    """The complaints of a run that the same case of the first run lacks."""
    before = {(case.key, case.cell, complaint.identity) for case in first.cases for complaint in case.complaints or ()}
    return [
        f"{case.case}: {complaint.source}: {complaint.message}"
        for case in this.cases
        for complaint in case.complaints or ()
        if (case.key, case.cell, complaint.identity) not in before
    ]


if __name__ == "__main__":
    raise SystemExit(main())
