# SPDX-License-Identifier: BSD-2-Clause
"""Leases with the real lease agent, on this machine and in a temporary directory. Xen is not needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.dom0 import lease_table
from harness.errors import DeadlineExpired, TransportError
from harness.hosts.lease import HostBusy, HostTooSmall, Lease, LeaseRequest, survey
from harness.transport.local import LocalTransport

LOCAL = LocalTransport()


class Host:
    """A host of 1000 MiB."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.leases: list[Lease] = []

    def request(self, run: str, memory: int, **more: Any) -> LeaseRequest:
        more = {"memory_limit": 1000, "vcpus_limit": 16, **more}
        return LeaseRequest(run, memory, 1, 1, "a test", base=str(self.base), poll=0.1, **more)

    def lease(self, run: str, memory: int, seconds: float = 60, **more: Any) -> Lease:
        lease = Lease(LOCAL, self.request(run, memory, **more)).acquire(Deadline(seconds))
        self.leases.append(lease)
        return lease

    def survey(self) -> dict[str, Any]:
        return survey(LOCAL, base=str(self.base), memory_limit=1000)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path / "fxh")
    yield found
    for lease in found.leases:
        lease.end()


def test_leases_share_a_host_until_it_is_full(host: Host) -> None:
    one, two = host.lease("aa", 400), host.lease("bb", 400)
    assert (one.slot, two.slot) == (0, 1)
    with pytest.raises(HostBusy, match="short of memory"):
        host.lease("cc", 400, nowait=True)
    with pytest.raises(HostTooSmall, match="1001 MiB"):
        host.lease("cc", 1001)
    deadline = Deadline(60)
    with pytest.raises(DeadlineExpired, match="short of memory"):
        # The deadline ends when the agent has answered.
        Lease(LOCAL, host.request("cc", 400)).acquire(deadline, lambda why: setattr(deadline, "_end", time.monotonic() + 0.5))
    one.end()
    assert host.lease("cc", 400).slot == 0
    rows = {row["run"]: row for row in host.survey()["leases"]}
    assert set(rows) == {"bb", "cc"}
    assert rows["bb"]["what"] == "a test"
    assert f"pid {os.getpid()}" in rows["bb"]["who"]


def test_leases_are_granted_in_order_and_a_holder_learns_that_others_wait(host: Host) -> None:
    one = host.lease("aa", 900)
    # When each lease was granted, by the lease table: two may be granted at once, and then the threads run in any order.
    held: dict[str, float] = {}

    def take(run: str, memory: int) -> None:
        lease = host.lease(run, memory, seconds=60)
        held[run] = next(row["since"] for row in host.survey()["leases"] if row["run"] == run)
        time.sleep(0.2)
        lease.end()

    threads = []
    for run, memory in (("big", 800), ("small", 50), ("big2", 700)):
        thread = threading.Thread(target=take, args=(run, memory))
        thread.start()
        threads.append(thread)

        def queued(run: str = run) -> None:
            if run not in [row["run"] for row in host.survey()["leases"]]:
                raise ConditionNotMet("not in the queue")

        Deadline(60).wait(run, queued)
    # There is room for the small request, but the big one came first.
    with pytest.raises(HostBusy, match="3 ahead in the queue"):
        host.lease("now", 10, nowait=True)
    assert not held

    def contended() -> None:
        if not one.contended:
            raise ConditionNotMet("the agent has not reported it")

    Deadline(60).wait("the holder to learn that others wait", contended)
    one.end()
    for thread in threads:
        thread.join(60)
    assert held["big"] < min(held["small"], held["big2"])


def test_a_killed_controller_leaves_nothing(host: Host) -> None:
    code = (
        "import sys,time;from pathlib import Path\n"
        "from harness.hosts.lease import *;from harness.transport.local import LocalTransport;from harness.deadline import Deadline\n"
        "w=LeaseRequest('dead',900,1,1,'x',memory_limit=1000,vcpus_limit=16,base=sys.argv[1])\n"
        "l=Lease(LocalTransport(),w).acquire(Deadline(20));Path(sys.argv[1]+'/run-dead').mkdir();print('held',flush=True);time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(host.base)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = time.monotonic()
    host.lease("next", 900)
    assert time.monotonic() - begun < 45, "well before the end of the silence, 60 s"
    assert not (host.base / "run-dead").exists()


def test_a_killed_agent_is_noticed_by_controller_and_host(host: Host) -> None:
    lease = host.lease("aa", 900)
    (host.base / "run-aa").mkdir()
    row = host.survey()["leases"][0]
    os.kill(row["pid"], signal.SIGKILL)

    Deadline(60).wait("the controller to notice", lambda: _lost(lease), 0.05)
    assert host.survey()["orphans"] == {"aa": [f"directory {host.base}/run-aa"]}
    assert host.lease("bb", 900).slot == 0
    assert not (host.base / "run-aa").exists()


def test_silence_ends_a_lease_and_a_superseding_request_ends_it_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.hosts import lease as module

    monkeypatch.setattr(module, "HEARTBEAT", 1000.0)
    silent = host.lease("aa", 900, silence=1.0)
    Deadline(60).wait("the silent lease to end", lambda: _no_lease(host))
    Deadline(60).wait("the controller to notice", lambda: _lost(silent), 0.05)
    host.lease("bb", 900)
    begun = time.monotonic()
    new = host.lease("cc", 900, supersede="bb")
    assert time.monotonic() - begun < 45, "well before the end of the silence, 60 s"
    assert new.slot == 0
    assert [row["run"] for row in host.survey()["leases"]] == ["cc"]


def _lost(lease: Lease) -> None:
    if not lease.lost:
        raise ConditionNotMet("not lost yet")


def _no_lease(host: Host) -> None:
    if host.survey()["leases"]:
        raise ConditionNotMet("a lease still exists")


def test_survey_lists_orphans_and_clean_removes_them(host: Host) -> None:
    host.lease("aa", 100)
    for run in ("aa", "gone"):
        (host.base / f"run-{run}").mkdir()
        (host.base / f"run-{run}" / "disk").write_bytes(b"x")
    assert host.survey()["orphans"] == {"gone": [f"directory {host.base}/run-gone"]}
    assert (host.base / "run-gone").exists(), "a survey removes nothing"
    assert survey(LOCAL, clean=True, base=str(host.base))["left"] == {}
    assert not (host.base / "run-gone").exists()
    assert (host.base / "run-aa" / "disk").exists()


def test_xl_processes_that_would_rebuild_a_domain_are_killed(host: Host, tmp_path: Path) -> None:
    """xl sleeps before it rebuilds a domain. Meanwhile it lists none."""
    shutil.copy("/bin/sh", tmp_path / "xl")

    def xl(run: str) -> subprocess.Popen[bytes]:
        config = host.base / f"run-{run}" / f"fxh-{run}-1-x.cfg"
        config.parent.mkdir(exist_ok=True)
        return subprocess.Popen([tmp_path / "xl", "-c", "read -r line; :", "create", config], stdin=subprocess.PIPE)

    host.lease("aa", 100)
    others, orphan = xl("aa"), xl("gone")
    try:
        assert survey(LOCAL, clean=True, base=str(host.base))["left"] == {}
        assert orphan.wait(10) == -signal.SIGKILL
        assert others.poll() is None, "its run has a lease"
    finally:
        for process in (others, orphan):
            process.kill()
            process.wait()


def test_a_lease_with_a_kept_domain_ends_by_itself(host: Host) -> None:
    lease = host.lease("aa", 900)
    assert not lease.keep_domain("fxh-bb-1-x", 60), "a domain of another run"
    assert lease.keep_domain("fxh-aa-1-x", 60)
    # The domain does not exist here, so the agent does not wait.
    lease.end()
    Deadline(60).wait("the lease to end", lambda: _no_lease(host))


def test_a_missing_python_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.errors import InfrastructureError

    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho 'no python here'; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InfrastructureError, match="no python here"):
        survey(LOCAL, base=str(tmp_path))


def test_a_local_stream_closes_its_descriptors_even_while_it_is_read() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        stream = LOCAL.open(["cat"])
        reader = threading.Thread(target=lambda stream=stream: stream.read(10, 30))
        reader.start()
        time.sleep(0.05)
        stream.close()
        stream.close()
        reader.join(5)
        assert not reader.is_alive()
        assert stream.read(1) == b""
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_xl_that_prints_nothing_is_no_small_host(host: Host) -> None:
    """Here xl is missing; one that hangs prints nothing either."""
    lease = Lease(LOCAL, host.request("aa", 1, memory_limit=0))
    with pytest.raises(TransportError, match="xl info prints nothing") as caught:
        lease.acquire(Deadline(20))
    assert "restart the host" in caught.value.hint
    assert host.survey()["leases"] == []


def test_an_agent_that_does_not_answer_may_be_on_a_hung_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue is no silence: the agent tells its place."""
    monkeypatch.setattr("harness.hosts.lease.HEARTBEAT", 0.05)
    monkeypatch.setattr("harness.hosts.lease._SILENT", 0.2)
    stream = mock.Mock()
    stream.read.side_effect = TimeoutError
    monkeypatch.setattr("harness.hosts.lease.dom0_program.start", lambda *args: stream)
    with pytest.raises(TransportError, match="for the lease agent"):
        Lease(LOCAL, host.request("aa", 1)).acquire(Deadline(60))


def test_a_file_that_another_agent_removes_is_no_error(tmp_path: Path) -> None:
    """glob(3) finds a dangling link as it finds a file that is gone a moment later."""
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert [path for path, _ in lease_table.stats(f"{tmp_path}/*")] == [str(tmp_path / "there")]
    lease_table.unlink(str(tmp_path / "nothing"))
