# SPDX-License-Identifier: BSD-2-Clause
"""Hung hosts that come back by their power, and hosts that are prepared. The power switch and dom0 are fakes."""

from __future__ import annotations

import email
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config.commands import PowerCommands
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import AccessError, DeadlineExpired, InfrastructureError, Refused, TransportError, UsageError
from harness.hosts import operator_mail, pool, prepare, recovery
from harness.hosts.direct import DirectHost
from harness.hosts.doctor import FAIL, OK, Check
from harness.hosts.host import HostFacts
from harness.hosts.lease import HEARTBEAT, SILENCE, LeaseRequest
from harness.hosts.pool import HostPool
from harness.hosts.power import PowerError, interrupted
from harness.hosts.record import HUNG, UNPREPARED, HostRecord, directory, set_aside
from harness.hosts.recovery import MOST, Recovery
from harness.plugin.host_provider import HostProvider
from harness.transport import Completed, Transport

GRACE = recovery._GRACE
XEN1 = HostConfig("xen1", name="xen1", power=PowerCommands(cycle=("true",)), prepare=(sys.executable, "-c", "pass"))
XEN2 = HostConfig("xen2", name="xen2")
INFO = (
    "xen_major : 4\nxen_minor : 22\nxen_extra : -unstable\nxen_caps : hvm-3.0-x86_64\ntotal_memory : 1\nfree_memory : 1\nnr_cpus : 1\n"
    "release : 7.1.0\nversion : #3 SMP\nxen_changeset : Mon Jul 27 09:00:00 2026 +0200 git:0123456789-dirty\nbuild_id : 0011aabb\n"
)


class Machine:
    """A host with a power switch, and the transport to its dom0."""

    name = "xen1"

    def __init__(self) -> None:
        self.boots, self.hangs, self.cycles = 1, True, 0
        self.comes_back = self.reboots = True
        self.refusal: InfrastructureError | None = None
        self.broken: Exception | None = None
        self.stuck = self.silent = 0
        """How many commands hang, and how many connections fail, before the host answers."""
        self.commands: list[str] = []

    # -- the power switch

    def cycle(self) -> None:
        self.cycles += 1
        if self.broken:
            raise self.broken
        if self.comes_back:
            self.boots, self.hangs, self.stuck = self.boots + 1, False, 0

    def on(self) -> None: ...

    def off(self) -> None: ...

    def status(self) -> bool | None:
        return True

    # -- dom0

    def connect(self) -> Transport:
        if self.refusal:
            raise self.refusal
        if self.silent:
            self.silent -= 1
            raise TransportError("no banner yet")
        if self.hangs:
            raise TransportError("no banner")
        return self  # type: ignore[return-value]

    def run(self, argv: list[str], deadline: object = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        line = " ".join(argv)
        self.commands.append(line)
        if self.stuck:
            self.stuck -= 1
            raise DeadlineExpired("xl info did not end within 30 s")
        if "reboot)" in line and self.comes_back and self.reboots:
            self.boots += 1
        out = INFO if argv == ["xl", "info"] else f"boot-{self.boots}\n"
        return Completed(tuple(argv), 0, out.encode(), b"")

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    for name, value in (("_GRACE", 0.05), ("_BOOT", 0.5), ("_PAUSE", 0.01)):
        monkeypatch.setattr(recovery, name, value)
    monkeypatch.setattr(prepare, "_BOOT", 0.3)
    monkeypatch.setattr(pool, "_PAUSE", 0.02)
    monkeypatch.setattr(recovery.doctor, "examine", lambda config, connect: (Check("xen", OK, "4.22"),))
    monkeypatch.setattr(prepare.lease, "survey", lambda transport: {"leases": []})


@pytest.fixture
def machine() -> Machine:
    return Machine()


def recover(machine: Machine, report: Callable[[str, str], None] = lambda name, why: None) -> Recovery:
    found = Recovery(XEN1, machine, machine.connect, "no heartbeat", "boot-1", report)
    found.start()
    found._thread.join(10)
    assert not found.running
    return found


def test_a_hung_host_is_power_cycled(machine: Machine) -> None:
    assert recover(machine).error is None
    assert (machine.cycles, HostRecord("xen1").cycles) == (1, 1)
    assert machine.boots == 2


def test_a_host_that_answers_keeps_its_power(machine: Machine) -> None:
    machine.hangs = False
    found = recover(machine)
    assert (found.error, machine.cycles) == (None, 0)
    assert found.answered > 0


@pytest.mark.parametrize("refusal", [AccessError("its host key differs"), AccessError("jump host: no route")])
def test_a_host_that_refuses_us_keeps_its_power(machine: Machine, refusal: AccessError) -> None:
    machine.refusal = refusal
    found = recover(machine)
    assert machine.cycles == 0
    assert found.error is not None
    assert found.error.message == refusal.message


def test_a_power_command_that_fails(machine: Machine) -> None:
    machine.broken = PowerError(
        "hosts.xen1.power.cycle: ipmitool failed with exit status 1", hint="the operator of xen1 must run it"
    )
    found = recover(machine)
    assert found.error is not None
    assert str(found.error).endswith("exit status 1\n  hint: the operator of xen1 must run it")
    assert set_aside("xen1") is None, "it is tried again"


def test_a_power_command_that_does_nothing(machine: Machine) -> None:
    machine.comes_back = False
    found = recover(machine)
    assert found.error is not None
    assert re.search(r"xen1: its power was cycled without success: waited \d+\.\d s for dom0 of xen1", found.error.message)
    assert "last reason: no banner; the power is on" in found.error.message
    assert "the operator of xen1 must look at its console, and check that hosts.xen1.power switches this host" in found.error.hint


def test_a_host_that_wakes_up_without_a_restart_was_not_cycled(machine: Machine) -> None:
    machine.comes_back = False
    machine.cycle = lambda: setattr(machine, "hangs", False)  # type: ignore[method-assign]
    found = recover(machine)
    assert found.error is not None
    assert "it answers, but it was not restarted" in found.error.message


def test_a_host_that_boots_unfit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery.doctor, "examine", lambda config, connect: (Check("bridge", FAIL, "no xenbr0"),))
    found = recover(machine)
    assert found.error is not None
    assert "fxh doctor: bridge: no xenbr0" in found.error.message


def test_three_times_in_an_hour(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[str] = []
    for _ in range(MOST):
        machine.hangs = True
        assert recover(machine, lambda name, why: reports.append(name)).error is None
    machine.hangs = True
    found = recover(machine, lambda name, why: reports.append(name))
    assert machine.cycles == MOST
    assert found.error is not None
    assert "xen1 is set aside since 2" in found.error.message
    assert "fxh hosts xen1 --return" in found.error.hint
    assert reports == ["xen1"]
    machine.hangs = False
    with HostRecord("xen1").locked():
        assert HostRecord("xen1").use_again()
        assert not HostRecord("xen1").use_again()
    machine.hangs = True
    assert recover(machine).error is None
    later = recovery.time.time() + 3601
    monkeypatch.setattr("harness.hosts.record.time.time", lambda: later)
    assert HostRecord("xen1").cycles == 0, "an old power cycle does not count"


def test_a_third_failure_sets_the_host_aside_and_is_mailed_once(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "fxh.toml"
    config.write_text('[mail]\nto = ["devs@x"]\ninfrastructure_to = ["ops@x"]\n')
    monkeypatch.setenv("FXH_CONFIG", str(config))
    machine.broken = PowerError("hosts.xen1.power.cycle: failed", hint="act")
    record = HostRecord("xen1")
    (record.directory / "serial.log").write_bytes(b"(XEN) Panic on CPU 0:\x1b[2J\n")
    for _ in range(MOST + 2):
        found = Recovery(XEN1, machine, machine.connect, "no ssh", "", operator_mail.report)
        found.start()
        found._thread.join(10)
    assert machine.cycles == MOST
    mail = email.message_from_bytes((record.directory / "infrastructure.eml").read_bytes())
    assert mail["To"] == "ops@x"
    assert mail["Subject"].startswith("[fxh infrastructure] host xen1 is set aside")
    text = mail.get_payload()
    assert isinstance(text, str)
    assert "This says nothing about FreeBSD." in text
    assert "cycled 3 times within an hour; last: hosts.xen1.power.cycle: failed (first sign: no ssh)" in text
    assert "(XEN) Panic on CPU 0:\n" in text


def test_a_host_that_boots_is_not_cycled_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier recovery ended before the boot did."""
    monkeypatch.setattr(recovery, "_BOOT", 10.0)
    for _ in range(MOST):
        HostRecord("xen1").note_cycle()
    machine.hangs, machine.silent = False, 50
    found = recover(machine)
    assert (found.error, machine.cycles, machine.silent) == (None, 0, 0)
    assert HostRecord("xen1").booting > 3600
    assert set_aside("xen1") is None


def test_a_boot_that_does_not_end_is_a_hang(machine: Machine) -> None:
    HostRecord("xen1").note_cycle()
    assert recover(machine).error is None
    assert (machine.cycles, HostRecord("xen1").cycles) == (1, 2)
    machine.hangs = True
    assert recover(machine).error is None
    assert machine.cycles == 2, "the last boot ended, so it is not waited for"


def test_a_stopped_recovery_leaves_its_boot_to_the_next_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_BOOT", 10.0)
    machine.comes_back = False
    first = Recovery(XEN1, machine, machine.connect, "no heartbeat", "boot-1")
    first.start()
    deadline = Deadline(10)
    while not machine.cycles and not deadline.expired:
        time.sleep(0.01)
    first.stop()
    assert HostRecord("xen1").booting < 10
    machine.boots, machine.hangs, machine.silent = 2, False, 20
    assert recover(machine).error is None
    assert machine.cycles == 1


def test_the_end_of_a_run_sets_no_host_aside(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_GRACE", 60.0)
    record = HostRecord("xen1")
    for _ in range(MOST):
        record.note_cycle()
    record.note_boot_ended()
    reports: list[str] = []
    found = Recovery(XEN1, machine, machine.connect, "no heartbeat", "boot-1", lambda name, why: reports.append(name))
    found.start()
    found.stop()
    assert (found.error, reports, machine.cycles) == (None, [], 0)
    assert set_aside("xen1") is None


@pytest.mark.parametrize(("stuck", "silent", "cycles"), [(2, 0, 0), (2, 2, 0), (0, 2, 0), (3, 0, 1), (0, 3, 1)])
def test_a_loaded_host_keeps_its_power(
    machine: Machine, stuck: int, silent: int, cycles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow attempts use up the time: at least three of one kind count."""
    monkeypatch.setattr(recovery, "_GRACE", 0.0)
    machine.hangs, machine.stuck, machine.silent = False, stuck, silent
    assert recover(machine).error is None
    assert machine.cycles == cycles


def test_the_grace_is_that_of_a_lease() -> None:
    assert GRACE == HEARTBEAT + SILENCE


def test_the_end_of_a_run_does_not_wait_for_the_boot(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_BOOT", 600.0)
    cycled = threading.Event()
    machine.cycle = cycled.set  # type: ignore[method-assign]
    found = Recovery(XEN1, machine, machine.connect, "no heartbeat")
    found.start()
    assert cycled.wait(10)
    found.stop()
    assert not found.running
    assert found.error is None
    with HostRecord("xen1").locked() as held:
        assert held, "the lock is free"


# -- in a pool --------------------------------------------------------------------------------------------------------


class Leased(DirectHost):
    """A host without a lease agent."""

    def acquire(self, request: LeaseRequest, deadline: Deadline) -> None:
        self.transport.run(["lease"])

    def check(self) -> None: ...

    def close(self) -> None: ...


def pooled(machine: Machine, *configs: HostConfig) -> HostPool:
    other = Machine()
    other.hangs = False

    def connected(config: HostConfig, what: str) -> Leased:
        return Leased(machine.connect() if config is XEN1 else other.connect(), config=config)

    return HostPool(configs, connect=connected, power=lambda config: machine if config.power else None)  # type: ignore[arg-type, return-value]


REQUEST = LeaseRequest("", 1)


def test_a_hung_host_is_waited_for_and_used_again(machine: Machine) -> None:
    machine.hangs = False
    hosts = pooled(machine, XEN1)
    hosts.acquire(REQUEST, Deadline(5))
    machine.hangs = True
    hosts.mark_lost("xen1", "no heartbeat", "abc123", hangs=True)
    assert hosts.acquire(REQUEST, Deadline(20)).config.name == "xen1"
    assert machine.cycles == 1
    hosts.close()


def test_a_host_that_an_interrupted_power_cycle_left_off_is_switched_on_before_it_is_used(machine: Machine) -> None:
    directory("xen1").mkdir(parents=True)
    for on, cycles in ((True, 0), (False, 1)):
        (directory("xen1") / "off-and-on").write_text("2026-12-01T03:00:00Z")
        machine.hangs, machine.status = False, lambda on=on: on  # type: ignore[method-assign]
        hosts = pooled(machine, XEN1)
        assert hosts.acquire(REQUEST, Deadline(20)).config.name == "xen1"
        assert machine.cycles == cycles
        assert interrupted("xen1") == ""
        hosts.close()
    assert HostRecord("xen1").cycles == 0, "it was no hang"


def test_another_host_is_used_while_one_comes_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_BOOT", 600.0)
    machine.comes_back = False
    hosts = pooled(machine, XEN1, XEN2)
    hosts.mark_lost("xen1", "no heartbeat", hangs=True)
    assert hosts.acquire(REQUEST, Deadline(20)).config.name == "xen2"
    assert "it hung and is being brought back: no heartbeat" in hosts._unusable(XEN1)
    hosts.close()


def test_a_host_whose_power_fails_is_an_infrastructure_error_that_names_who_must_act(machine: Machine) -> None:
    machine.broken = PowerError("hosts.xen1.power.cycle: failed", hint="the operator of xen1 must act")
    hosts = pooled(machine, XEN1)
    hosts.report = lambda name, why: None
    hosts._lost_leases["xen1"] = "abc123"  # a host that was held is waited for, but not one that is set aside
    with pytest.raises(
        InfrastructureError,
        match=r"(?s)no host works:.*xen1 is set aside since .*hosts\.xen1\.power\.cycle: failed.*the operator of xen1 must",
    ):
        hosts.acquire(REQUEST, Deadline(60))
    assert machine.cycles == MOST


@pytest.mark.parametrize("error", [AccessError("its host key differs"), InfrastructureError("xenconsoled does not answer")])
def test_an_error_of_a_host_that_answers_is_not_a_hang(machine: Machine, error: InfrastructureError) -> None:
    machine.refusal = error
    with pytest.raises(InfrastructureError, match=error.message):
        pooled(machine, XEN1).acquire(REQUEST, Deadline(60))
    assert machine.cycles == 0


def test_a_host_that_answers_the_recovery_alone_is_not_tried_for_ever(machine: Machine) -> None:
    machine.hangs = False
    hosts = pooled(machine, XEN1)
    hosts._take = lambda *args, **more: machine.run(["lease"]) and _raise(TransportError("dropped"))  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError, match="xen1: dropped"):
        hosts.acquire(REQUEST, Deadline(60))
    assert machine.cycles == 0


def test_the_end_of_a_run_stops_all_recoveries_before_it_waits(machine: Machine) -> None:
    hosts = pooled(machine, XEN1, XEN2)
    order: list[str] = []

    class Slow:
        def request_stop(self) -> None:
            order.append("stop")

        def stop(self) -> None:
            order.append("wait")

    hosts._recoveries = {"xen1": Slow(), "xen2": Slow()}  # type: ignore[dict-item]
    hosts.close()
    assert order == ["stop", "stop", "wait", "wait"]


@pytest.mark.parametrize("error", [DeadlineExpired("the command did not end within 15 s"), None])
def test_a_host_that_hangs_when_it_is_leased_is_brought_back(
    machine: Machine, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd and the lease agent answer, but xenstore or xl does not."""
    machine.hangs = False
    hosts = pooled(machine, XEN1)
    monkeypatch.setattr(Leased, "check", lambda self: error and not machine.cycles and _raise(error))
    monkeypatch.setattr(Leased, "acquire", lambda self, request, deadline: None)
    machine.stuck = 1000
    assert hosts.acquire(REQUEST, Deadline(20)).config.name == "xen1"
    assert machine.cycles == 1
    hosts.close()


@pytest.mark.parametrize(("silent", "hangs"), [(30.0, False), (61.0, True)])
def test_a_slow_check_of_a_leased_host_is_no_hang(machine: Machine, silent: float, hangs: bool) -> None:
    machine.stuck = 1
    host = DirectHost(machine, config=XEN1)  # type: ignore[arg-type]
    host._health = SimpleNamespace(lost="", silent=silent)  # type: ignore[assignment]
    with pytest.raises((DeadlineExpired, TransportError)) as caught:
        host.check()
    provider = HostProvider(SimpleNamespace(host="xen1"), lambda: host)  # type: ignore[arg-type]
    lost: list[bool] = []
    provider.__dict__["_pool"] = SimpleNamespace(mark_lost=lambda *args, hangs: lost.append(hangs))
    provider.mark_lost(host, caught.value)
    assert lost == [hangs]


def _raise(error: Exception) -> Any:
    raise error


# -- preparation ------------------------------------------------------------------------------------------------------


def test_a_prepared_host_is_restarted_and_tells_its_versions(machine: Machine) -> None:
    machine.hangs = False
    facts = prepare.prepare(XEN1, None, machine.connect)
    assert any("reboot)" in line for line in machine.commands)
    assert (facts.xen, facts.dom0) == ("4.22-unstable", "Linux 7.1.0")
    assert facts.builds == (("xen build", "git:0123456789-dirty 0011aabb"), ("dom0 build", "#3 SMP"))
    assert set_aside("xen1") is None


def test_its_versions_are_inputs_of_every_case(machine: Machine) -> None:
    from harness.plugin import inputs

    host = DirectHost(machine, config=XEN1)  # type: ignore[arg-type]
    found = inputs.of_host(host)
    assert found["xen"] == "4.22-unstable"
    assert found["xen build"] == "git:0123456789-dirty 0011aabb"
    assert (found["dom0"], found["dom0 build"]) == ("Linux 7.1.0", "#3 SMP")
    assert isinstance(host.facts, HostFacts)


def test_a_command_that_restarts_the_host_itself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.hangs = False
    monkeypatch.setattr(prepare.operator_command, "run", lambda *args, **more: setattr(machine, "boots", 2))
    prepare.prepare(XEN1, machine, machine.connect)
    assert not any("reboot)" in line for line in machine.commands)
    assert machine.cycles == 0


def test_a_preparation_that_fails_sets_the_host_aside_until_one_succeeds(machine: Machine) -> None:
    machine.hangs = False
    broken = HostConfig("xen1", name="xen1", prepare=(sys.executable, "-c", "import sys; sys.exit('no space on the mirror')"))
    with pytest.raises(
        InfrastructureError, match=r"hosts\.xen1\.prepare: python\S* failed with exit status 1: no space on the mirror"
    ):
        prepare.prepare(broken, None, machine.connect)
    with pytest.raises(
        InfrastructureError,
        match=r"no host works:\n  xen1: xen1 is set aside since .*: its preparation failed: hosts\.xen1\.prepare",
    ):
        pooled(machine, XEN1).acquire(REQUEST, Deadline(5))
    prepare.prepare(XEN1, None, machine.connect)
    assert set_aside("xen1") is None


def test_a_host_that_does_not_boot_what_was_prepared(machine: Machine) -> None:
    machine.hangs = machine.comes_back = False
    with pytest.raises(InfrastructureError, match=r"xen1 does not boot after its preparation: waited .* not restarted"):
        prepare.prepare(XEN1, None, machine.connect)
    assert set_aside("xen1") is not None
    machine.comes_back, machine.reboots = True, False
    prepare.prepare(XEN1, machine, machine.connect)
    assert machine.cycles == 1, "its power is the second way"


def test_a_host_in_use_is_not_prepared(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.hangs = False
    monkeypatch.setattr(prepare.lease, "survey", lambda transport: {"leases": [{"state": "held", "run": "abc", "who": "me"}]})
    with pytest.raises(InfrastructureError, match="xen1 is used by abc of me"):
        prepare.prepare(XEN1, None, machine.connect)
    assert set_aside("xen1") is None
    assert machine.boots == 1


def test_a_host_is_set_aside_before_the_look_at_its_leases(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that connected before looks at the record once more when it has the lease."""
    machine.hangs = False

    def survey(transport: Transport) -> dict[str, Any]:
        assert set_aside("xen1") is not None
        return {"leases": [{"state": "held", "run": "abc"}]}

    monkeypatch.setattr(prepare.lease, "survey", survey)
    record = HostRecord("xen1")
    record.set_aside(UNPREPARED, "its preparation failed: no mirror")
    for before in (record.aside, {}):
        record.restore(before)
        with pytest.raises(InfrastructureError, match="xen1 is used by abc"):
            prepare.prepare(XEN1, machine, machine.connect)
        assert record.aside == before
    with pytest.raises(UsageError):
        prepare.prepare(XEN1, machine, lambda: _raise(UsageError("labgrid")))
    assert set_aside("xen1") is None
    assert machine.cycles == 0


def test_a_worker_gives_up_a_lease_on_a_host_that_is_set_aside_meanwhile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.hangs = False
    monkeypatch.setattr(
        Leased, "acquire", lambda self, request, deadline: HostRecord("xen1").set_aside(UNPREPARED, "it is being prepared")
    )
    with pytest.raises(InfrastructureError, match=r"no host works:\n  xen1: xen1 is set aside since .*: it is being prepared"):
        pooled(machine, XEN1).acquire(REQUEST, Deadline(5))


def test_one_failed_connection_is_no_dead_host(machine: Machine) -> None:
    machine.hangs, machine.silent = False, 2
    prepare.prepare(XEN1, machine, machine.connect)
    assert machine.cycles == 0
    machine.refusal = Refused("Connection refused")
    with pytest.raises(Refused):
        prepare.prepare(XEN1, machine, machine.connect)
    assert machine.cycles == 0, "runs may still have their connections"


def test_a_dead_host_is_prepared_and_its_power_cycle_is_recorded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cycles: list[int] = []
    monkeypatch.setattr(recovery.doctor, "examine", lambda config, connect: cycles.append(HostRecord("xen1").cycles) or ())
    prepare.prepare(XEN1, machine, machine.connect)
    assert (machine.cycles, cycles) == (1, [1])
    HostRecord("xen1").set_aside(UNPREPARED, "refused")
    machine.refusal = Refused("Connection refused")
    machine.cycle = lambda: setattr(machine, "refusal", None)  # type: ignore[method-assign]
    prepare.prepare(XEN1, machine, machine.connect)
    assert (set_aside("xen1"), len(cycles)) == (None, 2)


def test_a_lock_that_is_not_free_names_its_holder() -> None:
    with (
        HostRecord("xen1").locked(),
        pytest.raises(InfrastructureError, match=r"xen1 is being brought back or prepared by pid \d+: ") as caught,
        HostRecord("xen1").locked(seconds=0.2),
    ):
        pass
    assert caught.value.hint
    with HostRecord("xen1").locked(seconds=0.2) as held:
        assert held


def test_a_host_that_hung_too_often_is_not_prepared(machine: Machine) -> None:
    HostRecord("xen1").set_aside(HUNG, "it hung")
    with pytest.raises(InfrastructureError, match="set aside since"):
        prepare.prepare(XEN1, None, machine.connect)
    assert set_aside("xen1", except_for=UNPREPARED) is not None
