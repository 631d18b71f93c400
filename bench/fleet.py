# SPDX-License-Identifier: BSD-2-Clause
"""Simulate a night on H hosts with W workers each, from recorded case times. By hand: python bench/fleet.py RUN [RUN ...]

RUN is the directory of a recorded run (reports/runs/*). A night runs the cases of all RUNs on --xens versions of Xen, once for each
of --branches branches, one branch after the other. pytest-xdist's scheduler of `fxh run` deals the cases to the workers, in virtual
time:

- A case takes its recorded seconds, with some noise. It takes longer if the workers of a host need more CPUs than the host has.
- A host prepares a cell once, for the recorded seconds of setup. Its other workers wait for that.
- A run starts and ends with serial work of the controller.

The table has the hours of the night and the throughput relative to one worker. It names the largest loss of worker time. The exit
code is 1 if 16 workers on hosts with enough CPUs have less than 13 times the throughput of one.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xdist.scheduler import LoadScheduling, WorkStealingScheduling  # type: ignore[import-untyped]
from xdist.scheduler.worksteal import MIN_PENDING  # type: ignore[import-untyped]

from harness.config.lab_count import LABS_PER_CPU
from harness.results.model import SKIPPED, read_run

BOUND, BOUND_WORKERS = 13.0, 16
SIZES = (1, 2, 4, 8, 16, 32, 64)
START, REPORT, REPORT_CASE = 6.0, 2.0, 0.01
"""Seconds: until a worker begins its first case; to write the reports; and to write those of a case (bench/report.py)."""
NOISE = 0.15
"""The standard deviation of the logarithm of a case's time."""
SKIP = 0.02
"""Seconds of a case that is skipped."""


@dataclass(frozen=True)
class Case:
    """A case of a recorded run."""

    cell: str
    seconds: float


@dataclass(eq=False)
class Worker:
    """A worker as pytest-xdist's schedulers see it. It starts a case only if it knows the next case, or knows that none follows."""

    number: int
    host: int
    steals: list[tuple[Worker, list[int]]]
    queue: list[int] = field(default_factory=list)
    running: int | None = None
    shutting_down: bool = False

    @property
    def gateway(self) -> SimpleNamespace:
        return SimpleNamespace(id=f"w{self.number}")

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.queue += indices

    def send_steal(self, indices: Sequence[int]) -> None:
        wanted = set(indices)
        self.steals.append((self, [index for index in self.queue if index in wanted]))
        self.queue = [index for index in self.queue if index not in wanted]

    def shutdown(self) -> None:
        self.shutting_down = True

    def next(self) -> int | None:
        """Remove the next case from the queue and return it; None while the worker cannot start one."""
        needed = 1 if self.shutting_down else MIN_PENDING
        if self.running is not None or len(self.queue) < needed:
            return None
        return self.queue.pop(0)


@dataclass(frozen=True)
class SimulatedRun:
    """The seconds of one run, and the time that its workers lost."""

    seconds: float
    lost: Mapping[str, float]
    """Seconds of worker time, by what took them."""


def simulate(
    cases: Sequence[Case],
    setup: Mapping[str, float],
    hosts: int,
    workers: int,
    *,
    cpus: int = 64,
    longest: bool = False,
    seed: int = 0,
) -> SimulatedRun:
    """Simulate one run. ``setup`` has the seconds that a host needs to prepare a cell; ``longest`` deals the longest cases first."""
    chance = random.Random(seed)
    if longest:
        cases = sorted(cases, key=lambda case: -case.seconds)
    slower = max(1.0, workers / LABS_PER_CPU / cpus)
    took = [case.seconds * slower * chance.lognormvariate(0, NOISE) for case in cases]
    total = hosts * workers
    values = {"tx": ["popen"] * total, "maxschedchunk": 1 if longest else None}
    config: Any = SimpleNamespace(getvalue=values.__getitem__, getoption=values.__getitem__, hook=None)
    log: Any = SimpleNamespace(workstealsched=_quiet, loadsched=_quiet)
    scheduler: Any = (LoadScheduling if longest else WorkStealingScheduling)(config, log)
    steals: list[tuple[Worker, list[int]]] = []
    nodes = [Worker(number, number % hosts, steals) for number in range(total)]
    for node in nodes:
        scheduler.add_node(node)
    names = [str(number) for number in range(len(cases))]
    for node in nodes:
        scheduler.add_node_collection(node, names)
    scheduler.schedule()

    prepared: dict[tuple[int, str], float] = {}
    lost: defaultdict[str, float] = defaultdict(float)
    events: list[tuple[float, int, Worker]] = []
    idle_since: dict[Worker, float] = dict.fromkeys(nodes, START)

    def begin(now: float) -> None:
        while steals:
            node, given = steals.pop(0)
            scheduler.remove_pending_tests_from_node(node, given)
        for node in nodes:
            index = node.next()
            if index is None:
                continue
            node.running, case = index, cases[index]
            lost["waiting for work"] += now - idle_since[node]
            ready = now
            if case.seconds > SKIP:
                ready = prepared.setdefault((node.host, case.cell), now + setup.get(case.cell, 0.0))
            wait = max(0.0, ready - now)
            lost["preparation of hosts"] += wait
            lost["too few CPUs"] += took[index] * (1 - 1 / slower)
            heapq.heappush(events, (now + wait + took[index], node.number, node))

    now = START
    begin(now)
    while events:
        now, _, node = heapq.heappop(events)
        assert node.running is not None
        scheduler.mark_test_complete(node, node.running, took[node.running])
        node.running, idle_since[node] = None, now
        begin(now)
    assert not any(node.queue for node in nodes), "the scheduler left cases"
    lost["the last cases"] += sum(now - since for since in idle_since.values())
    end = now + REPORT + REPORT_CASE * len(cases)
    lost["start and reports"] += total * (end - now + START)
    return SimulatedRun(end, lost)


def _quiet(*_: object) -> None:
    """Stands for xdist's log."""


def recorded(directories: Sequence[Path], xens: int) -> tuple[list[Case], dict[str, float]]:
    """The cases of all runs for each Xen, in pytest's order (cell by cell), and the seconds of setup of each cell."""
    cases: list[Case] = []
    setup: dict[str, float] = {}
    for directory in directories:
        for case in sorted(read_run(directory).cases, key=lambda case: case.nodeid):
            for cell in (f"{xen} {case.cell}" for xen in range(xens)):
                cases.append(Case(cell, SKIP if case.outcome == SKIPPED else case.seconds))
                setup[cell] = setup.get(cell, 0.0) + case.setup
    return sorted(cases, key=lambda case: case.cell), setup


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--branches", type=int, default=3)
    parser.add_argument("--xens", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=64, help="CPUs of a host; two workers keep one busy")
    parser.add_argument("--longest", action="store_true", help="deal the longest cases first, one by one, instead of cell by cell")
    parser.add_argument("--times", type=int, default=5, help="simulations of each size")
    given = parser.parse_args()
    cases, setup = recorded(given.runs, given.xens)
    judged = sum(case.seconds > SKIP for case in cases)
    print(f"{given.branches} x {len(cases)} cases, {judged} of them run, {sum(case.seconds for case in cases) / 3600:.1f} h for one worker; setup of a host {sum(setup.values()):.0f} s")  # fmt: skip

    def night(hosts: int, workers: int) -> tuple[float, str]:
        runs = [
            simulate(cases, setup, hosts, workers, cpus=given.cpus, longest=given.longest, seed=seed) for seed in range(given.times)
        ]
        lost = {what: sum(run.lost[what] for run in runs) for what in runs[0].lost}
        what = max(lost, key=lost.__getitem__)
        share = lost[what] / sum(run.seconds for run in runs) / hosts / workers
        return statistics.median(run.seconds for run in runs) * given.branches, f"{what} {share:.1%}"

    one, missed = night(1, 1)[0], False
    print(f"{'hosts':>5} {'workers':>7} {'hours':>7} {'times':>6}  largest loss of worker time")
    for hosts in SIZES:
        for workers in SIZES:
            if hosts * workers > max(SIZES):
                continue
            seconds, what = night(hosts, workers)
            enough = workers <= LABS_PER_CPU * given.cpus
            short = hosts * workers == BOUND_WORKERS and enough and one / seconds < BOUND
            missed |= short
            print(
                f"{hosts:>5} {workers:>7} {seconds / 3600:>7.2f} {one / seconds:>6.1f}  {what}{'  under the bound' if short else ''}"
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
