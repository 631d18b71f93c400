# SPDX-License-Identifier: BSD-2-Clause
"""The simulation of a night, bench/fleet.py."""

from __future__ import annotations

import pytest

from tests.conftest import import_script

fleet = import_script("bench", "fleet")
CASES = [fleet.Case(cell, 10.0) for cell in ("pv", "pvh") for _ in range(128)]


def throughput(hosts: int, workers: int, *, cpus: int = 64, longest: bool = False) -> float:
    """How many times as fast as one worker."""
    one, many = (fleet.simulate(CASES, {}, *size, cpus=cpus, longest=longest).seconds for size in ((1, 1), (hosts, workers)))
    return one / many


@pytest.mark.parametrize("longest", [False, True])
@pytest.mark.parametrize(("hosts", "workers"), [(1, 2), (4, 4), (16, 1)])
def test_workers_share_the_cases(hosts: int, workers: int, longest: bool) -> None:
    count = hosts * workers
    assert 0.8 * count < throughput(hosts, workers, longest=longest) <= count


def test_more_workers_than_cpus_do_not_help() -> None:
    assert throughput(1, 8, cpus=1) < 1.1 * throughput(1, 2, cpus=1)


def test_each_host_prepares_a_cell_once() -> None:
    setup = {"pv": 100.0, "pvh": 300.0}
    one, two = (fleet.simulate(CASES, setup, 1, workers) for workers in (1, 2))
    assert one.lost["preparation of hosts"] == pytest.approx(400)
    without = fleet.simulate(CASES, {}, 1, 1)
    assert one.seconds - without.seconds == pytest.approx(400)
    assert two.lost["preparation of hosts"] == pytest.approx(400)


def test_all_time_of_the_workers_is_explained() -> None:
    night = fleet.simulate(CASES, {"pv": 50.0}, 2, 2)
    one = fleet.simulate(CASES, {}, 1, 1)
    worked = one.seconds - sum(one.lost.values())
    assert night.seconds * 4 == pytest.approx(worked + sum(night.lost.values()))
