"""What happens to a run when something happens to its host. In each: no wrong verdict, nothing left behind, the run ends."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from remote_host import Remote


def test_ssh_cut_and_restored_in_the_middle_of_a_case(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault", "--xen-host", "one")
    run.wait_for(remote.mark("running"))
    time.sleep(2)
    remote.one.cut()
    time.sleep(5)
    remote.one.restore()
    assert run.end() == 0
    assert run.outcomes == {"test_b_fault": "passed"}
    assert run.cases["test_b_fault"]["inputs"]["run again because"]
    remote.wait_clean()


def test_a_host_that_is_lost_leaves_its_cases_to_another(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault", "--xen-host", "one,two")
    run.wait_for(remote.mark("running"))
    remote.one.cut()
    assert run.end() == 0
    assert {case["inputs"]["host"] for case in run.cases.values()} == {"two"}
    # The cell is the pool's: a night's cells are the same, whichever host served.
    assert {case["cell"] for case in run.cases.values()} == {"control-pv-one-two"}
    # The lost one's share goes by itself after its silence.
    remote.wait_clean(120)


def test_power_cut_and_the_host_comes_back(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault", "--xen-host", "one")
    run.wait_for(remote.mark("running"))
    remote.kill()
    time.sleep(5)
    remote.fxh("lab", "up", remote.name, "--keep")
    remote._configure()
    assert run.end() == 0
    assert run.outcomes == {"test_b_fault": "passed"}
    remote.wait_clean()


def test_power_cut_for_good(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault or last", "--xen-host", "one", FXH_RUN_LEASE_WAIT="10")
    run.wait_for(remote.mark("running"))
    remote.kill()
    begun = time.monotonic()
    assert run.end() == 4
    assert run.outcomes == {"test_b_fault": "infrastructure", "test_c_last": "infrastructure"}
    assert time.monotonic() - begun < 120


def test_controller_killed_and_resumed(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "first or fault", "--xen-host", "one")
    run.wait_for(remote.mark("running"))
    run.process.send_signal(signal.SIGKILL)
    run.process.communicate()
    assert run.outcomes == {"test_a_first": "passed"}
    # The run ends with its controller: not after a silence.
    remote.wait_clean(30)
    first = run.cases["test_a_first"]["started"]
    name = run.latest.resolve().name
    out = remote.fxh("run", "--resume", name, "--reports", str(run.reports))
    assert "1 passed" in out
    assert run.outcomes == {"test_a_first": "passed", "test_b_fault": "passed"}
    assert run.cases["test_a_first"]["started"] == first, "a finished case ran again"
    assert json.loads((run.latest / "run.json").read_text())["exit_code"] == 0
    assert run.latest.resolve().name == name
    remote.wait_clean()


def test_xenconsoled_killed(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault or last", "--xen-host", "one", FXH_RUN_LEASE_WAIT="10")
    run.wait_for(remote.mark("running"))
    remote.dom0("kill -9 $(pidof xenconsoled)")
    assert run.end() == 4
    assert set(run.outcomes.values()) == {"infrastructure"}
    assert "xenconsoled" in run.cases["test_c_last"]["reason"]
    remote.wait_clean()


def test_disk_full_in_dom0(remote: Remote, suite: Path) -> None:
    remote.dom0("dd if=/dev/zero of=/var/lib/filler bs=1M 2>/dev/null; sync; df -P /var/lib | tail -n 1")
    run = remote.start(suite, "-k", "first", "--xen-host", "one", FXH_RUN_LEASE_WAIT="10")
    assert run.end() == 4
    assert run.outcomes == {"test_a_first": "infrastructure"}
    doctor = remote.fxh("doctor", "one", check=False)
    assert "fail  disk" in doctor
    remote.dom0("rm /var/lib/filler")
    remote.wait_clean()


def test_two_controllers_on_one_host(remote: Remote, suite: Path) -> None:
    runs = [remote.start(suite, "-k", "fault", "--xen-host", host, name=f"reports-{host}") for host in ("one", "two")]
    runs[0].wait_for(remote.mark("running"))
    rows = json.loads(remote.fxh("hosts", "one", "--json"))["one"]["leases"]
    assert len({row["who"] for row in rows}) == 2
    assert {row["slot"] for row in rows if row["state"] == "held"} == {0, 1}
    assert [run.end() for run in runs] == [0, 0]
    macs = [
        line
        for run in runs
        for path in run.latest.glob("cases/*/*.cfg")
        for line in path.read_text().splitlines()
        if "mac=" in line
    ]
    assert len(macs) == len(set(macs)) == 2
    remote.wait_clean()


def test_a_host_with_room_for_one_is_shared_in_turns(remote: Remote, suite: Path) -> None:
    """Each takes a case, hears that the other waits, and queues behind him: nobody waits for a whole run."""
    runs = [
        remote.start(suite, "-k", "first or last", "--xen-host", host, name=f"turn-{host}", FXH_RUN_LEASE_MEMORY="1500")
        for host in ("one", "two")
    ]
    assert [run.end(900) for run in runs] == [0, 0]
    times = sorted((case["started"], n) for n, run in enumerate(runs) for case in run.cases.values())
    turns = [n for _, n in times]
    assert turns not in ([0, 0, 1, 1], [1, 1, 0, 0])
    remote.wait_clean()


def test_workers_spread_over_the_hosts(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-n", "2", "-k", "first or last", "--xen-host", "tag:all", "--scale", "3")
    assert run.end(900) == 0
    assert {case["inputs"]["host"] for case in run.cases.values()} == {"one", "two"}
    assert {case["cell"] for case in run.cases.values()} == {"control-pv-all"}
    remote.wait_clean()


def test_a_flood_on_the_console(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "flood", "--xen-host", "one", "--scale", "3")
    assert run.end(900) == 0
    remote.wait_clean()


def test_many_guests_leave_nothing(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "many", "--xen-host", "one", "--scale", "3")
    assert run.end(1800) == 0
    remote.wait_clean()


def test_a_failed_guest_is_kept_and_goes_by_itself(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "panics", "--xen-host", "one", "--keep", "failed", FXH_RUN_KEEP_MINUTES="1")
    assert run.end() == 1
    assert run.outcomes == {"test_f_panics": "failed"}
    assert "is kept, paused, until" in run.out
    assert "xl dump-core" in run.out
    assert "keeps fxh-" in remote.fxh("hosts", "one")
    assert any("fxh-" in line for line in remote.dom0("xl list").splitlines())
    assert "nothing was left behind" in remote.fxh("clean", "one"), "it has an owner"
    remote.wait_clean(120)
