# SPDX-License-Identifier: BSD-2-Clause
"""Two places of a labgrid serve one run. One of them hangs, is power-cycled, and is used again while the run goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from labgrid_rack import Rack
from remote_host import remote_host

from tests.conftest import planted_suite

pytestmark = pytest.mark.slow

GOOD, BAD = f"good{os.getpid()}", f"bad{os.getpid()}"
# A power cycle of a lab with half of this machine takes minutes, and the run must last longer.
COUNT = 24
CASES = f"""
import os
from pathlib import Path
import pytest

@pytest.mark.parametrize("n", range({COUNT}))
def test_works(guest, n):
    (Path(os.environ["FXH_TEST"]) / os.environ["PYTEST_XDIST_WORKER"]).touch()
    for m in range(15):
        assert guest.sh(f"sleep 1; echo {{m}}") == str(m)
"""


@pytest.fixture
def rack() -> Iterator[Rack]:
    with remote_host("good") as good, remote_host("bad") as bad:
        made = Rack({GOOD: good, BAD: bad})
        try:
            made.reset()
            yield made
        finally:
            made.close()


def test_a_place_that_hangs_is_power_cycled_and_used_again_while_the_other_goes_on(rack: Rack) -> None:
    # A power cycle loses what Linux has not written yet, such as the ssh keys of a new lab.
    rack.remotes[BAD].dom0("sync")
    with planted_suite(CASES) as suite:
        run = rack.start(suite, "-n", "2")
        for worker in ("gw0", "gw1"):
            run.wait_for(rack.remote.mark(worker), 900)
        assert all("/fxh-" in rack.labgrid.owner(place) for place in (GOOD, BAD)), "each worker has a place"
        rack.labgrid.note(f"test: QEMU of {BAD} is stopped")
        rack.switches[BAD].act("hang")
        assert run.end(2400) == 0
    for place in (GOOD, BAD):
        rack.labgrid.wait_free(place)
    log = rack.labgrid.log
    print(*(f"{at} {line}" for at, line in log if "place " in line or "test: " in line or "switch" in line), sep="\n")

    def at(text: str) -> str:
        """The time of the one line of the log that ends with ``text``."""
        (found,) = (when for when, line in log if line.endswith(text))
        return found

    def lines(place: str) -> list[str]:
        return [line.partition(f"{place}: ")[2].split(" by ")[0] for _, line in log if f" {place}: place " in line]

    # Each place was acquired once and released once: it stayed ours over the power cycle.
    assert lines(GOOD) == lines(BAD) == ["place acquired", "place released"]
    assert [action for action in rack.switches[BAD].actions if action != "status"] == ["hang", "hang", "cycle"]
    assert set(rack.switches[GOOD].actions) <= {"status"}
    cycled = at(f"power switch of {BAD}: cycle")
    assert at(f"test: QEMU of {BAD} is stopped") < cycled < at(f"coordinator: {BAD}: place released")

    cases = [case for _, case in sorted((case["started"], case) for case in run.all_cases)]
    assert [case["outcome"] for case in cases] == ["passed"] * COUNT
    hosts = {place: [case for case in cases if case["inputs"]["host"] == f"labgrid:name={place}"] for place in (GOOD, BAD)}
    assert len(hosts[GOOD]) + len(hosts[BAD]) == COUNT
    (lost,) = (case for case in cases if "run again because" in case["inputs"])
    assert "no heartbeat for 70 s" in lost["inputs"]["run again because"]
    # started: 2026-11-25T03:13:47Z
    again = [case for case in hosts[BAD] if case["started"][11:19] > cycled]
    assert again, "the place was used again"
    stopped = at(f"test: QEMU of {BAD} is stopped")
    meanwhile = [case for case in hosts[GOOD] if stopped < case["started"][11:19] < cycled]
    after = [case for case in hosts[GOOD] if case["started"][11:19] > again[0]["started"][11:19]]
    print(f"{len(meanwhile)} cases on {GOOD} during the hang, {len(after)} after {BAD} was used again, {len(again)} again on {BAD}")
    assert meanwhile, "the other place went on"
    assert after, "the run went on when the place was back"
    for remote in rack.remotes.values():
        remote.wait_clean()
