# SPDX-License-Identifier: BSD-2-Clause
"""A worker's hosts between cases. The host is a fake; the checkpoints of a lab are real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.console.deaths import Death
from harness.errors import CommandFailed, DeadlineExpired, GuestDied, InfrastructureError, TransportError
from harness.guests.guest import Guest
from harness.guests.shape import Shape
from harness.hosts.inventory import Inventory, Item
from harness.lab import factory, suite_checkpoints
from harness.lab.checkpoint import CheckpointKind
from harness.lab.suite_checkpoints import SuiteCheckpoints
from harness.plugin import guest_factory, hold_guest, leak_guard
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.worker_env import WorkerEnvironment
from harness.plugin.worker_hosts import HeldHost, WorkerHosts
from harness.xen.config import DomainConfig

CELL = Cell("control", "pv", "xen-4.20", "4.20")


class FakeLab:
    """Remembers which checkpoints exist, and to which the lab was restored."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.built: dict[str, str] = {}
        self.restored: list[str] = []
        self.lab = SimpleNamespace(checkpoints=SimpleNamespace(hot=False))
        self.lease = None
        self.failure = ""
        self.closed = False
        self.facts = SimpleNamespace(emulated=True)
        self.directory = "/ours"
        self.transport = SimpleNamespace(run=lambda argv: None)
        self.checkpoints: SuiteCheckpoints | None = SuiteCheckpoints(self)  # type: ignore[arg-type]

    def get_or_create(
        self,
        kind: CheckpointKind,
        key: str,
        build: Callable[[], str],
        *,
        exclusive: bool = True,
        private_memory: bool = False,
        what: str = "",
    ) -> Any:
        name = kind.name_of(key)
        if name not in self.built:
            self.built[name] = build()
        self.restored.append(name)
        directory = self.place / name
        directory.mkdir(exist_ok=True)
        return SimpleNamespace(note=self.built[name], directory=directory, remove=directory.rmdir)

    def restore_idle(self, *, private_memory: bool = False) -> None:
        self.restored.append("ready")

    def files(self, *local: Path) -> None: ...

    def record_xenstore(self, prefix: str) -> None: ...

    def inventory(self) -> Inventory:
        return Inventory(frozenset(), ())

    def hypervisor_log(self) -> str:
        return ""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def lab(tmp_path: Path) -> FakeLab:
    return FakeLab(tmp_path)


@pytest.fixture
def worker_env(lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerEnvironment:
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(suite_checkpoints.prune, "bound", lambda: ())
    made = WorkerEnvironment(SimpleNamespace(host="", xens=("4.20",), control=tmp_path, scale=1.0, symbols=()))  # type: ignore[arg-type]
    monkeypatch.setattr(made._hosts, "_start_lab", lambda xen: lab)
    return made


def test_a_lab_is_reset_only_after_use(worker_env: WorkerEnvironment, lab: FakeLab) -> None:
    worker_env.host(CELL)
    (rest,) = lab.built
    assert rest.startswith("rest-")
    assert lab.restored[-1] == rest
    before = len(lab.restored)
    worker_env.host(CELL)
    assert len(lab.restored) == before, "it was not used"
    worker_env.mark_used(CELL)
    worker_env.host(CELL)
    assert lab.restored[before:] == [rest]


def test_a_lab_is_reset_after_a_warm_guest_was_built_in_it(worker_env: WorkerEnvironment, lab: FakeLab) -> None:
    """The build of a warm checkpoint starts from the idle dom0; afterwards, the guest runs."""
    worker_env.host(CELL)
    (rest,) = lab.built
    assert lab.checkpoints is not None

    def build() -> str:
        worker_env._hosts.reset(CELL, worker_env._hosts._usable(CELL), private_memory=True)
        return ""

    lab.restored.clear()
    lab.checkpoints.warm("1", build)
    worker_env.host(CELL)
    assert lab.restored == [rest, "warm-1", rest]


def test_a_warm_guest_that_is_built_again_starts_from_an_idle_dom0(worker_env: WorkerEnvironment, lab: FakeLab) -> None:
    """The first save of a hot checkpoint may be unusable; then the build runs a second time."""
    worker_env.host(CELL)
    (rest,) = lab.built
    assert lab.checkpoints is not None

    def build() -> str:
        worker_env._hosts.reset(CELL, worker_env._hosts._usable(CELL), private_memory=True)
        return ""

    def twice(kind: CheckpointKind, key: str, build: Callable[[], str], **_: object) -> Any:
        if kind is not CheckpointKind.WARM:
            return once(kind, key, build)
        build()
        return once(kind, key, build)

    once = lab.get_or_create
    lab.get_or_create = twice  # type: ignore[method-assign]
    lab.restored.clear()
    lab.checkpoints.warm("1", build)
    assert lab.restored == [rest, rest, "warm-1"]


def test_a_lost_host_is_replaced(
    worker_env: WorkerEnvironment, lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_env.host(CELL)
    lab.failure = "dom0 gave no sign of life"
    other = FakeLab(tmp_path)
    monkeypatch.setattr(worker_env._hosts, "_start_lab", lambda xen: other)
    assert worker_env.host(CELL) is other
    assert lab.closed


def test_a_warm_checkpoint_without_a_console_is_removed(
    worker_env: WorkerEnvironment, lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = json.dumps({"config": asdict(DomainConfig("g", "pv", 160)), "domid": 2, "stages": [], "prepared": None})
    monkeypatch.setattr(worker_env._guests, "_boot_to_save", lambda *args: note)

    def locked(guest: Guest, domid: int) -> Guest:
        raise TransportError("Could not lock /var/lock/xenconsole.2")

    monkeypatch.setattr(Guest, "adopt", locked)
    with pytest.raises(TransportError):
        worker_env.booted_guest(CELL, CaseContext(tmp_path), Shape("pv"))
    (warm,) = (name for name in lab.built if name.startswith("warm-"))
    assert not (tmp_path / warm).exists()


def test_a_case_has_the_guest_that_died_before_its_warm_checkpoint(
    worker_env: WorkerEnvironment, lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the evidence of the failure has nothing from dom0, Xen and the guest."""

    def dies(guest: Guest) -> None:
        raise GuestDied(Death("panic", "panic: no root"))

    monkeypatch.setattr(Guest, "boot", dies)
    monkeypatch.setattr(guest_factory, "build_domain_config", lambda host, source, shape, name: DomainConfig(name, "pv", 160))
    context = CaseContext(tmp_path)
    with pytest.raises(GuestDied):
        worker_env.booted_guest(CELL, context, Shape("pv"))
    (guest,) = context.guests
    assert (guest.name.startswith("fxh-warm-"), context.host, context.prepared) == (True, lab, [])


def test_a_host_that_does_not_answer_is_asked_once(worker_env: WorkerEnvironment, lab: FakeLab) -> None:
    """Otherwise each request after a failed case would wait for its full time-out. A lab ends its waits itself."""
    asked = []

    def check() -> None:
        asked.append(1)
        raise TransportError("no answer")

    lab.check = check  # type: ignore[attr-defined]
    lab.transport.close = lambda: None
    worker_env.host(CELL)
    assert str(worker_env.check_host(CELL)) == str(worker_env.check_host(CELL)) == "no answer"
    assert len(asked) == 2
    lab.checkpoints = None
    assert str(worker_env.check_host(CELL)) == str(worker_env.check_host(CELL)) == "no answer"
    assert len(asked) == 3


@pytest.mark.parametrize("restorable", [True, False])
def test_a_leak_is_reported_once_and_given_resources_are_none_on_a_lab(
    lab: FakeLab, restorable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leak_guard, "_PAUSES", (0.0,))
    if not restorable:
        lab.checkpoints = None
    held = HeldHost(lab, Inventory(frozenset(), ()))  # type: ignore[arg-type]
    left = frozenset({Item("directory", "/ours/scratch"), Item("loop", "/dev/loop0")})
    lab.inventory = lambda: Inventory(left, ())  # type: ignore[method-assign]
    context = CaseContext(tmp_path, own_resources=["/ours/scratch"])
    first = {item.name for item in leak_guard.leaks(held, context)}
    assert first == {"/dev/loop0"} | (set() if restorable else {"/ours/scratch"})
    again = {item.name for item in leak_guard.leaks(held, context)}
    assert again == ({"/dev/loop0"} if restorable else set())


def test_undo_steps_run_where_nothing_is_restored(worker_env: WorkerEnvironment, lab: FakeLab, tmp_path: Path) -> None:
    done: list[int] = []

    def fails() -> None:
        raise InfrastructureError("no")

    context = CaseContext(tmp_path, host=lab, undo=[lambda: done.append(1), fails, lambda: done.append(2)])  # type: ignore[arg-type]
    worker_env.clean_up(context)
    assert done == []
    lab.checkpoints = None
    worker_env.clean_up(context)
    assert done == [2, 1]


def test_only_guests_that_the_host_keeps_are_announced() -> None:
    from harness.hosts.access import Access

    paused: list[int] = []

    class Host:
        transport = SimpleNamespace(run=lambda argv, deadline: SimpleNamespace(text=""))
        toolstack = SimpleNamespace(pause=paused.append)

        def describe_access(self) -> Access:
            return Access("fxh lab ssh l", "--lab l", "/root", "fxh lab rm l")

        def keep_for(self, domains: list[str], seconds: float) -> tuple[str, ...]:
            assert (domains, seconds) == (["one", "two"], 300.0)
            return ("two",)

    def guest(name: str, row: Any) -> Any:
        config = SimpleNamespace(serial_console=name == "two")
        return SimpleNamespace(name=name, state=lambda: row, detach=lambda: None, config=config)

    running, crashed = (SimpleNamespace(domid=n, paused=False, shutdown=n == 7) for n in (5, 7))
    text = hold_guest.keep(Host(), [guest("one", running), guest("two", crashed), guest("gone", None)], 5)  # type: ignore[arg-type]
    assert paused == [5]
    assert text.startswith("two (domain 7) is kept, paused, until ")
    assert "fxh console two --serial --lab l" in text
    assert text.endswith("  remove it  fxh lab rm l")
    assert "one" not in text


def test_a_lab_that_does_not_start_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        removed = False

        def up(self) -> None:
            raise InfrastructureError("dom0 does not answer")

        def remove(self) -> None:
            self.removed = True

    lab = Failing()
    monkeypatch.setattr(factory, "make", lambda spec: lab)
    options: Any = SimpleNamespace(host="", lab_spec=lambda xen: xen)
    hosts = WorkerHosts.__new__(WorkerHosts)
    hosts._options = options
    with pytest.raises(InfrastructureError, match="does not answer"):
        hosts._start_lab("4.20")
    assert lab.removed


def test_a_guest_that_cannot_be_removed_does_not_keep_the_next(tmp_path: Path) -> None:
    done: list[str] = []

    def removed(name: str, error: str = "") -> Any:
        def destroy() -> None:
            done.append(name)
            if error:
                raise DeadlineExpired(f"waited 60 s for {name} to be gone")

        def drop(target: str) -> None:
            done.append(target)
            if error:
                raise CommandFailed("losetup", 1, "", error)

        host = SimpleNamespace(checkpoints=None, drop_disk=drop, forget=lambda domain: done.append(f"log of {domain}"))
        return SimpleNamespace(name=name, host=host, destroy=destroy, disks=[SimpleNamespace(target=f"disk of {name}")])

    context = CaseContext(tmp_path)
    context.guests += [removed("one", "busy"), removed("two")]
    context.remove_guests()
    assert done == ["one", "disk of one", "log of one", "two", "disk of two", "log of two"]
