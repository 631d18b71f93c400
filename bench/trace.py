# SPDX-License-Identifier: BSD-2-Clause
"""The cost of the action trace and of the complaints in a run: the same run with and without them, in turn.

    python bench/trace.py [--pairs 5] [-- boot -k boots_to_login]

The words after -- are arguments of ``fxh run``. A run without them replaces the functions of the harness in its own process. Two kinds of
figures are printed:

* CPU time of the run, its labs included, with and without. Labs emulate processors, so it differs by several percent from run to
  run: the spread is printed with it.
* CPU time within these functions as a share of the whole, measured in the runs with them. This has no such spread. It includes the
lab's
  cost of dom0's log, which each case reads: the CPU time of the script in dom0 with and without the log.

Exit code 1 if a share is over its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT = ("boot", "-k", "boots_to_login or panic_is_seen", "--type", "pv")
# Shares of the CPU time of a run.
TRACE, BOTH = 0.01, 0.02
# Inventories in a row.
LOOKS = 20


# -- one run, in its own process --------------------------------------------------------------------------------------


class Meter:
    """CPU time of this thread within functions, in seconds. A function within another one counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"trace": 0.0, "complaints": 0.0}
        self.logs = 0
        """How often dom0's log was read."""
        self._inside = False

    def measured(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            if self._inside:
                return act(*args, **named)
            self._inside, begun = True, time.thread_time()
            try:
                return act(*args, **named)
            finally:
                self.seconds[name] += time.thread_time() - begun
                self._inside = False

        return run


def measure(meter: Meter) -> None:
    """Measure the functions."""
    from harness import trace
    from harness.plugin import case_context, case_result

    class Measured:
        """A context manager whose entry and exit are measured."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __enter__(self) -> Any:
            return meter.measured("trace", self._inner.__enter__)()

        def __exit__(self, *error: Any) -> Any:
            return meter.measured("trace", self._inner.__exit__)(*error)

    step, record = trace.step, trace.record
    trace.step = lambda *args, **named: Measured(step(*args, **named))  # type: ignore[assignment]
    trace.record = lambda path: Measured(record(path))  # type: ignore[assignment]
    case_result._complaints = meter.measured("complaints", case_result._complaints)
    for name in ("use", "read_logs"):
        setattr(case_context.CaseContext, name, meter.measured("complaints", getattr(case_context.CaseContext, name)))
    read_logs = case_context.CaseContext.read_logs

    def counted(*args: Any) -> None:
        meter.logs += 1
        read_logs(*args)

    case_context.CaseContext.read_logs = counted  # type: ignore[method-assign]


def leave_out() -> None:
    """Replace the functions by others that do nothing."""
    from harness import trace
    from harness.hosts import inventory
    from harness.plugin import case_context, case_result

    @contextmanager
    def step(*_: object, **__: object) -> Iterator[trace.Step]:
        yield trace.Step()

    @contextmanager
    def record(_: Path) -> Iterator[None]:
        yield

    trace.step, trace.record = step, record  # type: ignore[assignment]
    case_result._complaints = lambda *_: None
    inventory.SCRIPT = inventory.SCRIPT.partition("echo '%log'")[0]
    case_context.CaseContext.use = lambda self, host: setattr(self, "host", host)  # type: ignore[method-assign]
    case_context.CaseContext.read_logs = lambda *_: None  # type: ignore[method-assign,assignment]


def count_labs(used: list[float]) -> None:
    """Append the CPU time of each QEMU to ``used`` before it is stopped."""
    from harness.lab.machine import Machine

    stop = Machine.stop

    def counted(self: Machine) -> None:
        if self.process is not None:
            with contextlib.suppress(OSError):
                used.append(_cpu(Path(f"/proc/{self.process.pid}/stat")))
        stop(self)

    Machine.stop = counted  # type: ignore[method-assign]


def run_once(words: list[str], *, full: bool) -> None:
    """Run ``fxh run``, and print its CPU time with that of its labs as JSON on the last line."""
    meter, labs = Meter(), [0.0]
    count_labs(labs)
    if full:
        measure(meter)
    else:
        leave_out()
    from harness.cli.main import make_app

    code = make_app()(["run", *words], standalone_mode=False)
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = used.ru_utime + used.ru_stime
    print(json.dumps({"code": code, "own": own, "cpu": own + sum(labs), "logs": meter.logs, **meter.seconds}))


# -- the log of dom0 --------------------------------------------------------------------------------------------------


def seconds_for_log() -> float:
    """CPU time that a lab needs to print dom0's log as part of the inventory, in seconds."""
    from harness.hosts import inventory
    from harness.lab import factory
    from harness.lab.factory import LabSpec

    lab = factory.make(LabSpec())
    lab.up()
    try:
        assert lab.machine.process is not None
        stat = Path(f"/proc/{lab.machine.process.pid}/stat")

        def spent(script: str) -> float:
            lab.ssh.run(["sh", "-c", script])
            before = _cpu(stat)
            for _ in range(LOOKS):
                lab.ssh.run(["sh", "-c", script])
            return (_cpu(stat) - before) / LOOKS

        bare = inventory.SCRIPT.partition("echo '%log'")[0]
        return statistics.median(spent(inventory.SCRIPT) - spent(bare) for _ in range(5))
    finally:
        lab.remove()


def _cpu(stat: Path) -> float:
    """Seconds that a process has computed (proc(5), fields 14 and 15)."""
    words = stat.read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


# -- all runs ---------------------------------------------------------------------------------------------------------


def start(words: list[str], reports: Path, *, full: bool) -> dict[str, float]:
    """One run's figures and its time on the clock."""
    begun = time.perf_counter()
    argv = [sys.executable, __file__, "--once", "full" if full else "bare", "--", *words, "--reports", str(reports), "-n", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise SystemExit(f"the run failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}") from None
    if found["code"]:
        raise SystemExit(f"the run ended with exit code {found['code']}:\n{done.stdout[-2000:]}")
    return {**found, "clock": time.perf_counter() - begun}


def spread(name: str, values: list[float], unit: str, factor: float = 1.0) -> float:
    middle = statistics.median(values)
    low, high = min(values), max(values)
    print(
        f"{name:<34} {low * factor:8.2f} / {middle * factor:8.2f} / {high * factor:8.2f} {unit}  (min, median, max of {len(values)})"
    )
    return middle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="runs of each kind (default: 20)")
    parser.add_argument("--once", choices=("full", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="arguments of fxh run")
    chosen = parser.parse_args()
    words = chosen.words or list(DEFAULT)
    if chosen.once:
        run_once(words, full=chosen.once == "full")
        return 0
    full, bare = [], []
    with tempfile.TemporaryDirectory() as scratch:
        start(words, Path(scratch), full=True)  # makes the checkpoints
        for _ in range(chosen.pairs):
            full.append(start(words, Path(scratch), full=True))
            bare.append(start(words, Path(scratch), full=False))
    print(f"fxh run {' '.join(words)}")
    for name, runs in (("with", full), ("without", bare)):
        spread(f"{name}: CPU time", [run["cpu"] for run in runs], "s")
        spread(f"{name}: of it the harness's own", [run["own"] for run in runs], "s")
        spread(f"{name}: time on the clock", [run["clock"] for run in runs], "s")
    spread("CPU, with - without, each pair", [(a["cpu"] - b["cpu"]) / b["cpu"] for a, b in zip(full, bare, strict=True)], "%", 100)
    log = seconds_for_log()
    print(f"dom0's log costs a lab {1000 * log:.0f} ms of CPU time, {full[0]['logs']} times a run")
    own = spread("within the trace, of all CPU", [run["trace"] / run["cpu"] for run in full], f"%  bound {TRACE:.0%}", 100)
    both = spread(
        "within both, of all CPU",
        [(run["trace"] + run["complaints"] + run["logs"] * log) / run["cpu"] for run in full],
        f"%  bound {BOTH:.0%}",
        100,
    )
    return 0 if own <= TRACE and both <= BOTH else 1


if __name__ == "__main__":
    raise SystemExit(main())
