# SPDX-License-Identifier: BSD-2-Clause
"""A random walk over the events of a guest's life, with an automatic search for the shortest failing sequence."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.guests.os.base import GuestOS
from harness.oracles import walk
from harness.oracles.finding import finding
from harness.oracles.shrink import shrink
from harness.oracles.walk import Record, Step, Violation
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted, NewScratch, WalkRequest

from .support import ready
from .walker import Walker

VCPUS = 2
# Attempts to shrink a sequence, seconds for all of them (or as long as the walk), and runs of the result.
TRIES, SHRINKING, REPEATS = 40, 900, 3
# Lengths of the ends of a walk that are tried first.
SUFFIXES = (1, 2, 4, 8, 16)


@dataclass
class Walk:
    """The walk of one case: ``fresh`` boots a guest in a clean state, ``record`` is the file of the case."""

    fresh: Callable[[], Walker]
    record: Record
    path: Path

    def write(self) -> None:
        """Write walk.json. A run that is killed leaves the old file or the new one."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.record.as_json(), indent=1) + "\n")
        part.replace(self.path)

    def go(self, walker: Walker, steps: Iterable[Step], seconds: float) -> Violation | None:
        """Take steps for ``seconds`` at most, and record them. Returns the first violation."""
        begun = time.monotonic()
        for step in steps:
            at = time.monotonic() - begun
            if at >= seconds:
                break
            self.record.begin(step, at)
            self.write()
            violation = walker.take(step)
            self.record.end(time.monotonic() - begun - at)
            if violation:
                return violation
        return walker.finish()

    def shrink(self, steps: tuple[Step, ...], violation: Violation, bounds: walk.Bounds, seconds: float) -> None:
        """Search for the shortest sequence that violates the same invariant, each time on a fresh guest; record it."""
        end, broken = time.monotonic() + seconds, ""

        def attempt(choice: tuple[Step, ...]) -> int:
            nonlocal broken
            try:
                walker = self.fresh()
                count, found = walker.follow(choice)
                walker.close()
            except HarnessError as exc:
                broken = exc.message
                return 0
            return count if found is not None and found.invariant == violation.invariant else 0

        def more() -> bool:
            return not broken and time.monotonic() < end

        ends = (walk.suffix(steps, count, bounds) for count in SUFFIXES if count < len(steps))
        done = shrink(steps, attempt, TRIES, candidates=ends, repair=lambda choice: walk.possible(choice, bounds), more=more)
        again = [bool(attempt(done.items)) for _ in range(REPEATS) if more()]
        self.record.shrunk = {
            "steps": walk.rows(done.items), "tries": done.tries, "complete": done.complete,
            "runs": len(again), "failed": sum(again), "trouble": broken,
        }  # fmt: skip


def words(record: Record, steps: tuple[Step, ...], violation: Violation, profile: GuestOS) -> str:
    """The finding of a failed walk."""
    observed = [f"after step {len(steps)} ({steps[-1] if steps else 'none'}): not true: {violation.invariant}", *violation.lines]
    if found := record.shrunk:
        short = "; ".join(str(Step(row["event"], row["value"])) for row in found["steps"])
        ended = "" if found["complete"] else f", and the search ended early{found['trouble'] and ': '}{found['trouble']}"
        observed += [
            f"the shortest failing sequence after {found['tries']} tries{ended}: {short}",
            f"repeated on a fresh guest, it failed in the same way in {found['failed']} of {found['runs']} runs",
        ]
    return finding(
        test=f"a random walk from seed {record.seed}; to repeat it: fxh run lifecycle -k walk --walk-replay walk.json (from this case)",
        observed=observed,
        expected=f"after each step: {violation.invariant}",
        reference=f"docs/suites.md, Random walks; {profile.source('xenbus')}",
    )


def test_random_walk(walk_request: WalkRequest, booted: Booted, scratch: NewScratch, cell: Cell, case: CaseContext) -> None:
    """In a random order of hot-plug, save and restore, pause, balloon, network and CPU events, and loads, all invariants hold.

    Kind of bug: two features that work alone and not one after the other.

    Source: docs/suites.md, Random walks; sys/dev/xen/control/control.c, xctrl_suspend(); Linux drivers/xen/manage.c, do_suspend()
    Catches: a detach that leaves its backend's directory, and a restore that loses bytes of a file (planted)
    """
    walkers: list[Walker] = []

    def fresh() -> Walker:
        for old in walkers:
            with contextlib.suppress(HarnessError):
                old.close()
        case.remove_guests()
        case.guests.clear()
        guest = booted(ready, vcpus=1, maxvcpus=VCPUS, memory=cell.guest_os.balloon_limits.memory)
        walkers[:] = [Walker(guest, scratch, VCPUS)]
        return walkers[0]

    walker = fresh()
    profile, limits, seconds = walker.guest.profile, walker.bounds, float(walk_request.seconds)
    seed, steps, shrunk = walk_request.seed, walk.steps(walk_request.seed, limits), False
    if walk_request.replay is not None:
        seed, given, shrunk = walk.read(walk_request.replay, walk_request.file)
        steps, seconds = iter(walk.possible(given, limits)), float("inf")
    record = Record(seed, str(cell), walk_request.seconds)
    walking = Walk(fresh, record, case.directory / "walk.json")
    begun = time.monotonic()
    violation = walking.go(walker, steps, seconds)
    taken = tuple(Step(row["event"], row["value"]) for row in record.taken)
    case.metrics |= {"events": float(len(taken)), "events per minute": round(len(taken) * 60 / (time.monotonic() - begun), 1)}
    walking.write()
    if violation is None:
        return
    record.fail(violation)
    walking.write()
    if not shrunk:
        walking.shrink(taken, violation, limits, max(float(walk_request.seconds), SHRINKING))
        walking.write()
    pytest.fail(words(record, taken, violation, profile), pytrace=False)
