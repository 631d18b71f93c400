# SPDX-License-Identifier: BSD-2-Clause
"""Places of a real labgrid coordinator: acquired, shared, lost and released."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import serial
import serial.rfc2217
from labgrid_servers import Labgrid

from harness.config import load
from harness.config.schema import HostConfig
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, InfrastructureError, TransportError, UsageError
from harness.hosts import equipment, places, pool
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy, HostTooSmall
from harness.hosts.places import PlaceConfig, PlaceHost
from harness.hosts.record import HUNG, HostRecord
from harness.labgrid import coordinator, keeper, place, tags
from harness.labgrid.claims import Claim
from harness.labgrid.place import Place, PlacesExcluded, PlacesTaken
from tests.processes import wait_for_end

SERVICE = {"address": "192.0.2.7", "username": "root", "port": 2022}
RESOURCES = {
    "one": {
        "NetworkService": SERVICE,
        "NetworkSerialPort": {"host": "192.0.2.8", "port": 7001, "speed": 115200, "protocol": "raw"},
        "NetworkPowerPort": {"model": "simplerest", "host": "http://127.0.0.1:9/{index}/{value}", "index": 1},
    },
    "two": {"NetworkService": {"address": "2001:db8::2", "username": "root"}},
    "bare": {"NetworkPowerPort": {"model": "simplerest", "host": "http://127.0.0.1:9/{index}/{value}", "index": 2}},
}
HOLDER = """
import signal, sys, time
from harness.deadline import Deadline
from harness.labgrid import place
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
held = place.acquire("labgrid:name=one", sys.argv[1], Deadline(60))
print(held._keeper._process.pid, flush=True)
time.sleep(200)
"""


def kill(pid: int) -> None:
    """Kill a process and wait for its end: it holds its locks until then."""
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labgrid]:
    found = Labgrid(tmp_path_factory.mktemp("labgrid"), RESOURCES)
    found.add_place("one", "one", arch="amd64", tag="xen")
    found.add_place("two", "two", arch="arm64", tag="xen")
    found.add_place("bare", "bare", arch="riscv")
    yield found
    found.close()


@pytest.fixture
def lab(servers: Labgrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Labgrid]:
    """The servers with free places."""
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LG_COORDINATOR", servers.address)
    yield servers
    for name in ("one", "two"):
        servers.wait_free(name)


@pytest.fixture
def take(lab: Labgrid) -> Iterator[Callable[..., Place]]:
    held: list[Place] = []

    def acquire(address: str, **more: Any) -> Place:
        held.append(place.acquire(address, lab.address, more.pop("deadline", Deadline(60)), **more))
        return held[-1]

    yield acquire
    for one in held:
        one.end()


# -- addresses --------------------------------------------------------------------------------------------------------


def test_the_tags_of_one_address_stay_together() -> None:
    assert tags.split("a, labgrid:tag=xen,arch=amd64,b,labgrid:name=x,,c") == [
        "a",
        "labgrid:tag=xen,arch=amd64",
        "b",
        "labgrid:name=x",
        "c",
    ]
    assert tags.split("a,b=c") == ["a", "b=c"]
    rack = HostConfig("labgrid:tag=xen", name="rack", key="k")
    found = pool.select_hosts("rack,labgrid:tag=xen,arch=amd64", {"rack": rack})
    assert [host.address for host in found] == ["labgrid:tag=xen", "labgrid:tag=xen,arch=amd64"]
    assert pool.label("labgrid:tag=xen,arch=amd64") == "labgrid-tag-xen-arch-amd64"
    assert [pool.is_one(hosts) for hosts in ([HostConfig("a")], found[:1], found)] == [True, False, False]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("labgrid:", "no tags"), ("labgrid:xen", "invalid tag 'xen'"), ("labgrid:Tag=x", "invalid tag"), ("labgrid:tag=", "invalid tag"),
        ("labgrid:tag=a b", "invalid tag"), ("labgrid:tag=x,root@y", "invalid tag"),
    ],
)  # fmt: skip
def test_invalid_tags_are_usage_errors(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tags.parse(address)


def test_without_labgrid_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"labgrid is not installed\n  hint: pip install 'freebsd-xen-harness\[labgrid\]'"):
        pool.select_hosts("labgrid:tag=xen", {})


def test_fxh_toml_has_precedence_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fxh.toml").write_text('[labgrid]\ncoordinator = "lab:1"\n[hosts.rack]\naddress = "labgrid:tag=xen"\n')
    monkeypatch.setenv("FXH_CONFIG", str(tmp_path / "fxh.toml"))
    monkeypatch.setenv("LG_COORDINATOR", "other:2")
    assert places.coordinator() == "lab:1"
    assert tags.coordinator("") == "other:2"
    assert load().config.hosts["rack"].address == "labgrid:tag=xen"


# -- acquiring --------------------------------------------------------------------------------------------------------


def test_a_place_becomes_a_host(lab: Labgrid) -> None:
    config = HostConfig("labgrid:tag=xen,arch=amd64", name="rack", key="k", bridge="br7")
    found = places.take(config, Deadline(60), nowait=True)
    try:
        assert isinstance(found, PlaceConfig)
        assert (found.address, found.name, found.key, found.bridge) == ("root@192.0.2.7:2022", "labgrid:name=one", "k", "br7")
        assert found.serial == ("tcp:192.0.2.8:7001",)
        assert found.power is not None
        assert found.power.status[-2:] == ("power", "get")
        assert lab.owner("one").split("/")[1].startswith("fxh-")
        assert dict(places.survey(config).places) == {"one": lab.owner("one")}
        power = places.power_of(found)
        assert power is not None
        with pytest.raises(InfrastructureError, match=r"(?s)power get of labgrid place one.*hint: ask the administrator") as caught:
            power.status()
        assert "Connection refused" in caught.value.message
    finally:
        places.give_back(found)
    places.give_back(found)
    assert lab.owner("one") == ""


def test_a_place_without_power_and_serial_port(take: Callable[..., Place]) -> None:
    found = take("labgrid:name=two")
    assert found.service.route == "root@[2001:db8::2]:22"
    assert not found.has_power
    assert found.serial == ()


def test_workers_share_a_place_and_the_last_one_releases_it(take: Callable[..., Place], lab: Labgrid) -> None:
    first, second = take("labgrid:name=one"), take("labgrid:name=one", nowait=True)
    assert (first.shared, second.shared) == (False, True)
    first.end()
    assert lab.owner("one") != ""
    third = take("labgrid:tag=xen,arch=amd64", nowait=True)
    assert third.shared
    second.end()
    third.end()
    assert lab.owner("one") == ""


def test_workers_spread_over_free_places_and_avoid_a_bad_one(take: Callable[..., Place]) -> None:
    first = take("labgrid:tag=xen", avoid=["one"])
    assert first.name == "two"
    second = take("labgrid:tag=xen", avoid=["one"])
    assert (second.name, second.shared) == ("two", True), "rather share a good place than have a bad one"
    third = take("labgrid:tag=xen", avoid=["one", "two"])
    assert (third.name, third.shared) == ("one", False)
    fourth = take("labgrid:tag=xen", avoid=["one"])
    assert fourth.name == "two", "it is the last choice, although it was shared first"


def test_an_excluded_place_is_neither_taken_nor_queued_for(take: Callable[..., Place], lab: Labgrid) -> None:
    assert take("labgrid:tag=xen", exclude=["one"]).name == "two"
    assert take("labgrid:tag=xen", exclude=["one"], nowait=True).shared
    with pytest.raises(PlacesExcluded, match="each place with tag=xen is excluded: one, two") as caught:
        take("labgrid:tag=xen", exclude=["one", "two"])
    assert caught.value.names == ("one", "two")


def test_a_free_place_that_is_excluded_does_not_end_the_wait(take: Callable[..., Place], lab: Labgrid) -> None:
    lab.acquire("two")
    try:
        with pytest.raises(DeadlineExpired):
            take("labgrid:tag=xen", exclude=["one"], deadline=Deadline(4))
        assert lab.owner("one") == ""
    finally:
        lab.release("two")


def test_a_taken_place_is_waited_for_in_turn(take: Callable[..., Place], lab: Labgrid) -> None:
    lab.acquire("one")
    with pytest.raises(PlacesTaken, match="are taken: one by desk/anna"):
        take("labgrid:name=one", nowait=True)
    with pytest.raises(DeadlineExpired, match="a labgrid place for labgrid:name=one"):
        take("labgrid:name=one", deadline=Deadline(3))
    assert lab.reservations() == [], "the reservation is cancelled"
    waiting = subprocess.Popen([sys.executable, "-c", HOLDER, lab.address], stdout=subprocess.PIPE, text=True)
    try:
        _wait(lambda: lab.reservations() == ["waiting"], "the reservation")
        lab.release("one")
        assert waiting.stdout is not None
        assert waiting.stdout.readline().strip().isdigit()
        assert "/fxh-" in lab.owner("one")
    finally:
        waiting.kill()
        waiting.wait()
    lab.wait_free("one")


# -- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_place_acquired(lab: Labgrid, killed: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, lab.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lab.owner("one") != ""
        holder.send_signal(killed)
    lab.wait_free("one")


def test_the_next_run_releases_what_a_killed_keeper_left(lab: Labgrid) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, lab.address], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        kill(int(holder.stdout.readline()))
        holder.kill()
    left = lab.owner("one")
    assert left != ""
    assert places.left_behind() == [("one", lab.address)]
    found = place.acquire("labgrid:name=one", lab.address, Deadline(60), nowait=True)
    assert lab.owner("one") not in ("", left)
    assert not found.shared
    found.end()
    assert places.left_behind() == []


def test_clean_releases_it_too_but_not_the_place_of_another_user(lab: Labgrid) -> None:
    for other in (False, True):
        with subprocess.Popen([sys.executable, "-c", HOLDER, lab.address], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            kill(int(holder.stdout.readline()))
            holder.kill()
        if other:
            lab.release("one")
            lab.acquire("one")
        places.release_left_behind(lab.address)
        assert lab.owner("one") == ("desk/anna" if other else "")
    lab.release("one")


def test_a_kept_place_outlives_its_run_for_that_time(lab: Labgrid) -> None:
    found = place.acquire("labgrid:name=one", lab.address, Deadline(60))
    assert found.keep(600)
    begun = time.monotonic()
    found.end()
    assert time.monotonic() - begun < 30, "it does not wait for the keeper, which it would do for 45 s"
    assert lab.owner("one") != ""
    kill(found._keeper._process.pid)
    places.release_left_behind(lab.address)
    found = place.acquire("labgrid:name=one", lab.address, Deadline(60))
    begun = time.monotonic()
    assert found.keep(3)
    found.end()
    lab.wait_free("one")
    assert time.monotonic() - begun >= 3


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        (
            "labgrid:tag=xne",
            "no place at labgrid coordinator {0} has tag=xne",
            "correct the tags, or ask the administrator of the lab",
        ),
        ("labgrid:arch=riscv", "labgrid place bare has no NetworkService", "start the exporter of bare"),
    ],
)
def test_no_usable_place(lab: Labgrid, address: str, message: str, hint: str) -> None:
    with pytest.raises(InfrastructureError) as caught:
        place.acquire(address, lab.address, Deadline(60))
    assert caught.value.message == message.format(lab.address)
    assert caught.value.hint.startswith(hint)


def test_a_coordinator_that_is_down(lab: Labgrid) -> None:
    with pytest.raises(InfrastructureError, match=r"no labgrid coordinator answers at 127\.0\.0\.1:1\n  hint: start it, or ask"):
        place.acquire("labgrid:tag=xen", "127.0.0.1:1", Deadline(60))


def test_an_exporter_that_is_down(lab: Labgrid) -> None:
    lab.stop_exporter()
    try:
        with pytest.raises(InfrastructureError, match="labgrid place one has no NetworkService"):
            place.acquire("labgrid:name=one", lab.address, Deadline(60))
    finally:
        lab.start_exporter()


def test_a_place_whose_tags_change_meanwhile_is_given_back(lab: Labgrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = coordinator.Coordinator.acquire

    async def retagged(self: coordinator.Coordinator, name: str) -> None:
        # In a process, because gRPC supports one event loop at a time.
        argv = [sys.executable, "-m", "labgrid.remote.client", "-x", lab.address, "-p", name, "set-tags", "arch=arm64"]
        await asyncio.to_thread(subprocess.run, argv, check=True)
        await real(self, name)

    async def run() -> None:
        found = keeper.Keeper(
            {
                "coordinator": lab.address,
                "claims": str(tmp_path),
                "tags": {"arch": "amd64"},
                "nowait": True,
                "avoid": [],
                "exclude": [],
            }
        )
        try:
            with pytest.raises(coordinator.Refused, match="gave place one, which has arch=arm64,tag=xen, not arch=amd64") as caught:
                await found.acquire()
            assert caught.value.hint == "ask the administrator of the lab to correct the tags of one"
        finally:
            await found.release()

    monkeypatch.setattr(coordinator.Coordinator, "acquire", retagged)
    try:
        asyncio.run(run())
    finally:
        lab.tag("one", arch="amd64")
    assert lab.owner("one") == ""


def test_an_acquisition_without_an_answer_leaves_nothing_acquired(
    lab: Labgrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator acquires the place, but its answer is lost."""
    real, taken = coordinator.Coordinator.acquire, []

    async def unanswered(self: coordinator.Coordinator, name: str) -> None:
        assert name == "one" or self.places["one"].acquired is None, "the first place is released before the second is acquired"
        await real(self, name)
        taken.append(name)
        if name == "one":
            raise coordinator.Refused("deadline exceeded")

    async def run() -> str:
        request = {"coordinator": lab.address, "claims": str(tmp_path), "nowait": True, "avoid": [], "exclude": []}
        found = keeper.Keeper(request | {"tags": {"tag": "xen"}})
        try:
            return str((await found.acquire())["place"])
        finally:
            await found.release()

    monkeypatch.setattr(coordinator.Coordinator, "acquire", unanswered)
    assert asyncio.run(run()) == "two"
    assert taken == ["one", "two"]
    assert [lab.owner(name) for name in taken] == ["", ""]


def cancel_an_acquisition(lab: Labgrid) -> bool:
    """End a keeper that acquires a place. Returns whether it had an answer by then."""
    with lab.slow_exporter() as answer:
        holder = place._Keeper(place._request(lab.address, mode="hold", tags={"name": "one"}, nowait=True, avoid=[], exclude=[]))
        later = threading.Timer(1, answer)
        try:
            _wait(lambda: lab.owner("one") != "" or holder._answer is not None, "the place to be acquired")
            return holder._answer is not None
        finally:
            later.start()
            holder.end()
            later.join()


def test_an_acquisition_that_is_canceled_leaves_the_resources_free(lab: Labgrid) -> None:
    """The coordinator shows a place as acquired while it still waits for the exporter."""
    for _ in range(5):
        before = lab.count_in_log("failed to acquire")
        answered = cancel_an_acquisition(lab)
        lab.wait_free("one", resources=False)
        # The coordinator waits 10 s for the exporter. On a busy machine that can be too short.
        if lab.count_in_log("failed to acquire") == before:
            break
        lab.wait_free("one")
    assert not answered
    lab.acquire("one")
    lab.release("one")


def test_a_reservation_whose_request_is_canceled_is_canceled_too() -> None:
    """The coordinator makes it all the same."""
    canceled: list[str] = []
    found, asked = coordinator.Coordinator("c:1", "a/b"), asyncio.Event()

    async def create(request: Any, timeout: float) -> Any:
        asked.set()
        await asyncio.sleep(0.1)
        return SimpleNamespace(reservation=SimpleNamespace(token="t1"))

    async def cancel(request: Any, timeout: float) -> None:
        canceled.append(request.token)

    async def run() -> None:
        reserving = asyncio.create_task(found.reserve({"tag": "xen"}))
        await asked.wait()
        reserving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reserving

    found._session = SimpleNamespace(stub=SimpleNamespace(CreateReservation=create, CancelReservation=cancel))
    asyncio.run(run())
    assert canceled == ["t1"]


def test_a_place_without_a_service_does_not_end_the_wait_for_others(lab: Labgrid, take: Callable[..., Place]) -> None:
    lab.tag("bare", tag="xen")
    for name in ("one", "two"):
        lab.acquire(name)
    try:
        with pytest.raises(PlacesTaken, match="are taken: one by desk/anna, two by desk/anna"):
            take("labgrid:tag=xen", nowait=True)
    finally:
        for name in ("one", "two"):
            lab.release(name)
        lab.tag("bare", tag="none")


def test_a_coordinator_that_restarts_gives_the_place_again(take: Callable[..., Place], lab: Labgrid) -> None:
    found = take("labgrid:name=one")
    owner = lab.owner("one")
    # It forgets what it has not saved, and saves its places every 15 s.
    _wait(lambda: lab.saved_owner("one") == owner, "the coordinator to save its places")
    lab.stop()
    lab.start()
    _wait(lambda: lab.owner("one") == owner, "the place to be acquired again")
    assert found.lost == ""


def test_a_place_that_another_user_took_is_lost(take: Callable[..., Place], lab: Labgrid, caplog: pytest.LogCaptureFixture) -> None:
    found = take("labgrid:name=one")
    lab.release("one")
    lab.acquire("one")
    _wait(lambda: found.lost != "", "the loss")
    # The keeper may look before the other user has the place.
    assert re.match(r"labgrid place one was taken from this run: it is acquired by (desk/anna|no user) \(ask its user", found.lost)
    found.end()
    assert lab.owner("one") == "desk/anna"
    lab.release("one")


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (SimpleNamespace(acquired="desk/anna"), "it is acquired by desk/anna"),
        (SimpleNamespace(acquired=None), "it is acquired by no user"),
        (None, "it no longer exists"),
    ],
)
def test_a_lost_place_names_its_user(now: SimpleNamespace | None, words: str, tmp_path: Path) -> None:
    found = keeper.Keeper({"coordinator": "c:1", "claims": str(tmp_path), "tags": {}, "nowait": True, "avoid": [], "exclude": []})
    found._coordinator = SimpleNamespace(places={} if now is None else {"one": now})  # type: ignore[assignment]
    with pytest.raises(coordinator.Refused, match=f"labgrid place one was taken from this run: {words}$"):
        found._check(Claim("c:1", "one", "here/fxh-me"))


def test_a_keeper_that_dies_loses_the_place(take: Callable[..., Place], lab: Labgrid) -> None:
    found = take("labgrid:name=one")
    os.kill(found._keeper._process.pid, signal.SIGKILL)
    _wait(lambda: found.lost != "", "the loss")
    assert found.lost == "the process that holds the labgrid place ended with status -9: "
    found.end()
    places.release_left_behind(lab.address)


def test_a_lost_place_is_replaced_and_never_switched_off(lab: Labgrid) -> None:
    """A host that another user has now must not be power-cycled."""

    class Host(PlaceHost):
        def acquire(self, request: Any, deadline: Deadline) -> None:
            pass

        def check(self) -> None:
            if self.place.lost:
                raise InfrastructureError(self.place.lost)

    hosts = pool.HostPool(
        [HostConfig("labgrid:tag=xen")], connect=lambda config, what: Host(SimpleNamespace(), config=config)  # type: ignore[arg-type]
    )  # fmt: skip
    hosts._read_serial = lambda config: None  # type: ignore[method-assign]
    pool_boot = "harness.hosts.recovery.read_boot_id"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_boot, lambda transport: "boot")
        try:
            first = hosts.acquire(pool.LeaseRequest("", 1), Deadline(60))
            assert isinstance(first, PlaceHost)
            assert first.config.name == "labgrid:name=one"
            lab.release("one")
            lab.acquire("one")
            _wait(lambda: first.failure != "", "the loss")
            with pytest.raises(InfrastructureError, match=r"is acquired by (desk/anna|no user)"):
                first.check()
            hosts.mark_lost(first.config.name, first.failure, "run1", hangs=True)
            assert hosts._recoveries == {}
            second = hosts.acquire(pool.LeaseRequest("", 1), Deadline(60))
            assert second.config.name == "labgrid:name=two"
        finally:
            hosts.close()
    assert lab.owner("one") == "desk/anna"
    lab.release("one")


class Dom0(PlaceHost):
    """A place's host without ssh, which is good unless ``bad`` has its place."""

    bad: ClassVar[Mapping[str, InfrastructureError]] = {}
    log: ClassVar[list[str]] = []

    def acquire(self, request: Any, deadline: Deadline) -> None:
        self.log.append(self.place.name)

    def check(self) -> None:
        if self.place.name in self.bad:
            raise self.bad[self.place.name]


@pytest.fixture
def rack(lab: Labgrid, monkeypatch: pytest.MonkeyPatch) -> Iterator[pool.HostPool]:
    monkeypatch.setattr(Dom0, "bad", {})
    monkeypatch.setattr(Dom0, "log", [])
    monkeypatch.setattr(pool.HostPool, "_read_serial", lambda self, config: None)
    found = pool.HostPool(
        [HostConfig("labgrid:tag=xen")], connect=lambda config, what: Dom0(SimpleNamespace(name="x", close=lambda: None), config=config),
        power=lambda config: None,
    )  # type: ignore[arg-type]  # fmt: skip
    yield found
    found.close()


def test_a_place_that_is_set_aside_does_not_block_the_others(rack: pool.HostPool, lab: Labgrid) -> None:
    HostRecord("labgrid:name=one").set_aside(HUNG, "no heartbeat")
    assert rack.acquire(pool.LeaseRequest("", 1), Deadline(60)).config.name == "labgrid:name=two"
    assert Dom0.log == ["two"]
    rack.close()
    HostRecord("labgrid:name=two").set_aside(HUNG, "no power")
    with pytest.raises(InfrastructureError, match=r"(?s)no host works:.*name=one is set aside .*: no heartbeat.*name=two is set"):
        rack.acquire(pool.LeaseRequest("", 1), Deadline(60))


def test_a_place_that_is_set_aside_meanwhile_is_released(rack: pool.HostPool, monkeypatch: pytest.MonkeyPatch) -> None:
    HostRecord("labgrid:name=one").set_aside(HUNG, "no heartbeat")
    monkeypatch.setattr(places, "places_set_aside", list)
    assert rack.acquire(pool.LeaseRequest("", 1), Deadline(60)).config.name == "labgrid:name=two"


@pytest.mark.parametrize(
    "error", [InfrastructureError("has the tag arch=arm64"), TransportError("no route"), HostTooSmall("has 1 MiB")]
)
def test_a_place_that_does_not_work_does_not_block_the_others(
    rack: pool.HostPool, lab: Labgrid, error: InfrastructureError
) -> None:
    Dom0.bad = {"one": error}
    assert rack.acquire(pool.LeaseRequest("", 1), Deadline(60)).config.name == "labgrid:name=two"
    assert Dom0.log == ["one", "two"]
    assert lab.owner("one") == ""


def test_each_place_that_does_not_work_is_tried_once(rack: pool.HostPool) -> None:
    Dom0.bad = {name: TransportError(f"no route to {name}") for name in ("one", "two")}
    with pytest.raises(
        InfrastructureError, match=r"no host works:\n  labgrid:name=one: no route to one\n  labgrid:name=two: no route"
    ):
        rack.acquire(pool.LeaseRequest("", 1), Deadline(60))
    assert Dom0.log == ["one", "two"]


class SlowRecovery:
    """A recovery that runs until it is told to end."""

    made: ClassVar[list[SlowRecovery]] = []

    def __init__(self, config: HostConfig, *rest: Any) -> None:
        self.config, self.why, self.answered, self.running = config, "no heartbeat", 0.0, False
        self.error: InfrastructureError | None = None
        self.made.append(self)

    def start(self) -> None:
        self.running = True

    def request_stop(self) -> None: ...

    def stop(self) -> None:
        self.running = False


@pytest.fixture
def switched(rack: pool.HostPool, monkeypatch: pytest.MonkeyPatch) -> pool.HostPool:
    """Places with power ports, whose recovery takes time."""
    monkeypatch.setattr(SlowRecovery, "made", [])
    monkeypatch.setattr(pool, "Recovery", SlowRecovery)
    monkeypatch.setattr(pool, "_PAUSE", 0.05)
    monkeypatch.setattr(pool.recovery, "read_boot_id", lambda transport: "boot")
    rack.power = lambda config: SimpleNamespace()  # type: ignore[assignment, return-value]
    return rack


def lease(hosts: pool.HostPool) -> HostConfig:
    return hosts.acquire(pool.LeaseRequest("", 1), Deadline(60)).config


def hang(hosts: pool.HostPool, host: HostConfig) -> SlowRecovery:
    hosts.mark_lost(host.name, "no heartbeat", hangs=True)
    return SlowRecovery.made[-1]


def test_another_place_is_used_while_one_comes_back(switched: pool.HostPool, lab: Labgrid) -> None:
    recovery = hang(switched, first := lease(switched))
    assert first.name == "labgrid:name=one"
    second = lease(switched)
    assert second.name == "labgrid:name=two"
    assert lab.owner("one") != "", "its power port is needed"
    assert not switched.own_place_is_back(second)
    recovery.running = False
    assert not switched.own_place_is_back(second), "it has a place for itself"
    assert lab.owner("one") == ""
    assert lease(switched).name == "labgrid:name=two"


@pytest.mark.parametrize("fails", ["", "recovery", "place"])
def test_a_place_that_came_back_is_better_than_a_shared_one(
    switched: pool.HostPool, lab: Labgrid, take: Callable[..., Place], fails: str
) -> None:
    other_worker = take("labgrid:name=two")
    recovery = hang(switched, first := lease(switched))
    second = lease(switched)
    assert second.name == "labgrid:name=two"
    if fails == "place":
        assert isinstance(first, PlaceConfig)
        assert first.place
        first.place._keeper.lost = "it was released with --kick"
    recovery.error = InfrastructureError("the power is off") if fails == "recovery" else None
    recovery.running = False
    assert switched.own_place_is_back(second) is (not fails)
    if not fails:
        assert lease(switched).name == "labgrid:name=one"
    assert (lab.owner("one") == "") is bool(fails)
    other_worker.end()
    assert (lab.owner("two") == "") is (not fails), "the worker gave it back or shares it"


def test_a_worker_does_not_queue_for_a_full_place_while_its_own_comes_back(
    switched: pool.HostPool, lab: Labgrid, take: Callable[..., Place]
) -> None:
    take("labgrid:name=two")
    recovery = hang(switched, lease(switched))
    Dom0.bad = {"two": HostBusy("no room")}
    threading.Timer(3.0, recovery.stop).start()
    assert lease(switched).name == "labgrid:name=one"


def test_a_recovery_that_ends_at_once_is_not_missed(switched: pool.HostPool, lab: Labgrid, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.acquire("two")
    try:
        first = lease(switched)
        monkeypatch.setattr(SlowRecovery, "start", lambda self: None)
        hang(switched, first)
        assert lease(switched).name == "labgrid:name=one"
    finally:
        lab.release("two")


def test_a_place_that_came_back_does_not_replace_another_host(switched: pool.HostPool, lab: Labgrid) -> None:
    recovery = hang(switched, lease(switched))
    recovery.running = False
    assert not switched.own_place_is_back(HostConfig("xen1", name="xen1"))
    assert lab.owner("one") == ""


def test_each_labgrid_host_is_asked_in_its_own_time(switched: pool.HostPool, lab: Labgrid, monkeypatch: pytest.MonkeyPatch) -> None:
    switched.hosts = [HostConfig("labgrid:name=one"), HostConfig("labgrid:arch=arm64")]
    hang(switched, lease(switched))
    assert lease(switched).name == "labgrid:name=two"


def test_the_end_of_a_run_releases_a_place_that_comes_back(switched: pool.HostPool, lab: Labgrid) -> None:
    hang(switched, lease(switched))
    switched.close()
    assert not SlowRecovery.made[0].running
    lab.wait_free("one")


def test_without_another_place_the_hung_one_is_awaited(
    switched: pool.HostPool, lab: Labgrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    take = places.take

    def ask(config: HostConfig, *rest: Any, **more: Any) -> HostConfig:
        asked.append(config.address)
        threading.Timer(3.0, recovery.stop).start()
        return take(config, *rest, **more)

    lab.acquire("two")
    try:
        recovery = hang(switched, lease(switched))
        monkeypatch.setattr(places, "take", ask)
        assert lease(switched).name == "labgrid:name=one"
        assert len(asked) == 1, "each request starts a process"
    finally:
        lab.release("two")


@pytest.mark.parametrize(
    ("tag", "machine", "good"), [("amd64", "x86_64", True), ("arm64", "x86_64", False), ("sparc", "x86_64", True)]
)
def test_the_architecture_of_a_place_is_checked(tag: str, machine: str, good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectHost, "check", lambda self: None)
    held = SimpleNamespace(name="one", lost="", tags={"arch": tag})
    host = PlaceHost(SimpleNamespace(name="x"), config=PlaceConfig("root@x:22", place=held))  # type: ignore[arg-type]
    host.__dict__["info"] = SimpleNamespace(values=(("machine", machine),))
    if good:
        host.check()
    else:
        with pytest.raises(InfrastructureError, match="labgrid place one has the tag arch=arm64, but its host is x86_64"):
            host.check()


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ({"address": "192.0.2.7"}, "username: None"), ({**SERVICE, "username": 7}, "username: 7"), ({"username": "root"}, "address: None"),
        ({**SERVICE, "port": "ssh"}, "port: 'ssh'"), ({**SERVICE, "port": None}, "port: None"), ({**SERVICE, "port": 0}, "port: 0"),
        ({**SERVICE, "port": 65536}, "port: 65536"), ({**SERVICE, "port": "2022"}, ""), ({"address": "x", "username": "root"}, ""),
    ],
)  # fmt: skip
def test_an_invalid_service_names_its_place(service: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = coordinator.Coordinator("c:1", "a/b")
    monkeypatch.setattr(found, "resources", lambda place: {"ssh": ("NetworkService", service, {})})
    one = SimpleNamespace(name="one", tags={})
    if not words:
        assert found.describe(one)["service"]["port"] in (22, 2022)  # type: ignore[arg-type]
        return
    with pytest.raises(coordinator.Refused, match=f"the NetworkService of labgrid place one has an invalid {words}"):
        found.describe(one)  # type: ignore[arg-type]


def test_the_doctor_names_the_place_of_a_serial_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    held = SimpleNamespace(name="one", lost="")
    config = PlaceConfig(
        "root@x:22", name="labgrid:name=one", serial=(f"unix:{tmp_path}/none",), place=held, source=HostConfig("labgrid:tag=xen")
    )  # type: ignore[arg-type]  # fmt: skip
    (check,) = equipment.examine(config)
    assert check.status == "fail"
    assert check.detail.startswith("labgrid place one: ")
    assert "hosts.labgrid:name=one" not in check.hint
    assert "the serial port of one" in check.hint


@pytest.mark.parametrize(
    ("name", "service", "words"),
    [("../x", SERVICE, "invalid name of a labgrid place"), ("x", {**SERVICE, "address": "-oProxyCommand=x"}, "invalid address")],
)
def test_a_hostile_coordinator_names_no_path_and_no_option(name: str, service: dict[str, Any], words: str) -> None:
    held = {
        "place": name,
        "tags": {},
        "service": {**service, "proxy": ""},
        "owner": "a/b",
        "power": [],
        "serial": None,
        "shared": False,
    }
    with pytest.raises(InfrastructureError, match=words):
        places._configured(HostConfig("labgrid:tag=xen"), Place(SimpleNamespace(), "c:1", held))  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", ["raw", "rfc2217"])
def test_the_serial_program_prints_every_byte(protocol: str) -> None:
    """The server has pyserial's own half of RFC 2217. 0xff is its escape, and a terminal would change the line ends."""
    said = b"(XEN) Xen version 4.20\r\n" + bytes(range(256))
    printed = threading.Event()
    # IAC SB COM-PORT-OPTION PURGE-DATA 2 IAC SE: the client's last request. It drops what it received before.
    ready = b"\xff\xfa\x2c\x0c\x02\xff\xf0"

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            peer = SimpleNamespace(write=connection.sendall)
            manager = serial.rfc2217.PortManager(serial.serial_for_url("loop://"), peer) if protocol == "rfc2217" else None
            if manager is not None:
                came = b""
                while ready not in came and (data := connection.recv(1024)):
                    came += data
                    b"".join(manager.filter(data))
            connection.sendall(said if manager is None else b"".join(manager.escape(said)))
            # At the end of the connection, pyserial loses what the client has not read yet.
            printed.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        port = {"protocol": protocol, "host": "127.0.0.1", "port": server.getsockname()[1], "speed": 115200, "proxy": "needed"}
        *argv, proxy = place._serial(port)
        assert (argv[1:3], proxy) == (["-m", "harness.labgrid.serial"], "needed")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            assert client.stdout is not None
            out = client.stdout.read(len(said))
            printed.set()
            rest, errors = client.communicate(timeout=120)
    assert out + rest == said
    assert client.returncode == (protocol == "rfc2217")
    assert b"Traceback" not in errors


def _wait(condition: Callable[[], bool], what: str) -> None:
    def check() -> None:
        if not condition():
            raise ConditionNotMet("not yet")

    Deadline(60).wait(what, check, 0.2)
