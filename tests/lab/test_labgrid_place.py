# SPDX-License-Identifier: BSD-2-Clause
"""A lab as a place of a labgrid coordinator: ssh, serial port and power port are exported, and runs take the place by its tags."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from labgrid_rack import Rack
from remote_host import remote_host

from harness.hosts import places, record
from tests.conftest import planted_suite

# Another test file may run at the same time, and they share the store.
PLACE = f"p{os.getpid()}"
NAME = f"labgrid:name={PLACE}"
CASES = """
import os, time
from pathlib import Path

def test_a_fault(guest):
    (Path(os.environ["FXH_TEST"]) / "running").touch()
    for n in range(int(os.environ.get("FXH_TEST_SECONDS", "12"))):
        assert guest.sh(f"sleep 1; echo {n}") == str(n)

def test_b_after(guest):
    assert guest.sh("echo 1") == "1"
"""


@pytest.fixture(scope="module")
def _rack() -> Iterator[Rack]:
    with remote_host("labgrid") as remote:
        made = Rack({PLACE: remote})
        yield made
        made.close()


@pytest.fixture
def rack(_rack: Rack) -> Rack:
    _rack.reset()
    return _rack


@pytest.fixture
def suite() -> Iterator[Path]:
    with planted_suite(CASES) as file:
        yield file


def test_a_run_takes_a_place_by_its_tags_and_releases_it(rack: Rack) -> None:
    run = rack.start(Path("boot"), "-k", "boots_to_login")
    assert run.end(900) == 0
    (case,) = run.cases.values()
    assert (case["outcome"], case["inputs"]["host"]) == ("passed", NAME)
    assert case["cell"] == "control-pv-labgrid-tag-xen-arch-amd64"
    rack.labgrid.wait_free(PLACE)
    rack.remote.wait_clean()
    assert rack.remote.fxh("hosts", "labgrid:tag=xen").splitlines()[1].split() == [PLACE, "free"]
    assert "ok    Xen" in rack.remote.fxh("doctor", NAME), "the doctor examines the host behind the place"
    rack.labgrid.wait_free(PLACE)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_leaves_nothing_reserved(rack: Rack, suite: Path, number: signal.Signals) -> None:
    run = rack.start(suite, FXH_TEST_SECONDS="600")
    run.wait_for(rack.remote.mark("running"))
    assert "/fxh-" in rack.labgrid.owner(PLACE)
    run.process.send_signal(number)
    assert run.end(300) == (130 if number == signal.SIGINT else -number)
    rack.labgrid.wait_free(PLACE)
    rack.remote.wait_clean()


@pytest.mark.slow
def test_a_hung_place_is_power_cycled_through_labgrid(rack: Rack, suite: Path) -> None:
    rack.remote.dom0("sync")
    run = rack.start(suite)
    run.wait_for(rack.remote.mark("running"))
    rack.switches[PLACE].act("hang")
    assert run.end(1800) == 0
    assert run.outcomes == {"test_a_fault": "passed", "test_b_after": "passed"}
    assert "no heartbeat" in run.cases["test_a_fault"]["inputs"]["run again because"]
    assert [action for action in rack.switches[PLACE].actions if action != "status"] == ["hang", "hang", "cycle"]
    console = (record.directory(NAME) / "serial.log").read_text(errors="replace")
    assert "Command line: console=com1" in console, "the serial port shows the boot of Xen"
    rack.labgrid.wait_free(PLACE)
    rack.remote.wait_clean()


@pytest.mark.slow
def test_a_place_of_another_architecture_than_its_tag(rack: Rack, suite: Path) -> None:
    rack.labgrid.tag(PLACE, arch="arm64")
    try:
        run = rack.start(suite, address="labgrid:arch=arm64", FXH_TEST_SECONDS="1")
        assert run.end(600) == 4
    finally:
        rack.labgrid.tag(PLACE, arch="amd64")
    assert set(run.outcomes.values()) == {"infrastructure"}
    assert f"labgrid place {PLACE} has the tag arch=arm64, but its host is x86_64" in run.out
    rack.labgrid.wait_free(PLACE)


@pytest.mark.slow
def test_a_coordinator_that_goes_away_is_no_verdict(rack: Rack, suite: Path) -> None:
    run = rack.start(suite, FXH_TEST_SECONDS="80")
    run.wait_for(rack.remote.mark("running"))
    rack.labgrid.stop()
    assert run.end(900) == 4
    assert run.outcomes["test_b_after"] == "infrastructure"
    assert set(run.outcomes.values()) <= {"passed", "infrastructure"}
    assert f"no labgrid coordinator answers at {rack.labgrid.address}" in run.out
    rack.labgrid.start()
    # The restarted coordinator has forgotten the place, but this machine remembers that it could not release it.
    assert (PLACE, rack.labgrid.address) in places.left_behind()
    places.release_left_behind(rack.labgrid.address)
    assert (PLACE, rack.labgrid.address) not in places.left_behind()
    rack.labgrid.wait_free(PLACE)
    rack.remote.wait_clean()
