# SPDX-License-Identifier: BSD-2-Clause
"""Signals during fxh prepare and fxh power, and workers that are killed in a power cycle. Real processes; files are the power."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_run_ends import FXH, Run
from test_run_ends import _usual_signals as usual_signals

from harness.cli import equipment
from harness.config.commands import PowerCommands
from harness.config.schema import HostConfig
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError
from harness.hosts import operator_command, power, prepare
from harness.hosts.power import CommandPower, PowerError
from harness.hosts.record import UNPREPARED, HostRecord, set_aside
from tests.conftest import planted_suite
from tests.processes import alive, wait_for_end

# An installer with two processes. It says when it runs, and when it was asked to end.
INSTALLER = "trap 'echo asked > asked; exit 1' TERM; echo $$ > pids; sleep 300 & echo $! >> pids; touch installing; wait"
# Switches off, and takes its time until Farm.go().
SLOW_OFF = "echo off >> log; echo off > power; until [ -e go ]; do sleep 0.1; done"


class Farm:
    """One host in fxh.toml. Nothing listens at its address; its power is the file ``power``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "power").write_text("on")
        self.environment = {"FXH_CONFIG": str(directory / "fxh.toml"), "FXH_STORE": str(directory / "store")}
        self.configure()

    def configure(self, *, prepare: str = INSTALLER, **actions: str) -> None:
        """Give each power action a shell script; "" removes it."""
        scripts = {
            "on": "echo on > power; echo on >> log",
            "off": "echo off > power; echo off >> log",
            "status": "cat power",
        } | actions
        lines = [f"{name} = {json.dumps(self.argv(script))}" for name, script in scripts.items() if script]
        (self.directory / "fxh.toml").write_text(
            f'[hosts.p]\naddress = "root@127.0.0.1:1"\nprepare = {json.dumps(self.argv(prepare))}\n[hosts.p.power]\n'
            + "\n".join(lines)
        )

    def argv(self, script: str) -> list[str]:
        return ["sh", "-c", f"cd {self.directory}; {script}"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*FXH, *words], env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=usual_signals,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def wait_for(self, name: str, text: str = "") -> None:
        """Wait until a file exists and contains ``text``."""

        def there() -> None:
            if not (self.directory / name).exists() or text not in (self.directory / name).read_text():
                raise ConditionNotMet("not yet")

        Deadline(60).wait(f"{name} {text}", there, 0.02)

    def go(self) -> None:
        """Let SLOW_OFF end."""
        (self.directory / "go").touch()

    def log(self) -> list[str]:
        return (self.directory / "log").read_text().split()

    def installers(self) -> list[int]:
        """The living processes of the installer."""
        return [pid for pid in map(int, (self.directory / "pids").read_text().split()) if alive(pid)]


def completes(process: subprocess.Popen[str]) -> None:
    """Wait until the process says that it completes the power cycle despite a signal."""
    assert process.stdout is not None
    said = ""
    while line := process.stdout.readline():
        said += line
        if "p: completing its power cycle before the end, so that it does not stay off" in line:
            return
    raise AssertionError(said)


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    made = Farm(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


# -- a command --------------------------------------------------------------------------------------------------------


def test_a_stopped_command_ends_with_its_whole_group(tmp_path: Path) -> None:
    """One process of the group ignores SIGTERM."""
    stop, pids = threading.Event(), tmp_path / "pids"
    script = f"(trap '' TERM; sleep 300) & echo $! > {pids}; echo $$ >> {pids}; wait"

    def stop_when_both_run() -> None:
        while not pids.exists() or len(pids.read_text().split()) < 2:
            time.sleep(0.02)
        stop.set()

    threading.Thread(target=stop_when_both_run, daemon=True).start()
    operator_command._END, kept = 0.5, operator_command._END
    try:
        with pytest.raises(operator_command.Stopped, match=r"k: sh \(process \d+\) was stopped"):
            operator_command.run(("sh", "-c", script), "k", 60, "h", stop=stop)
    finally:
        operator_command._END = kept
    wait_for_end(*map(int, pids.read_text().split()))


def test_a_command_that_ends_is_not_stopped() -> None:
    assert operator_command.run(("echo", "x"), "k", 60, "h", stop=threading.Event()) == "x\n"
    with pytest.raises(InfrastructureError, match=r"k: sleep did not end within 0\.3 s"):
        operator_command.run(("sleep", "60"), "k", 0.3, "h", stop=threading.Event())


# -- fxh prepare ------------------------------------------------------------------------------------------------------


def test_a_signal_just_before_a_wait_is_not_lost(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """interrupt_main() sets the flag of a signal without interrupting a system call, as a signal just before the call does."""
    begun: list[float] = []

    def until_stopped(config: HostConfig, power: object, connect: object, stop: threading.Event) -> None:
        time.sleep(0.3)
        _thread.interrupt_main()
        begun.append(time.monotonic())
        assert stop.wait(20)
        raise InfrastructureError("stopped")

    monkeypatch.setattr(prepare, "prepare", until_stopped)
    # A shell without job control starts background commands with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            equipment.prepare("p")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun[0] < 15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preparation_leaves_no_process_and_says_so(farm: Farm, number: signal.Signals) -> None:
    HostRecord("p").set_aside(UNPREPARED, "its preparation failed: no mirror")
    process = farm.start("prepare", "p")
    farm.wait_for("installing")
    assert len(farm.installers()) == 2
    assert "it is being prepared" in str(set_aside("p"))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert farm.installers() == []
    assert (farm.directory / "asked").exists(), "SIGTERM comes before SIGKILL"
    assert "fxh: stopping the preparation of p\n" in out
    what = "its preparation was interrupted during its command: hosts.p.prepare: sh (process "
    assert f"p: {what}" in out
    assert "hint: run fxh prepare p again" in out
    assert what in str(set_aside("p"))
    assert not set_aside("p", except_for=UNPREPARED)


def test_an_interruption_before_the_command_changes_nothing(farm: Farm) -> None:
    stop = threading.Event()

    def connect() -> Any:
        stop.set()
        raise InfrastructureError("no route")

    config = HostConfig("x", name="p", prepare=("touch", str(farm.directory / "ran")))
    for before in ({}, {"kind": UNPREPARED, "why": "no mirror", "since": "now", "mark": ""}):
        stop.clear()
        HostRecord("p").restore(before)
        with pytest.raises(prepare.Interrupted, match="interrupted before its command"):
            prepare.prepare(config, None, connect, stop)
        assert HostRecord("p").aside == before
    with HostRecord("p").locked(), pytest.raises(prepare.Interrupted, match="had not begun"):
        prepare.prepare(config, None, connect, stop)
    assert not (farm.directory / "ran").exists()


def test_a_killed_preparation_is_noticed_and_its_command_is_ended(farm: Farm) -> None:
    HostRecord("p").set_aside(UNPREPARED, "its preparation failed: no mirror")
    process = farm.start("prepare", "p")
    farm.wait_for("installing")
    process.kill()
    process.communicate(timeout=60)
    left = farm.installers()
    assert len(left) == 2
    for words in (("hosts", "p"), ("doctor", "p")):
        _, out = farm.run(*words)
        assert (
            "its preparation was interrupted, because the process that prepared it was killed; the host may be half prepared" in out
        )
        assert f"its command still runs (process {left[0]}, {left[1]})" in out
    farm.configure(prepare="test ! -e /proc/$(head -n 1 pids)/cmdline; echo second > second; exit 3")
    code, out = farm.run("prepare", "p")
    assert code == 4
    assert "p: its last preparation was interrupted, so it may be half prepared" in out
    assert f"p: ended the processes of the interrupted preparation: {left[0]}, {left[1]}" in out
    assert farm.installers() == []
    assert (farm.directory / "second").exists(), "the new command began"
    assert "its preparation failed: hosts.p.prepare: sh failed with exit status 3" in str(set_aside("p"))


def test_an_interrupted_night_ends_its_step(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from harness.cli import main\n"
        "from harness.nightly import night; from harness.nightly.plan import NightlyStep\n"
        "with main._interruptible():\n"
        " night.run_steps([NightlyStep('prepare', ('sh', '-c', sys.argv[2]))], pathlib.Path(sys.argv[1]), 1, print)"
    )
    script = f"trap 'exit 9' TERM; sleep 300 & echo $$ $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pids; wait"
    argv = [FXH[0], "-c", code, str(tmp_path), script]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, preexec_fn=usual_signals)
    deadline = Deadline(60)
    while not (tmp_path / "pids").exists():
        assert not deadline.expired
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    wait_for_end(*map(int, (tmp_path / "pids").read_text().split()))


# -- a power cycle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_ends_in_a_power_cycle_leaves_the_host_on(farm: Farm, number: signal.Signals) -> None:
    farm.configure(off=SLOW_OFF)
    process = farm.start("power", "cycle", "p")
    farm.wait_for("power", "off")
    os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert farm.log() == ["off"]
        farm.go()
    else:
        completes(process)
        farm.go()
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert farm.log() == ["off", "on"], "the command waits for the end of the cycle"
    farm.wait_for("power", "on")
    assert farm.log() == ["off", "on"]
    deadline = Deadline(30)
    while (farm.directory / "store/hosts/p/off-and-on").exists():
        assert not deadline.expired
        time.sleep(0.02)
    assert power.interrupted("p") == ""


def test_a_second_ctrl_c_does_not_wait_but_the_host_is_on_later(farm: Farm) -> None:
    farm.configure(off=SLOW_OFF)
    process = farm.start("power", "cycle", "p")
    farm.wait_for("power", "off")
    process.send_signal(signal.SIGINT)
    completes(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert farm.log() == ["off"]
    farm.go()
    farm.wait_for("power", "on")


def test_one_command_for_a_cycle_is_completed_too(farm: Farm) -> None:
    farm.configure(cycle="echo off > power; echo cycle >> log; sleep 2; echo on > power")
    process = farm.start("power", "cycle", "p")
    farm.wait_for("power", "off")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    farm.wait_for("power", "on")
    assert farm.log() == ["cycle"]


CASES = """
import threading, time
from harness.config import load
from harness.hosts import power

def test_cycles(cell, case):
    threading.Thread(target=power.of(load().config.hosts["p"]).cycle, daemon=True).start()
    time.sleep(300)
"""


@pytest.fixture
def suite() -> Iterator[Path]:
    with planted_suite(CASES) as file:
        yield file


def test_a_worker_that_is_killed_after_ctrl_c_leaves_the_host_on(farm: Farm, suite: Path, tmp_path: Path) -> None:
    """execnet kills a worker 10 s after Ctrl-C. Here the host is off for longer."""
    farm.configure(off=SLOW_OFF)
    run = Run(suite, tmp_path / "reports", "", "-n", "2", "--xen-host", "p")
    farm.wait_for("power", "off")
    workers = list(map(int, Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()))
    assert len(workers) == 2
    os.killpg(run.process.pid, signal.SIGINT)
    wait_for_end(*workers)
    assert farm.log() == ["off"], "the worker was killed while the host was off"
    waits = "fxh: p: waiting for the end of its power cycle, so that it does not stay off"
    unasked = threading.Timer(100, farm.go)
    unasked.start()
    assert run.process.stdout is not None
    assert any(waits in line for line in run.process.stdout)
    unasked.cancel()
    farm.go()
    out = run.end()
    assert run.process.returncode == 130, out
    assert farm.log() == ["off", "on"], "the run has waited"


def killed_in_a_cycle(farm: Farm) -> None:
    """Kill everything, as a controller that loses its power."""
    farm.configure(off="echo off > power; echo off >> log; sleep 60")
    process = farm.start("power", "cycle", "p")
    farm.wait_for("power", "off")
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    command = int(Path(f"/proc/{child}/task/{child}/children").read_text().split()[0])
    assert power.interrupted("p") == "", "it still runs"
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGKILL)
    os.killpg(command, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for_end(process.pid, child, command)


def test_the_next_start_switches_a_host_on_whose_cycle_was_killed(farm: Farm) -> None:
    killed_in_a_cycle(farm)
    assert "so it may be off" in power.interrupted("p")
    code, out = farm.run("doctor", "p")
    assert code == 4
    assert "power cycle" in out
    assert "was interrupted, so it may be off" in out
    assert "run: fxh power on p" in out
    farm.configure(prepare="exit 3")
    HostRecord("p").set_aside(UNPREPARED, "its preparation failed: no mirror")
    # The host does not boot here, so the preparation ends at the wait for that.
    process = farm.start("prepare", "p")
    farm.wait_for("power", "on")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "was interrupted, so it may be off: switching it on" in out
    assert farm.log() == ["off", "on"]
    assert power.interrupted("p") == ""
    assert HostRecord("p").booting < 60
    assert "no mirror" in str(set_aside("p"))


@pytest.mark.parametrize("words", [("power", "on", "p"), ("power", "off", "p")])
def test_switching_by_hand_ends_the_matter(farm: Farm, words: tuple[str, ...]) -> None:
    killed_in_a_cycle(farm)
    farm.configure()
    assert farm.run(*words)[0] == 0
    assert power.interrupted("p") == ""


def test_a_cycle_that_fails_leaves_the_host_on(farm: Farm) -> None:
    commands = PowerCommands(
        on=tuple(farm.argv("echo on > power")), status=tuple(farm.argv("cat power")),
        cycle=tuple(farm.argv("echo off > power; echo no answer from the relay >&2; exit 1")),
    )  # fmt: skip
    with pytest.raises(PowerError, match=r"hosts\.p\.power\.cycle: sh failed with exit status 1: no answer from the relay"):
        CommandPower("p", commands).cycle()
    assert (farm.directory / "power").read_text() == "on\n"
    assert power.interrupted("p") == ""
    broken = PowerCommands(on=("false",), off=(*commands.cycle[:2], commands.cycle[2].replace("exit 1", "exit 0")))
    with pytest.raises(PowerError, match=r"hosts\.p\.power\.on: false failed"):
        CommandPower("p", broken).cycle()
    assert "so it may be off" in power.interrupted("p")


def test_a_cycle_whose_process_dies_is_an_error(farm: Farm) -> None:
    script = "kill -9 $PPID"
    with pytest.raises(PowerError, match=r"the process of the power cycle ended with status -9"):
        CommandPower("p", PowerCommands(cycle=("sh", "-c", script))).cycle()


def test_two_cycles_at_once_follow_each_other(farm: Farm) -> None:
    farm.configure(off="echo off > power; echo off >> log; sleep 1")
    both = [farm.start("power", "cycle", "p") for _ in range(2)]
    assert [process.communicate(timeout=60)[0].splitlines()[-1] for process in both] == ["p: on"] * 2
    assert farm.log() == ["off", "on", "off", "on"]
