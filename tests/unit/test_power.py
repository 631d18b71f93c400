# SPDX-License-Identifier: BSD-2-Clause
"""Power commands: real processes, with a file as the power of the host."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from harness.config import load
from harness.config.commands import PowerCommands, power
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.hosts import operator_command
from harness.hosts import power as powers
from harness.hosts.power import CommandPower, PowerError

SWITCH = """
import sys
import time
from pathlib import Path
state, action, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[1] + ".log")
log.open("a").write(action + "\\n") if action != "status" else None
if action == "status":
    print("Chassis Power is", state.read_text())
else:
    state.write_text("off" if action == "off" else "on")
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    found = tmp_path / "state"
    found.write_text("on")
    return found


@pytest.fixture
def switch(tmp_path: Path, state: Path) -> PowerCommands:
    script = tmp_path / "switch.py"
    script.write_text(SWITCH)
    return power([sys.executable, str(script), str(state), "{action}"], "x")


def log(state: Path) -> list[str]:
    return Path(f"{state}.log").read_text().split()


@pytest.fixture(autouse=True)
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(powers, "TIMES", powers.Times(effect=0.3, discharge=0.01))


def test_on_off_cycle_and_status(switch: PowerCommands, state: Path) -> None:
    host = CommandPower("xen1", switch)
    assert host.status() is True
    host.off()
    assert host.status() is False
    host.on()
    assert host.status() is True
    host.cycle()
    assert log(state) == ["off", "on", "cycle"]


def test_a_cycle_of_a_host_that_is_off_switches_it_on(switch: PowerCommands, state: Path) -> None:
    state.write_text("off")
    CommandPower("xen1", switch).cycle()
    assert log(state) == ["on"]


def test_a_cycle_without_a_command_is_off_and_on(switch: PowerCommands, state: Path) -> None:
    CommandPower("xen1", PowerCommands(on=switch.on, off=switch.off)).cycle()
    assert log(state) == ["off", "on"]
    assert CommandPower("xen1", PowerCommands(on=switch.on, off=switch.off)).status() is None


def test_a_command_that_fails_names_the_host_and_hides_its_arguments() -> None:
    argv = (sys.executable, "-c", "import sys; sys.exit('no route to the BMC\\x1b[2J')", "secret")
    with pytest.raises(PowerError) as caught:
        CommandPower("xen1", PowerCommands(cycle=argv)).cycle()
    assert caught.value.message.startswith("hosts.xen1.power.cycle: python")
    assert caught.value.message.endswith(" failed with exit status 1: no route to the BMC")
    assert "the operator of xen1 must" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_command_that_is_missing_or_hangs() -> None:
    with pytest.raises(PowerError, match="cannot start none: No such file"):
        CommandPower("xen1", PowerCommands(cycle=("/none",))).cycle()
    with pytest.raises(PowerError, match=r"sleep did not end within 0\.3 s"):
        CommandPower("xen1", PowerCommands(cycle=("sleep", "60")), times=powers.Times(command=0.3)).cycle()
    with pytest.raises(PowerError, match=r"hosts\.xen1\.power\.on is not set"):
        CommandPower("xen1", PowerCommands(cycle=("true",))).on()


def test_a_command_without_an_effect(switch: PowerCommands) -> None:
    host = CommandPower("xen1", PowerCommands(on=("true",), off=("true",), status=switch.status))
    with pytest.raises(PowerError, match=r"hosts\.xen1\.power\.off: had no effect: the power is on after"):
        host.cycle()


def test_a_status_that_fails_for_a_while(
    switch: PowerCommands, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command succeeded: the host boots, whatever the BMC says of it."""
    count = tmp_path / "count"
    script = f"echo >> {count}; [ $(wc -l < {count}) -gt $0 ] && echo on"
    CommandPower("xen1", PowerCommands(cycle=switch.cycle, status=("sh", "-c", script, "1"))).cycle()
    assert count.read_text() == "\n\n"
    CommandPower("xen1", PowerCommands(cycle=switch.cycle, status=("false",))).cycle()
    assert log(state) == ["cycle", "cycle"]
    assert "hosts.xen1.power.cycle: hosts.xen1.power.status: false failed with exit status 1" in caplog.text


def test_an_unreadable_status() -> None:
    with pytest.raises(PowerError, match=r"hosts\.x\.power\.status: prints neither on nor off"):
        CommandPower("x", PowerCommands(cycle=("true",), status=("echo", "none"))).status()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--password=hunter2",), "unrecognized arguments: --password=hunter2"),
        (("-P", "hunter2"), "wrong password hunter2 for -P hunter2"),
        (("-Phunter2",), "invalid option or value: hunter2"),
        (("--pass=hunter2", "hunter2-long"), "neither 'hunter2' nor 'hunter2-long'"),
        ((), "POST https://admin:hunter2@bmc.example.org/ failed, token=hunter2"),
    ],
)
def test_an_error_shows_no_argument_and_no_secret(argv: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(f"Usage: x\n{said}\n")
    script = tmp_path / "pdu"
    script.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'} >&2\nexit 2\n")
    script.chmod(0o755)
    with pytest.raises(InfrastructureError, match=r"k: pdu failed with exit status 2: .*\*\*\*") as caught:
        operator_command.run((str(script), *argv), "k", 10, "h")
    assert "hunter2" not in str(caught.value)


def test_a_helper_in_the_background_is_no_hang() -> None:
    assert operator_command.run(("sh", "-c", "sleep 90 & echo on"), "k", 60, "h") == "on\n"


def test_the_processes_of_a_command_end_with_it(tmp_path: Path) -> None:
    script = f"sleep 60 >/dev/null 2>&1 & echo $! > {tmp_path / 'pid'}"
    operator_command.run(("sh", "-c", script), "k", 10, "h")
    pid = int((tmp_path / "pid").read_text())
    deadline = Deadline(60)
    while Path(f"/proc/{pid}").exists() and not deadline.expired:
        time.sleep(0.02)
    assert not deadline.expired


def test_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fxh.toml"
    monkeypatch.setenv("FXH_CONFIG", str(file))
    file.write_text(
        '[hosts."a.b"]\npower = "ipmitool -H \'bmc 1\' chassis power {action}"\nserial = "unix:/run/c"\n'
        'prepare = ["netboot", "a.b"]\n[hosts.c.power]\noff = ["pdu", "off"]\non = "pdu on"\n'
    )
    hosts = load().config.hosts
    assert hosts["a.b"].power is not None
    assert hosts["a.b"].power.status == ("ipmitool", "-H", "bmc 1", "chassis", "power", "status")
    assert (hosts["a.b"].serial, hosts["a.b"].prepare) == (("unix:/run/c",), ("netboot", "a.b"))
    assert hosts["c"].power == PowerCommands(on=("pdu", "on"), off=("pdu", "off"))
    assert powers.of(hosts["c"]) is not None
    assert powers.of(HostConfig("x")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('power = "ipmitool chassis power cycle"', r"hosts.a.power: no \{action\} in the command\n  hint: set a command with"),
        ("power = 1", "not a command\n  hint: set a list of words"),
        ("power = []", "not a command"),
        ('power = "a \'b"', "No closing quotation\n  hint: close the quote"),
        ('power = {on = ["x"]}', "no way to switch the host off and on"),
        ('power = {no = ["x"]}', "unknown key no\n  hint: valid names: on, off, cycle, status"),
        ("power = {cycle = [1]}", "hosts.a.power.cycle = .* not a command"),
        ("serial = [1]", "hosts.a.serial = .* not a command"),
        (
            'address = "labgrid:tag=xen"\nprepare = "x"',
            "hosts.a.prepare: labgrid:tag=xen is any of the places .*\n  hint: delete hosts.a.prepare",
        ),
        ('prepare = ""', "hosts.a.prepare = '': not a command"),
    ],
)
def test_mistakes_in_the_configuration(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fxh.toml"
    monkeypatch.setenv("FXH_CONFIG", str(file))
    file.write_text(f"[hosts.a]\n{text}\n")
    with pytest.raises(UsageError, match=words):
        load()
