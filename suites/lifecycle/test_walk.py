# SPDX-License-Identifier: BSD-2-Clause
"""A random walk over the events of a guest's life, with an automatic search for the shortest failing sequence."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.console.complaints import Complaint
from harness.errors import GuestDied, HarnessError, InfrastructureError
from harness.guests.guest import Guest
from harness.guests.os.base import GuestOS
from harness.oracles import walk
from harness.oracles.finding import finding
from harness.oracles.shrink import shrink
from harness.oracles.walk import Record, Step, Violation
from harness.plugin import evidence, known, lost_data
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted, NewScratch, WalkRequest
from harness.plugin.worker_env import WorkerEnvironment

from .support import ready
from .walker import Late, Walker

VCPUS = 2
# Attempts to shrink a sequence, seconds for all of them (or as long as the walk), and runs of the result.
TRIES, SHRINKING, REPEATS = 40, 900, 3
# Lengths of the ends of a walk that are tried first.
SUFFIXES = (1, 2, 4, 8, 16)
# The name of the case in known_issues.toml.
CASE = "lifecycle/test_random_walk"
log = logging.getLogger("fxh.walk")


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
        """Search for the shortest sequence that violates the same invariant, each time on a fresh guest; record it.

        The search begins no step after ``seconds``: a sequence may be as long as the walk.
        """
        end, broken, late = time.monotonic() + seconds, "", False

        def attempt(choice: tuple[Step, ...]) -> int:
            nonlocal broken, late
            walker: Walker | None = None
            try:
                walker = self.fresh()
                count, found = walker.follow(choice, end)
            except Late:
                late = True
                return 0
            # Whatever goes wrong here must not replace the finding: pytest's skips and failures are no Exceptions.
            except (Exception, pytest.skip.Exception, pytest.fail.Exception) as exc:
                log.warning("the search for a shorter sequence ends early", exc_info=True)
                broken = str(exc).partition("\n")[0] or type(exc).__name__
                return 0
            finally:
                if walker is not None:
                    walker.close()
            return count if found is not None and found.invariant == violation.invariant else 0

        def more() -> bool:
            return not (broken or late) and time.monotonic() < end

        ends = (walk.suffix(steps, count, bounds) for count in SUFFIXES if count < len(steps))
        done = shrink(steps, attempt, TRIES, candidates=ends, repair=lambda choice: walk.possible(choice, bounds), more=more)
        complete, again = done.complete and not late, list[bool]()
        while len(again) < REPEATS and more():
            failed = bool(attempt(done.items))
            again += [failed] if not (broken or late) else []
        self.record.shrunk = {
            "steps": walk.rows(done.items), "tries": done.tries, "complete": complete and not broken,
            "runs": len(again), "failed": sum(again), "trouble": broken,
        }  # fmt: skip


def words(record: Record, steps: tuple[Step, ...], violation: Violation, guest_os: GuestOS) -> str:
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
        reference=f"docs/suites.md, Random walks; {guest_os.source('xenbus')}",
    )


def examine(violation: Violation, case: CaseContext, worker_env: WorkerEnvironment, cell: Cell, begun: float) -> Violation:
    """Do now what the plugin does after a failed case, because the search resets the host: check the host and gather the evidence.

    Returns the violation with the reasons for which data did not arrive since ``begun`` (monotonic s). Raises InfrastructureError if
    the host is to blame.
    """
    if violation.silent and (error := worker_env.check_host(cell)) is not None:
        first = "\n".join((f"not true: {violation.invariant}", *violation.lines))
        raise InfrastructureError(f"{error.message}\n(first finding: {first})") from error
    evidence.gather(case, silent=violation.silent and violation.died is not None)
    case.gathered = True
    if violation.died is not None:
        return violation
    return replace(violation, lines=(*violation.lines, *lost_data.rows(case, "\n".join(violation.lines), begun)))


def show_again(case: CaseContext, guests: tuple[Guest, ...]) -> None:
    """Remove the guest of the last attempt. The result of the case shows ``guests``, which are gone."""
    try:
        case.remove_guests()
    except HarnessError as exc:
        log.error("could not remove the guest of the last attempt: %s", exc.message)
    for guest in guests:
        guest.domid, guest.disks = -1, ()
    case.guests[:] = guests


def test_random_walk(
    walk_request: WalkRequest, booted: Booted, scratch: NewScratch, worker_env: WorkerEnvironment, cell: Cell, case: CaseContext
) -> None:
    """In a random order of hot-plug, save and restore, pause, balloon, network and CPU events, and loads, all invariants hold.

    Kind of bug: two features that work alone and not one after the other.

    Source: docs/suites.md, Random walks; sys/dev/xen/control/control.c, xctrl_suspend(); Linux drivers/xen/manage.c, do_suspend()
    Catches: a detach that leaves its backend's directory, and a restore that loses bytes of a file (planted)
    """
    known_complaints = known.load(Path(__file__).parent.parent)

    def expected(complaint: Complaint) -> bool:
        return known.find_complaint(known_complaints, CASE, cell, complaint.identity, complaint.message) is not None

    def fresh() -> Walker:
        case.remove_guests()
        case.guests.clear()
        guest = booted(ready, vcpus=1, maxvcpus=VCPUS, memory=cell.guest_os.balloon_limits.memory)
        walker = Walker(guest, scratch, VCPUS, expected)
        case.undo.append(walker.close)
        return walker

    walker = fresh()
    guest_os, limits, seconds = walker.guest.os, walker.bounds, float(walk_request.seconds)
    seed, steps, shrunk = walk_request.seed, walk.steps(walk_request.seed, limits), False
    if walk_request.replay is not None:
        seed, given, shrunk = walk.read(walk_request.replay, walk_request.file)
        steps, seconds = iter(walk.repeated(given, limits, walk_request.file)), float("inf")
    record = Record(seed, str(cell), walk_request.seconds)
    walking = Walk(fresh, record, case.directory / "walk.json")
    begun = time.monotonic()
    with contextlib.closing(walker):
        violation = walking.go(walker, steps, seconds)
        taken = tuple(Step(row["event"], row["value"]) for row in record.taken)
        case.metrics |= {"events": float(len(taken)), "events per minute": round(len(taken) * 60 / (time.monotonic() - begun), 1)}
        walking.write()
        if violation is None:
            return
        record.fail(violation)
        walking.write()
        if not shrunk:
            violation = examine(violation, case, worker_env, cell, begun)
    if not shrunk:
        guests = tuple(case.guests)
        walking.shrink(taken, violation, limits, max(float(walk_request.seconds), SHRINKING))
        walking.write()
        show_again(case, guests)
        # The host worked when the walk failed. If the search broke it, that must not replace the finding.
        if record.shrunk["trouble"]:
            worker_env.drop_lost_host(cell)
    text = words(record, taken, violation, guest_os)
    if violation.died is not None:
        raise GuestDied(violation.died.death, text) from violation.died
    pytest.fail(text, pytrace=False)
