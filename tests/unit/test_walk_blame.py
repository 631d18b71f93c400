# SPDX-License-Identifier: BSD-2-Clause
"""Random walks: what counts against the guest, and what against its host, other guests, a known issue or the search itself."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_cases_parts import a_port, peer

from harness.console.complaints import Complaint
from harness.console.deaths import Death
from harness.errors import CommandFailed, GuestCommandFailed, GuestDied, InfrastructureError, UsageError
from harness.guests import hotplug
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.guests.peer import Moved
from harness.hosts import inventory
from harness.hosts.inventory import Inventory
from harness.oracles import walk
from harness.oracles.walk import Bounds, Model, Record, Step, Violation
from harness.osversion import OSVersion
from harness.plugin import known
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import WalkRequest
from harness.plugin.outcome import classify
from suites.lifecycle import loads, test_walk, walker
from suites.lifecycle.invariants import Answers, Invariants
from suites.lifecycle.look import Look
from suites.lifecycle.test_walk import Walk
from suites.lifecycle.walker import Walker

BOUNDS = Bounds()
LOST = Violation("files and disks keep their content", ("x",))
CONTROL = Cell("control", "pv", "xen-4.20", "4.20")
SAVE, ATTACH = Step("save and restore"), Step("attach", "xvdc")
PANIC = Death("panic", "page fault", faulting_function="xbd_connect")
HANG = Death("hang", "no answer")


def failed(stderr: str = "") -> CommandFailed:
    return CommandFailed("xl x", 1, "", stderr)


# -- a step ---------------------------------------------------------------------------------------------------------------


class Acting(Walker):
    """A walker whose steps do ``act``."""

    def __init__(self, act: Callable[[], None], *, guest_os: Any = None, death: Death | None = None) -> None:
        self.bounds, self.model, self.done = BOUNDS, Model.start(BOUNDS), []
        self.guest = SimpleNamespace(os=guest_os or Linux(), console=SimpleNamespace(death=death))  # type: ignore[assignment]
        self.net_load = SimpleNamespace(running=True, wait=lambda: self.done.append("wait"), stop=lambda: None)  # type: ignore[assignment]
        self._invariants = SimpleNamespace(violated=lambda *_: None, finished=lambda: act())  # type: ignore[assignment]
        self._act = act

    done: list[str]

    def _do(self, step: Step) -> None:
        self.done.append(str(step))
        self._act()


def raising(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_a_failed_command_of_dom0_is_not_the_guests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "_DYING", 0)
    with pytest.raises(CommandFailed):
        Acting(raising(failed())).take(ATTACH)
    with pytest.raises(CommandFailed):
        Acting(raising(failed())).finish()
    dead = Acting(raising(failed()), death=PANIC).take(ATTACH)
    assert dead == Violation("the guest lives", (PANIC.summary,)), "xl failed because the domain was gone"


def test_a_failed_command_of_the_guest_is_a_violation() -> None:
    error = GuestCommandFailed("g", "ifconfig", 1, "no")
    lines = tuple(error.message.splitlines())
    assert Acting(raising(error)).take(ATTACH) == Acting(raising(error)).finish() == Violation("the step succeeds", lines)


def test_a_dead_guest_keeps_its_death() -> None:
    found = Acting(raising(GuestDied(PANIC))).take(ATTACH)
    assert found is not None
    assert found.died is not None
    assert (found.invariant, found.died.death, found.silent) == ("the guest lives", PANIC, False)
    hung = Acting(raising(GuestDied(HANG))).take(ATTACH)
    assert hung is not None
    assert (hung.invariant, hung.silent) == ("the guest answers", True)


def test_an_interface_that_does_not_go_is_the_guests_fault() -> None:
    def detaching(stderr: str) -> Any:
        toolstack = SimpleNamespace(network_detach=lambda domid, devid: raising(failed(stderr))())
        return SimpleNamespace(name="g", domid=3, host=SimpleNamespace(toolstack=toolstack))

    with pytest.raises(GuestCommandFailed, match="xl network-detach 1"):
        hotplug.let_go_interface(detaching("Domain 3:unable to remove device with path"), 1)
    with pytest.raises(CommandFailed):
        hotplug.let_go_interface(detaching("cannot open xenstore"), 1)


@pytest.mark.parametrize(("guest_os", "waits"), [(FreeBSD(), True), (Linux(), False)])
def test_streams_end_before_a_save_that_breaks_them(guest_os: Any, waits: bool) -> None:
    acting = Acting(lambda: None, guest_os=guest_os)
    acting.model = acting.model.after(Step("vif down"))
    acting.take(SAVE)
    assert acting.done == (["vif up", "wait", "save and restore"] if waits else ["save and restore"])


# -- the whole case, with guests of our own ---------------------------------------------------------------------------


class Case:
    """Runs the case with walkers that end as ``found`` says, and notes what happens in ``done``."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Violation, host: InfrastructureError | None = None):
        self.done: list[str] = []
        self.trouble: InfrastructureError | None = None
        self.context = CaseContext(tmp_path, CONTROL)
        self.worker_env: Any = SimpleNamespace(
            check_host=lambda cell: self.done.append("check") or host,
            drop_lost_host=lambda cell: self.done.append("drop a lost host"),
        )
        case, numbers = self, itertools.count(1)

        class Fake(Walker):
            def __init__(self, guest: Any, *rest: Any) -> None:
                self.guest, self.bounds, self.model = guest, BOUNDS, Model.start(BOUNDS)

            def take(self, step: Step) -> Violation | None:
                if case.trouble is not None and self.guest.name != "g1":
                    raise case.trouble
                return found

            def close(self) -> None:
                case.done.append(f"close {self.guest.name}")

        def booted(*words: Any, **shape: Any) -> Any:
            guest: Any = SimpleNamespace(name=f"g{next(numbers)}", os=Linux(), domid=3, disks=("x",), explainers=[])
            guest.host = SimpleNamespace(checkpoints=object())
            guest.abandon = lambda: None
            self.done.append(f"boot {guest.name}")
            self.context.guests.append(guest)
            return guest

        self.booted: Any = booted
        monkeypatch.setattr(test_walk, "Walker", Fake)
        monkeypatch.setattr(test_walk.lost_data, "rows", lambda *_: ("cause: a lost frame",))
        monkeypatch.setattr(test_walk.evidence, "gather", self._gather)

    def _gather(self, context: CaseContext, *, silent: bool) -> None:
        self.done.append(f"gather {' '.join(guest.name for guest in context.guests)}{' silent' if silent else ''}")

    def run(self) -> None:
        scratch: Any = None
        test_walk.test_random_walk(WalkRequest(60, 1), self.booted, scratch, self.worker_env, CONTROL, self.context)


def test_the_evidence_of_a_dead_guest_comes_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, Violation("the guest lives", ("panic",), GuestDied(PANIC)))
    with pytest.raises(GuestDied) as caught:
        case.run()
    assert case.done[:4] == ["boot g1", "gather g1", "close g1", "boot g2"]
    assert case.context.gathered
    assert [(guest.name, guest.domid) for guest in case.context.guests] == [("g1", -1)], "the result is that of the first guest"
    found = classify(caught.value)
    assert found.death == PANIC
    assert found.death.identity
    assert found.reason.startswith(f"{PANIC.summary}\n")
    assert "the shortest failing sequence after" in found.reason
    assert "not true: the guest lives" in found.reason


@pytest.mark.parametrize("died", [None, GuestDied(HANG)])
def test_a_broken_host_is_found_before_the_search(died: GuestDied | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, Violation("the guest answers", ("no",), died), InfrastructureError("dom0 is silent"))
    with pytest.raises(InfrastructureError, match=r"dom0 is silent\n\(first finding: not true: the guest answers"):
        case.run()
    assert case.done == ["boot g1", "check", "close g1"]


def test_a_hang_is_examined_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, Violation("the guest answers", ("no",), GuestDied(HANG)))
    with pytest.raises(GuestDied):
        case.run()
    assert case.done[:3] == ["boot g1", "check", "gather g1 silent"]


def test_another_violation_has_the_cause_that_was_seen_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, Violation("dom0 and the guest reach each other", ("no",)))
    with pytest.raises(pytest.fail.Exception, match="cause: a lost frame"):
        case.run()
    assert case.done[:3] == ["boot g1", "check", "gather g1"]


def test_a_host_that_breaks_in_the_search_does_not_replace_the_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, monkeypatch, LOST)
    case.trouble = InfrastructureError("the lab is gone")
    with pytest.raises(pytest.fail.Exception, match="the search ended early: the lab is gone"):
        case.run()
    assert case.done[3:] == ["close g1", "boot g2", "close g2", "drop a lost host"]


# -- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AssertionError("no link\nmore"), ValueError("no link"), pytest.skip.Exception("no link")])
def test_an_error_in_the_search_keeps_the_finding(error: BaseException, tmp_path: Path) -> None:
    closed: list[int] = []

    class Broken(Walker):
        def __init__(self) -> None:
            self.model = Model.start(BOUNDS)

        def take(self, step: Step) -> Violation | None:
            raise error

        def close(self) -> None:
            closed.append(1)

    case = Walk(Broken, Record(1, "control-pv"), tmp_path / "walk.json")
    case.shrink((ATTACH, SAVE), LOST, BOUNDS, 60)
    assert (case.record.shrunk["trouble"], case.record.shrunk["runs"], closed) == ("no link", 0, [1])


def test_a_search_that_met_trouble_in_its_last_attempt_is_not_complete(tmp_path: Path) -> None:
    walkers = iter([LOST, InfrastructureError("the lab is gone")])

    class Last(Walker):
        def __init__(self) -> None:
            self.model, self.end = Model.start(BOUNDS), next(walkers)

        def take(self, step: Step) -> Violation | None:
            if isinstance(self.end, InfrastructureError):
                raise self.end
            return self.end

        def close(self) -> None: ...

    case = Walk(Last, Record(1, "control-pv"), tmp_path / "walk.json")
    case.shrink((ATTACH,), LOST, BOUNDS, 60)
    assert case.record.shrunk["complete"] is False
    assert case.record.shrunk["trouble"] == "the lab is gone"


def test_a_replay_takes_all_steps_or_none() -> None:
    given = (ATTACH, Step("detach", "xvdc"))
    assert walk.repeated(given, BOUNDS, "w.json") == given
    for wrong in ((Step("detach", "xvdc"),), (ATTACH, ATTACH), (Step("balloon", 9999), ATTACH)):
        with pytest.raises(UsageError, match=r"w\.json: step \d \(.*\) is not possible with this guest\n  hint: give"):
            walk.repeated(wrong, BOUNDS, "w.json")


# -- other guests, known issues and answers that settle ---------------------------------------------------------------


def test_lines_about_other_domains_do_not_count() -> None:
    own = (
        "vif vif-7-0 vif7.0: Guest Rx stalled\n", "(XEN) grant_table.c:1:d0v1 Bad grant reference 0x1 from d7\n",
        "xen-blkback: backend/vbd/7/51712: error\n", "(XEN) d0v0 Bad flags\n", "Linux BUG\n", "(XEN) d7 attempted to map from d8\n",
    )  # fmt: skip
    foreign = (
        "vif vif-8-0 vif8.0: Guest Rx stalled\n", "(XEN) grant_table.c:1:d0v1 Bad grant reference 0x1 from d8\n",
        "xen-blkback: backend/vbd/8/51712: error\n", "vbd vbd-77-51712: 22 mapping\n", "(XEN) d8v0 Bad flags\n",
    )  # fmt: skip
    assert walk.of_domains("".join(itertools.chain(foreign, own)), {6, 7}) == "".join(own)


def test_the_console_client_of_another_guest_is_no_leak() -> None:
    row = "fxh-x {0} 160 1 -b---- 1.0\n"
    head = "%domains\nDomain-0 0 768 1 r----- 1.0\n"
    client = "%files\n/proc/9/cmdline:/usr/lib/xen-4.20/bin/xenconsole\0{0}\0--num\0000\0--type\0pv\n"
    before = inventory.parse(f"{head}%files\n")
    assert inventory.parse(head + row.format(8) + client.format(8)).leaks_since(before) == ()
    (left,) = inventory.parse(head + row.format(8) + client.format(9)).leaks_since(before)
    assert left.owner == 9


class Judge(Invariants):
    """Judges looks and answers that are given."""

    def __init__(self, later: tuple[Look, Answers], *, checkpoints: object = None) -> None:
        host = SimpleNamespace(checkpoints=checkpoints)
        console = SimpleNamespace(offset=0, since=lambda *_: b"")
        self.guest: Any = SimpleNamespace(domid=7, host=host, scale=1.0, console=console)
        self._domids, self._console, self._later, self._cpus = {7}, 0, later, 1
        self._expected = lambda complaint: False

    def _look(self) -> Look:
        return self._later[0]

    def _ask(self) -> Answers:
        return self._later[1]


def seen(log: str = "", uptime: float = 100.0, xen: str = "") -> Look:
    return Look({}, {}, 0, xen, Inventory(frozenset(), (), log, uptime), 0)


def said(mtu: int = 1500, cpus: int = 1) -> Answers:
    return Answers(frozenset(), frozenset(), mtu, 0, {"tso": True}, cpus, 0, "", {})


STALLED = "[  105.000000] vif vif-{}-0 vif{}.0: Guest Rx stalled\n"


def test_complaints_count_from_the_last_look() -> None:
    judge = Judge((seen(), said()))
    judge._last = seen(uptime=110.0)
    assert judge._complaints(seen(STALLED.format(7, 7), 190.0)) == [], "it was there at the last look"
    judge._last = seen(uptime=104.0)
    assert len(judge._complaints(seen(STALLED.format(7, 7), 190.0))) == 1, "however long the steps took"
    judge._last = seen(uptime=104.0)
    assert judge._complaints(seen(STALLED.format(8, 8), 190.0)) == [], "another guest"


def test_a_known_complaint_is_no_violation() -> None:
    judge, asked = Judge((seen(), said())), list[Complaint]()
    judge._last = seen(uptime=104.0)
    judge._expected = lambda complaint: not asked.append(complaint)
    assert judge._complaints(seen(STALLED.format(7, 7))) == []
    assert [complaint.kind for complaint in asked] == ["netback"]


def test_the_last_answers_are_judged() -> None:
    late = seen(), said(mtu=1400)
    judge = Judge(late)
    model = Model.start(BOUNDS).after(Step("mtu", 1400))
    lines, *now = judge._settle(seen(), said(), lambda *now: judge._settings(model, now[1]))
    assert (lines, now) == ([], list(late))


def test_a_cpu_may_come_a_moment_later() -> None:
    judge = Judge((seen(), said(cpus=2)))
    start = Model.start(BOUNDS)
    model = start.after(Step("vcpus", 2))
    lines, _, now = judge._settle(seen(), said(cpus=3), lambda *now: judge._cpu_count(model, start, now[1].cpus))
    assert (lines, now.cpus) == ([], 2)


FAULT, IN_WALK = "trap: Fatal trap 12: page fault while in kernel mode", "\nobserved: after step 4 ({}): not true: the guest lives"
AT_SAVE = IN_WALK.format("save and restore")
PLACE = " in xen_intr_disable_source() [stage login]"


@pytest.mark.parametrize(("version", "kind", "reason", "excused"), [
    ("15.1", "pvh", "its program ended with 'nc: polling error: Interrupted system call'", True),
    ("15.1", "pvh", FAULT + PLACE + AT_SAVE, False),
    ("14.2", "pvh", FAULT + PLACE + AT_SAVE, True),
    ("13.2", "pvh", FAULT + AT_SAVE, True),
    ("13.2", "pvh", FAULT + IN_WALK.format("attach xvdc"), False),
])  # fmt: skip
def test_known_bugs_of_a_save_are_known_in_a_walk(version: str, kind: str, reason: str, excused: bool) -> None:
    cell = Cell("freebsd", kind, "xen-4.20", "4.20", OSVersion(version))
    (issue, *_) = known.covering(known.load(Path(test_walk.__file__).parent.parent), test_walk.CASE, cell)
    assert issue.sometimes
    assert issue.excuses(reason) is excused
    assert issue.since <= datetime.date(2026, 12, 1)


# -- streams ----------------------------------------------------------------------------------------------------------


class Stream:
    """A link that notes what is started on it."""

    def __init__(self) -> None:
        self.started: list[tuple[object, ...]] = []

    def peer(self, *words: object) -> Any:
        self.started.append(words)
        return SimpleNamespace(result=lambda seconds: Moved(5, "a" * 32, 1.0, "TimeoutError"), stop=lambda: None)

    def source(self, port: int, size: int, *, lasting: float, patience: float) -> Any:
        return self.peer("send", patience)

    def receive(self, port: int, seconds: float) -> None: ...

    def send(self, port: int, path: str, seconds: float) -> None: ...

    def said(self) -> str:
        return ", and its program ended with 'polling error'"

    def unsent(self, came: Moved, sent: str) -> str:
        return f"{came.error}{self.said()}"

    incomplete = unsent


@pytest.mark.parametrize("way", ["to dom0", "to the guest"])
def test_dom0_waits_as_long_as_a_step_may_take_and_the_guests_words_are_kept(way: str) -> None:
    guest: Any = SimpleNamespace(scale=2.0, sh=lambda command: "b" * 32)
    load, link = loads.NetLoad(guest), Stream()
    load.start(link, way)  # type: ignore[arg-type]
    assert link.started[0][-1] == 3 * loads.PATIENCE * 2.0
    load.poll()
    assert load.wrong == [f"{way}: TimeoutError, and its program ended with 'polling error'"]


@pytest.mark.parametrize("words", [("recv", "5", "0.2"), ("send", "5", "7", "5", "0", "0.2")])
def test_a_peer_waits_for_its_guest_as_long_as_for_data(words: tuple[str, ...]) -> None:
    said = peer(words[0], a_port(1), *words[1:])
    said.until(b"listening")
    assert b"timed out" in said.until(rb"{[^}]*}", 10)[0]
    said.stream.close()
