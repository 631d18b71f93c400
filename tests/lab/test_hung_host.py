# SPDX-License-Identifier: BSD-2-Clause
"""A host hangs or crashes during a run. It is a lab that the run knows as a real host, with power commands and a serial console."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_host import Remote, Run, remote_host

from harness.hosts import record
from harness.lab import registry
from harness.results import model
from tests.conftest import planted_suite

pytestmark = pytest.mark.slow

NAME = f"hung-{os.getpid()}"
POWER = Path(__file__).with_name("qmp_power.py")
CASES = """
import os
from pathlib import Path

def test_a_hang(guest):
    (Path(os.environ["FXH_TEST"]) / "running").touch()
    for n in range(12):
        assert guest.sh(f"sleep 1; echo {n}") == str(n)

def test_b_after(guest):
    assert guest.sh("echo 1") == "1"
"""


@pytest.fixture(scope="module")
def _remote() -> Iterator[Remote]:
    with remote_host("hung") as made:
        yield made


@pytest.fixture
def remote(_remote: Remote) -> Iterator[Remote]:
    """A host with an idle dom0, a power switch and a serial console."""
    _remote.reset()
    sockets = registry.sockets(_remote.name)
    switch = [sys.executable, str(POWER), str(sockets / "qmp")]
    (_remote.directory / "fxh.toml").write_text(
        f'[hosts.{NAME}]\naddress = "one"\nserial = "unix:{sockets / "com1"}"\n'
        f"[hosts.{NAME}.power]\ncycle = {json.dumps([*switch, 'cycle'])}\nstatus = {json.dumps([*switch, 'status'])}\n"
    )
    # A power cycle loses what Linux has not written yet, such as the ssh keys of a new lab.
    _remote.dom0("sync")
    yield _remote
    shutil.rmtree(record.directory(NAME), ignore_errors=True)


@pytest.fixture
def run(remote: Remote) -> Iterator[Run]:
    """A run within its first case."""
    with planted_suite(CASES) as suite:
        run = remote.start(suite, "--xen-host", NAME, "--scale", "3", FXH_RUN_LEASE_WAIT="1800")
        try:
            run.wait_for(remote.mark("running"), 900)
            yield run
        finally:
            run.process.kill()
            run.process.wait()


def boot_id(remote: Remote) -> str:
    return remote.dom0("cat", "/proc/sys/kernel/random/boot_id")


def came_back(remote: Remote, run: Run, why: str) -> None:
    """The case ran again, the host served both cases, and nothing is reserved."""
    assert run.end(1800) == 0
    assert run.outcomes == {"test_a_hang": "passed", "test_b_after": "passed"}
    case = run.cases["test_a_hang"]
    assert why in case["inputs"]["run again because"]
    assert {one["inputs"]["host"] for one in run.cases.values()} == {NAME}
    lost = run.latest / "cases" / case["directory"] / model.LOST
    assert "Xen version" in (lost / "xl-dmesg-before.log").read_text()
    log = (record.directory(NAME) / "serial.log").read_text(errors="replace")
    assert "Command line: console=com1" in log, "the serial console shows the boot after the power cycle"
    assert json.loads(remote.fxh("hosts", NAME, "--json"))[NAME]["leases"] == []
    remote.wait_clean()


def test_a_host_that_hangs_is_power_cycled_and_used_again(remote: Remote, run: Run) -> None:
    before = boot_id(remote)
    subprocess.run([sys.executable, str(POWER), str(registry.sockets(remote.name) / "qmp"), "hang"], check=True)
    came_back(remote, run, "no heartbeat for 70 s")
    assert boot_id(remote) != before


def test_a_crash_on_the_serial_console_is_noticed_at_once(remote: Remote, run: Run) -> None:
    remote.dom0("echo 1 > /proc/sys/kernel/sysrq; (sleep 1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &")
    came_back(remote, run, "its serial console reports: Kernel panic - not syncing: sysrq triggered crash")
