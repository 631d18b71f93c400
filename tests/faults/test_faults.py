# SPDX-License-Identifier: BSD-2-Clause
"""Faults of a host during a run. After each fault there is no wrong verdict, nothing remains, and the run ends."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from jump_host import Gate
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


def test_another_host_takes_the_cases_of_a_lost_one(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault", "--xen-host", "one,two")
    run.wait_for(remote.mark("running"))
    remote.one.cut()
    assert run.end() == 0
    assert {case["inputs"]["host"] for case in run.cases.values()} == {"two"}
    # The cell names the pool, so it does not depend on the host that served the case.
    assert {case["cell"] for case in run.cases.values()} == {"control-pv-one-two"}
    # The lease on the lost host ends after 60 s of silence.
    remote.wait_clean(120)


def test_power_cut_and_the_host_comes_back(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault", "--xen-host", "one")
    run.wait_for(remote.mark("running"))
    remote.kill()
    time.sleep(5)
    remote.fxh("lab", "up", remote.name, "--keep")
    remote.configure()
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
    # The lease ends with its controller, not after 60 s of silence.
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


@pytest.mark.parametrize("later", [0, 2, 4])
def test_controller_killed_in_a_restart_loop(remote: Remote, suite: Path, later: int) -> None:
    """Without the cleanup, xl would continue the loop and could build a domain at any moment."""
    entries = "xenstore-list /local/domain; xenstore-list /libxl"
    before = remote.dom0(entries)
    run = remote.start(suite, "-k", "loops", "--xen-host", "one", FXH_TEST_LATER=str(later))
    run.wait_for(remote.mark("running"))
    run.process.send_signal(signal.SIGKILL)
    run.process.communicate()
    remote.wait_clean(30)
    # xl sleeps for two seconds before it rebuilds a domain.
    time.sleep(8)
    remote.wait_clean()
    assert remote.dom0(entries) == before, "an xl that was building a domain wrote to xenstore after the end of the domain"


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


def test_two_controllers_run_pygrub_at_once(remote: Remote, suite: Path) -> None:
    """Two bootloaders run in dom0 at the same time, each on its own disk."""
    runs = [
        remote.start(suite, "-k", "bootloader", "--xen-host", host, name=f"grub-{host}", FXH_RUN_SCALE="3", FXH_TEST_TOGETHER="2")
        for host in ("one", "two")
    ]
    together: set[str] = set()
    while any(run.process.poll() is None for run in runs):
        # python3 /usr/lib/xen-4.20/bin/pygrub ... /var/lib/fxh/run-1a2b3c/fxh-1a2b3c-1-control.disk
        at_work = remote.dom0("grep -ha '[p]ygrub' /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true")
        together = max(together, set(re.findall(r"/run-(\w+)/", at_work)), key=len)
    assert [run.end() for run in runs] == [0, 0]
    assert [run.outcomes["test_k_bootloader"] for run in runs] == ["passed", "passed"]
    assert len(together) == 2, f"they never ran at the same time: {together}"
    remote.wait_clean()


# A volume group on a loop device. No extent is empty. This dom0 has no udev.
_GROUP = r"""
set -e
modprobe dm-mod; mkdir -p /etc/lvm
printf 'activation { udev_sync=0 udev_rules=0 }\ndevices { obtain_device_list_from_udev=0 }\n' > /etc/lvm/lvm.conf
head -c 209715200 /dev/zero | tr '\000' '\252' > /var/lib/volumes.img
vgcreate -y vgtest $(losetup --show -f /var/lib/volumes.img)
"""


def test_guests_on_logical_volumes(remote: Remote, suite: Path) -> None:
    remote.dom0(_GROUP)
    config = remote.directory / "lvm.toml"
    config.write_text('[hosts.one]\nstorage = "lvm:vgtest"\n')
    run = remote.start(suite, "-k", "bootloader", "--xen-host", "one", FXH_CONFIG=str(config))
    assert run.end() == 0
    assert run.outcomes == {"test_k_bootloader": "passed"}
    (written,) = run.latest.glob("cases/*/*.cfg")
    assert "/dev/vgtest/fxh-" in written.read_text()
    remote.wait_clean()
    assert remote.dom0("lvs", "--noheadings", "vgtest").strip() == ""


def test_a_host_with_room_for_one_is_shared_in_turns(remote: Remote, suite: Path) -> None:
    """Each run gives the host back after a case if the other waits, so that neither waits for a whole run."""
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


def test_fifty_guests_leave_nothing(remote: Remote, suite: Path) -> None:
    # The first run on a host creates images and the lease table, which stay for later runs.
    assert remote.start(suite, "-k", "first", "--xen-host", "one", name="before").end() == 0
    remote.wait_clean()
    before = remote.holds()
    run = remote.start(suite, "-k", "many", "--xen-host", "one", "--scale", "3", FXH_TEST_GUESTS="50")
    assert run.end(3000) == 0
    remote.wait_clean()
    counted = ("domains", "loops", "xenstore", "files", "processes", "xen-used", "xenstored-fds", "xenconsoled-fds")
    after = remote.wait_for_no_more(before, counted)
    print({name: (value, after.counts[name]) for name, value in before.counts.items()})
    assert after.counts["dom0-used"] - before.counts["dom0-used"] < 8192, "dom0 lost memory"
    assert after.counts["disk"] - before.counts["disk"] < 2048, "dom0 lost disk"


def test_a_failed_boot_and_a_leak_do_not_affect_other_cases(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "dies or leaks or neighbour", "--xen-host", "one")
    assert run.end() == 1
    assert run.outcomes == {"test_g_dies_at_boot": "failed", "test_h_leaks": "failed", "test_i_neighbour": "passed"}
    assert "pygrub" in run.cases["test_h_leaks"]["reason"]
    assert "left things" not in run.cases["test_g_dies_at_boot"]["reason"]
    remote.wait_clean()


# Stopped for four fifths of the time.
_SLOW = """
setsid sh -c 'echo $$ > /run/slow.pid; x=$(pidof xenstored); while :; do kill -STOP $x; sleep 1.2; kill -CONT $x; sleep 0.3; done' \
    </dev/null >/dev/null 2>&1 &
"""


def test_xenstored_slow(remote: Remote, suite: Path) -> None:
    remote.dom0(_SLOW)
    try:
        run = remote.start(suite, "-k", "first or fault or last", "--xen-host", "one", "--scale", "4")
        assert run.end(1200) in (0, 4)
    finally:
        remote.dom0("kill -9 $(cat /run/slow.pid); kill -CONT $(pidof xenstored)")
    assert set(run.outcomes) == {"test_a_first", "test_b_fault", "test_c_last"}
    assert set(run.outcomes.values()) <= {"passed", "infrastructure"}, run.outcomes
    remote.wait_clean()


def test_link_stalls_and_heals(remote: Remote, suite: Path) -> None:
    """The stall is longer than the case would take. TCP loses no data, so the case then continues."""
    run = remote.start(suite, "-k", "fault", "--xen-host", "one")
    run.wait_for(remote.mark("running"))
    time.sleep(2)
    remote.one.stall()
    time.sleep(20)
    remote.one.restore()
    assert run.end() == 0
    assert run.outcomes == {"test_b_fault": "passed"}
    assert "run again because" not in run.cases["test_b_fault"]["inputs"]
    remote.wait_clean()


def test_link_stalls_for_good(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "fault", "--xen-host", "one,two")
    run.wait_for(remote.mark("running"))
    remote.one.stall()
    assert run.end() == 0
    assert run.outcomes == {"test_b_fault": "passed"}
    assert run.cases["test_b_fault"]["inputs"]["host"] == "two"
    assert run.cases["test_b_fault"]["inputs"]["run again because"]
    # The lease agent gets no heartbeat and ends the lease while the link is still stalled.
    remote.wait_clean(120)


_AGENT = r"""p=$(sed 's/.*"pid": \([0-9]*\).*/\1/' /var/lib/fxh/leases/*.json)"""
# The lease contains the pid of its agent. The first ancestor called dropbear is the server of its session.
_STOP_SESSION = (
    f"{_AGENT}\n"
    r"""
until [ "$(cat /proc/$p/comm)" = dropbear ]; do p=$(awk '/^PPid/{print $2}' /proc/$p/status); done
echo $p > /run/stopped; kill -STOP $p
"""
)


def test_sshd_of_the_host_stopped(remote: Remote, suite: Path) -> None:
    """The server process of the session is stopped for good: the kernel acknowledges data, but no process answers."""
    run = remote.start(suite, "-k", "fault", "--xen-host", "one", FXH_RUN_LEASE_WAIT="60")
    run.wait_for(remote.mark("running"))
    remote.dom0(_STOP_SESSION)
    assert run.end() in (0, 4)
    assert set(run.outcomes.values()) <= {"passed", "infrastructure"}, run.outcomes
    remote.dom0("kill -9 $(cat /run/stopped); true")
    remote.wait_clean(120)


def test_over_a_jump_host(remote: Remote, suite: Path, gate: Gate) -> None:
    run = remote.start(suite, "-k", "first or fault", "--xen-host", "far")
    run.wait_for(remote.mark("running"))
    # The session of the run goes through the jump host.
    assert gate.connections() == 1
    gate.drop()
    assert run.end() == 0
    assert run.outcomes == {"test_a_first": "passed", "test_b_fault": "passed"}
    assert run.cases["test_b_fault"]["inputs"]["run again because"]
    assert gate.log().count(f"127.0.0.1 port {remote.one.port}") >= 2, gate.log()
    remote.wait_clean()


def test_a_jump_host_with_another_key(remote: Remote, suite: Path, gate: Gate) -> None:
    gate.new_key()
    run = remote.start(suite, "-k", "first", "--xen-host", "far", FXH_RUN_LEASE_WAIT="5")
    assert run.end() == 4
    assert run.outcomes == {"test_a_first": "infrastructure"}
    assert "key" in run.cases["test_a_first"]["reason"]
    assert gate.connections() == 0


def _orphan(remote: Remote, suite: Path) -> None:
    """Kill the lease agent and the controller, so that no process cleans up."""
    run = remote.start(suite, "-k", "fault", "--xen-host", "one")
    run.wait_for(remote.mark("running"))
    remote.dom0(f"{_AGENT}; kill -9 $p")
    run.process.kill()
    run.process.communicate()


BREAKAGES = {
    "pygrub removed": ("rm /usr/lib/xen-*/bin/pygrub", "warn  pygrub", "install xen-utils"),
    "no user for pygrub": ("sed -i /xen-qemuuser/d /etc/passwd", "warn  pygrub user", "useradd"),
    # The bridge carries the connection to dom0, so it cannot go down. Renaming it has the same effect for guests.
    "no bridge": ("ip link set xenbr0 name other0", "fail  bridge", "hosts.one.bridge"),
    "disk full": ("dd if=/dev/zero of=/var/lib/filler bs=1M 2>/dev/null; sync", "fail  disk", "fxh clean HOST"),
    "xenconsoled killed": ("kill -9 $(pidof xenconsoled)", "fail  xenconsoled", "xenconsoled --log=all"),
    "clock off": ("date -s @$(($(date +%s) - 3600))", "warn  clock", "NTP"),
    "a domain left over": (_orphan, "warn  fxh domains", "fxh clean HOST --yes"),
}


def test_doctor(remote: Remote, suite: Path) -> None:
    """The doctor reports nothing for a healthy host, and for each defect only that defect, with its hint."""
    output = {}
    for name, (breakage, line, hint) in {"healthy": (None, "", ""), **BREAKAGES}.items():
        remote.reset()
        # The clock of a restored lab is that of its checkpoint.
        remote.dom0(f"date -s @{time.time():.0f}")
        if callable(breakage):
            breakage(remote, suite)
        elif breakage:
            remote.dom0(breakage)
        output[name] = remote.fxh("doctor", "one", check=False)
        print(f"--- {name}\n{output[name]}")
        wrong = [row for row in output[name].splitlines() if row.strip().startswith(("warn ", "fail "))]
        assert len(wrong) == (1 if breakage else 0), wrong
        assert line in output[name]
        assert hint in output[name]
    # Follow the last hint.
    remote.fxh("clean", "one", "--yes")
    remote.wait_clean()


def test_a_failed_guest_is_kept_and_then_removed(remote: Remote, suite: Path) -> None:
    run = remote.start(suite, "-k", "panics", "--xen-host", "one", "--keep", "failed", FXH_RUN_KEEP_MINUTES="1")
    assert run.end() == 1
    assert run.outcomes == {"test_f_panics": "failed"}
    assert "is kept, paused, until" in run.out
    assert "xl dump-core" in run.out
    assert "keeps fxh-" in remote.fxh("hosts", "one")
    assert any("fxh-" in line for line in remote.dom0("xl list").splitlines())
    assert "nothing was left behind" in remote.fxh("clean", "one"), "a lease owns it"
    remote.wait_clean(120)
