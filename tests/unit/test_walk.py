# SPDX-License-Identifier: BSD-2-Clause
"""Random walks: the steps from a seed, the model, the file, the search for a short sequence, and the looks at dom0."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import duration
from harness.errors import GuestCommandFailed, InfrastructureError, UsageError
from harness.guests.guest import Guest
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.guests.os.values import Run
from harness.guests.together import together
from harness.oracles import walk
from harness.oracles.shrink import shrink
from harness.oracles.walk import Bounds, Ledger, Model, Record, Step, Violation
from harness.plugin import fixtures, options
from harness.plugin.options import Options
from harness.plugin.state import OPTIONS
from suites.lifecycle import loads, look
from suites.lifecycle.invariants import Invariants, anonymous
from suites.lifecycle.test_walk import Walk, words
from suites.lifecycle.walker import Walker

BOUNDS = Bounds()
SEEDS = st.integers(1, 1 << 31)


def first(seed: int, count: int, bounds: Bounds = BOUNDS) -> tuple[Step, ...]:
    return tuple(itertools.islice(walk.steps(seed, bounds), count))


def ended(steps: tuple[Step, ...], bounds: Bounds = BOUNDS) -> Model:
    model = Model.start(bounds)
    for step in steps:
        assert model.allows(step), f"{step} is not possible"
        model = model.after(step)
    return model


# -- steps and their model ------------------------------------------------------------------------------------------------


def test_a_walk_leaves_out_what_kills_the_guest_and_a_replay_does_not() -> None:
    save = "save and restore"
    version = FreeBSD("14.2", branch="STABLE", osreldate=1402501)
    assert version.fatal_events("pvh") == {save}
    assert version.fatal_events("hvm") == FreeBSD("13.2").fatal_events("pvh") == FreeBSD("15.1").fatal_events("pvh") == set()
    without = Bounds(without=version.fatal_events("pvh"))
    assert save in {step.event for step in first(1, 200)}
    assert {step.event for step in first(1, 200, without)} == set(walk.EVENTS) - {save}
    assert walk.repeated((Step(save),), without, "walk.json") == (Step(save),)


@given(SEEDS)
def test_a_seed_always_gives_the_same_possible_steps(seed: int) -> None:
    steps = first(seed, 60)
    assert steps == first(seed, 60)
    ended(steps)
    assert walk.possible(steps, BOUNDS) == steps


def test_the_steps_have_all_events_and_other_seeds_give_other_steps() -> None:
    assert {step.event for step in first(3, 400)} == set(walk.EVENTS)
    assert first(1, 20) != first(2, 20)


@given(SEEDS, st.lists(st.booleans(), min_size=40, max_size=40))
def test_steps_that_lost_their_precondition_are_left_out(seed: int, kept: list[bool]) -> None:
    part = tuple(step for step, keep in zip(first(seed, 40), kept, strict=True) if keep)
    found = walk.possible(part, BOUNDS)
    ended(found)
    rest = iter(part)
    assert all(step in rest for step in found)


@given(SEEDS, st.integers(0, 40), st.integers(0, 12))
def test_the_end_of_a_walk_starts_from_the_same_state(seed: int, length: int, count: int) -> None:
    steps = first(seed, length + count)
    found = walk.suffix(steps, count, BOUNDS)
    whole, short = ended(steps), ended(found)
    assert found[len(found) - count :] == steps[len(steps) - count :]
    # How long the vif has been down may differ.
    assert (short.attached, short.balloon, short.on, short.mtu, short.vcpus, short.down > 0) == (
        whole.attached, whole.balloon, whole.on, whole.mtu, whole.vcpus, whole.down > 0,
    )  # fmt: skip


def test_the_vif_does_not_stay_down() -> None:
    for seed in range(1, 30):
        downs = 0
        model = Model.start(BOUNDS)
        for step in first(seed, 200):
            model = model.after(step)
            downs = downs + 1 if model.down else 0
            assert downs <= 4


def test_a_step_needs_its_state() -> None:
    start = Model.start(BOUNDS)
    assert not start.allows(Step("detach", "xvdc"))
    assert not start.allows(Step("balloon", BOUNDS.whole))
    assert not start.allows(Step("explode"))
    down = start.after(Step("vif down"))
    assert not down.allows(Step("net load", "to dom0"))
    assert down.after(Step("save and restore")).down == 0
    assert not start.after(Step("attach", "xvdc")).allows(Step("attach", "xvdc"))


@pytest.mark.parametrize(("text", "value"), [("", 0), ("90s", 90), ("10m", 600), ("1h", 3600), ("30", 30)])
def test_durations(text: str, value: int) -> None:
    assert duration.seconds(text) == value


@pytest.mark.parametrize("text", ["m", "0m", "-5m", "10 minutes", "1.5h", "9999999s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration\n  hint: write 90s"):
        duration.seconds(text)


def test_a_case_that_runs_again_has_the_same_seed() -> None:
    """Each attempt, in each worker, gets the seed that the controller drew."""
    checked = options._checked(Options(walk="10m"), {})
    config = type("Config", (), {"stash": {OPTIONS: checked}})
    request = cast(pytest.FixtureRequest, type("Request", (), {"config": config}))
    seeds = {fixtures.walk_request.__wrapped__(request).seed for _ in range(4)}  # type: ignore[attr-defined]
    assert seeds == {checked.walk_seed} != {0}
    assert checked.rerun_options["walk-seed"] == str(checked.walk_seed)
    assert options._checked(Options(walk="10m"), {}).walk_seed != checked.walk_seed
    assert options._checked(Options(walk="10m", walk_seed=7), {}).walk_seed == 7
    assert options._checked(Options(), {}).walk_seed == 0


# -- walk.json --------------------------------------------------------------------------------------------------------------


def test_the_file_has_the_steps_of_a_run_that_was_killed() -> None:
    record = Record(7, "control-pv")
    for number, step in enumerate(first(7, 3)):
        record.begin(step, number * 5)
    data = json.loads(json.dumps(record.as_json()))
    assert walk.read(data, "walk.json") == (7, first(7, 3), False)
    assert "seconds" not in data["steps"][-1]


def test_the_file_gives_the_shortest_sequence() -> None:
    record = Record(7, "control-pv")
    record.begin(Step("pause", 2), 0)
    record.end(3.14)
    record.fail(Violation("the guest answers", ("no",)))
    record.shrunk = {"steps": walk.rows([Step("save and restore")])}
    assert walk.read(record.as_json(), "walk.json") == (7, (Step("save and restore"),), True)
    assert record.failed == {"step": 1, "invariant": "the guest answers", "observed": ["no"]}


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"seed": 1, "steps": [], "shrunk": {}}, {"seed": 1, "steps": [{"event": "x", "value": 1}], "shrunk": {}},
     {"seed": 1, "steps": [{"event": "pause", "value": [1]}], "shrunk": {}}, {"seed": "x", "steps": [{"event": "pause", "value": 1}], "shrunk": {}},
     {"seed": 1, "steps": [7], "shrunk": {}}],
)  # fmt: skip
def test_another_file_is_refused(data: Any) -> None:
    with pytest.raises(UsageError, match=r"w\.json: "):
        walk.read(data, "w.json")


# -- the search for a short sequence ------------------------------------------------------------------------------------


def failing(culprits: tuple[int, ...]) -> Callable[[tuple[int, ...]], int]:
    """Fails once all ``culprits`` have come, in their order."""

    def attempt(items: tuple[int, ...]) -> int:
        rest = list(culprits)
        for count, item in enumerate(items, 1):
            if rest and item == rest[0]:
                rest.pop(0)
            if not rest:
                return count
        return 0

    return attempt


@given(st.integers(1, 60), st.data())
def test_the_result_has_only_the_culprits(length: int, data: st.DataObject) -> None:
    culprits = tuple(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=4))))
    found = shrink(range(length), failing(culprits), 10_000)
    assert found.items == culprits
    assert found.complete


@given(st.integers(1, 60), st.integers(0, 8), st.data())
def test_the_attempts_are_bounded_and_the_result_always_fails(length: int, most: int, data: st.DataObject) -> None:
    culprits = tuple(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=4))))
    seen: list[tuple[int, ...]] = []

    def attempt(items: tuple[int, ...]) -> int:
        seen.append(items)
        return failing(culprits)(items)

    found = shrink(range(length), attempt, most)
    assert len(seen) == found.tries <= most
    assert len(set(seen)) == len(seen)
    assert failing(culprits)(found.items)


def test_short_candidates_come_first_and_time_ends_the_search() -> None:
    tried: list[tuple[int, ...]] = []

    def attempt(items: tuple[int, ...]) -> int:
        tried.append(items)
        return failing((58, 59))(items)

    found = shrink(range(60), attempt, 50, candidates=[(59,), (58, 59)])
    assert (found.items, tried[:2]) == ((58, 59), [(59,), (58, 59)])
    assert found.tries <= 4
    assert shrink(range(60), attempt, 50, more=lambda: False).complete is False


def test_a_failure_that_does_not_repeat_keeps_the_whole_sequence() -> None:
    found = shrink(range(6), lambda items: 0, 100)
    assert found.items == tuple(range(6))


def test_sequences_are_repaired_before_they_are_tried() -> None:
    steps = first(11, 40)
    last = max(number for number, step in enumerate(steps) if step.event == "detach")

    def attempt(items: tuple[Step, ...]) -> int:
        ended(items)
        return next((count for count, step in enumerate(items, 1) if step == steps[last]), 0)

    found = shrink(steps, attempt, 1000, repair=lambda items: walk.possible(items, BOUNDS))
    assert [step.event for step in found.items] == ["attach", "detach"]


# -- what both ends hold and count ----------------------------------------------------------------------------------------


def test_a_leak_grows_and_a_cache_does_not() -> None:
    ledger = Ledger()
    ledger.take("attach")
    assert ledger.grown("none", {"event channels": 5}) == ()
    ledger.take("save and restore")
    assert ledger.grown("none", {"event channels": 8}) == ()
    ledger.take("attach")
    assert ledger.grown("a disk", {"event channels": 30}) == ()
    for _ in range(13):
        ledger.take("attach")
        ledger.take("detach")
    assert ledger.grown("none", {"event channels": 20}) == ("event channels grew from 5 to 20 in 15 attaches and restores",)


def test_a_known_leak_of_each_restore_does_not_hide_another_one() -> None:
    ledger = Ledger(kept_per_restore=1)
    assert ledger.grown("none", {"allocations": 30, "interrupts": 4}) == ()
    for _ in range(10):
        ledger.take("save and restore")
    assert ledger.grown("none", {"allocations": 40, "interrupts": 4}) == ()
    assert ledger.grown("none", {"allocations": 45, "interrupts": 14}) == (
        "allocations grew from 30 to 35 in 10 attaches and restores",
        "interrupts grew from 4 to 14 in 10 attaches and restores",
    )


class Leaky(Invariants):
    """Judges a guest that leaks an event channel in each attach, and nothing else."""

    def __init__(self) -> None:
        self._ledger, self._cpus, self.leaked = Ledger(), 1, 0
        self._counted = None

    def _checks(self, model: Model, before: Model, step: Step) -> Iterator[tuple[str, list[str]]]:
        self.leaked += step.event == "attach"
        held = {"event channels": 5 + 2 * len(model.attached) + self.leaked}
        yield "no leak", list(self._ledger.grown((model.attached, self._cpus), held))


def test_a_leak_of_one_event_channel_per_cycle_is_found() -> None:
    judge, model = Leaky(), Model.start(BOUNDS)
    for cycle in range(1, 9):
        for step in (Step("attach", "xvdc"), Step("detach", "xvdc")):
            before, model = model, model.after(step)
            if violation := judge.violated(model, before, step):
                assert cycle in (4, 5)
                assert violation.lines[0].startswith("event channels grew from 8 to 12 in 4 ")
                return
    pytest.fail("the leak was not found")


def counted(out: int, came: int, errors: int = 0) -> tuple[dict[str, int], dict[str, int]]:
    guest = {"tx_packets": out, "rx_packets": came, "rx_errors": errors}
    return guest, {"rx_packets": out, "tx_packets": came, "rx_errors": 0, "tx_errors": 0}


def test_both_ends_count_the_same() -> None:
    assert walk.unequal(counted(10, 10), counted(1000, 3000)) == ()
    guest, vif = counted(1000, 3000, errors=2)
    lines = walk.unequal(counted(10, 10), (guest, vif | {"tx_packets": 3200}))
    assert lines == ("to the guest: the guest counted 2990 packets, dom0 3190", "the guest counted 2 errors")


# -- looks at dom0 ----------------------------------------------------------------------------------------------------------

SEPARATOR = "fxh-0123456789abcdef"
TEXT = f"""== states
/local/domain/7/device/vbd/51744/state = "4"
/local/domain/7/device/vif/0/state = "1"
/local/domain/7/device/vif/0/mac = "00:16:3e:00:00:01"
/local/domain/0/backend/vbd/7/51744/state = "4"
== vif
rx_packets 12
tx_packets 34
rx_errors 0
tx_errors\x20
== clock
1764600000
{SEPARATOR}
(XEN) %domains
(d7) == vif
{SEPARATOR}

%domains
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0  1024     1     r-----      70.5
fxh-warm-1                                   7   160     1     -b----       8.1
%xenstore
/local/domain/7 = ""
/local/domain/0/backend/vbd/7/51744 = ""
%vifs
vif7.0
%files
%log
123.45
[  100.000000] hello
"""


def test_a_look_is_read() -> None:
    found = look.parse(TEXT, SEPARATOR, "fxh-warm-1", "")
    assert found.states == {"front vbd 51744": "4", "front vif 0": "1", "back vbd 51744": "4"}
    assert found.vif == {"rx_packets": 12, "tx_packets": 34, "rx_errors": 0}
    assert (found.clock, found.memory >> 20, found.inventory.uptime) == (1764600000, 160, 123.45)
    assert "(d7) == vif" in found.xen
    assert {item.name for item in found.inventory.items} >= {"vif7.0", "/local/domain/0/backend/vbd/7/51744"}


def test_the_devices_of_a_domain_in_dom0() -> None:
    text = TEXT.replace("%vifs", '/local/domain/0/backend/vbd/7 = ""\n/local/domain/0/backend/vbd/17/51744 = ""\n%vifs\nvif17.0')
    found = look.parse(text, SEPARATOR, "fxh-warm-1", "")
    assert anonymous(found, 7) == {"vifN.0", "/local/domain/0/backend/vbd/N/51744"}


@given(st.text())
def test_a_broken_look_is_empty(text: str) -> None:
    found = look.parse(text.replace(SEPARATOR, ""), SEPARATOR, "fxh-warm-1", "")
    assert (found.xen, found.memory) == ("", 0)


def test_digests_of_both_tools() -> None:
    one = "0123456789abcdef" * 2
    assert loads.digests(f"{one}  -\n{one}\nnoise") == [one, one]


# -- the case, with guests of our own -------------------------------------------------------------------------------------

LOST = Violation("files and disks keep their content", ("the file has another digest",))


class Played(Walker):
    """A walker whose guest loses a file when it is restored with a small balloon."""

    def __init__(self) -> None:
        self.bounds, self.model = BOUNDS, Model.start(BOUNDS)

    def take(self, step: Step) -> Violation | None:
        self.model = self.model.after(step)
        return LOST if step.event == "save and restore" and self.model.balloon < BOUNDS.whole else None

    def finish(self) -> Violation | None:
        return None

    def close(self) -> None:
        pass


def walking(tmp_path: Path, fresh: Callable[[], Walker] = Played) -> Walk:
    return Walk(fresh, Record(180, "control-pv"), tmp_path / "walk.json")


def test_a_failure_is_found_shrunk_and_repeated(tmp_path: Path) -> None:
    case = walking(tmp_path)
    violation = case.go(Played(), walk.steps(180, BOUNDS), 60)
    assert violation == LOST
    taken = tuple(Step(row["event"], row["value"]) for row in case.record.taken)
    case.record.fail(violation)
    case.shrink(taken, violation, BOUNDS, 60)
    case.write()

    data = json.loads((tmp_path / "walk.json").read_text())
    seed, shortest, shrunk = walk.read(data, "walk.json")
    assert (seed, [step.event for step in shortest], shrunk) == (180, ["balloon", "save and restore"], True)
    assert (data["shrunk"]["failed"], data["shrunk"]["runs"], data["shrunk"]["complete"]) == (3, 3, True)
    assert data["failed"]["step"] == len(taken) == len(data["steps"])
    assert walking(tmp_path).go(Played(), iter(shortest), float("inf")) == LOST

    text = words(case.record, taken, violation, Linux())
    assert re.search(
        r"from seed 180; .*\n.*after step 6 \(save and restore\): not true: files and disks keep their content\n", text
    )
    assert re.search(r"the shortest failing sequence after \d+ tries: balloon 104; save and restore\n", text)
    assert "failed in the same way in 3 of 3 runs" in text


def test_the_file_is_written_before_each_step(tmp_path: Path) -> None:
    class Killed(Played):
        def take(self, step: Step) -> Violation | None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walking(tmp_path).go(Killed(), walk.steps(180, BOUNDS), 60)
    assert walk.read(json.loads((tmp_path / "walk.json").read_text()), "walk.json")[1] == first(180, 1)


def test_a_lost_host_ends_the_search_and_keeps_the_failure(tmp_path: Path) -> None:
    def lost() -> Walker:
        raise InfrastructureError("the lab is gone")

    case = walking(tmp_path, lost)
    case.shrink(first(180, 6), LOST, BOUNDS, 60)
    assert case.record.shrunk["trouble"] == "the lab is gone"
    assert (case.record.shrunk["tries"], case.record.shrunk["complete"], case.record.shrunk["runs"]) == (1, False, 0)
    assert "and the search ended early: the lab is gone: pause 1;" in words(case.record, first(180, 6), LOST, Linux())


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 0), (60.5, 0), (100.5, 0)])
def test_the_search_begins_no_step_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, runs: int
) -> None:
    """Each step takes a second on a fake clock, and the walk has 300 steps. One attempt could take as long as all may."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(Walker):
        def __init__(self) -> None:
            self.bounds, self.model, self.taken = BOUNDS, Model.start(BOUNDS), 0

        taken: int

        def take(self, step: Step) -> Violation | None:
            clock[0] += 1
            self.taken += 1
            return LOST if self.taken >= 290 else None

        def finish(self) -> Violation | None:
            return None

        def close(self) -> None:
            pass

    case = walking(tmp_path, Slow)
    case.shrink(first(180, 300), LOST, BOUNDS, seconds)
    assert clock[0] <= seconds + 1
    assert case.record.shrunk["steps"] == walk.rows(first(180, 300))
    assert (case.record.shrunk["complete"], case.record.shrunk["runs"], case.record.shrunk["trouble"]) == (False, runs, "")
    assert "and the search ended early: pause" in words(case.record, first(180, 300), LOST, Linux())


def test_a_walk_ends_in_time(tmp_path: Path) -> None:
    case = walking(tmp_path)
    assert case.go(Played(), walk.steps(180, BOUNDS), 0) is None
    assert case.record.taken == []


# -- several questions in one command -------------------------------------------------------------------------------------


class Shell:
    """A guest whose shell is the one of this machine."""

    name = "shell"

    def sh(self, command: str, seconds: float = 60) -> str:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout.rstrip("\n")


def test_questions_are_answered_together() -> None:
    def count(run: Run) -> int:
        return len(run("echo one; echo two").splitlines())

    guest = cast(Guest, Shell())
    assert together(guest, count, lambda run: run("printf x"), lambda run: run("true"), lambda run: int(run("echo 7"))) == [
        2,
        "x",
        "",
        7,
    ]
    with pytest.raises(GuestCommandFailed, match="exit status 3"):
        together(guest, count, lambda run: run("echo no; exit 3"))
