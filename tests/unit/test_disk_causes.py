# SPDX-License-Identifier: BSD-2-Clause
"""The rules that name the cause of a disk's failure, and the parsers of blkback's counters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.oracles import disk_causes
from harness.oracles.disk_causes import RULES, Counted, DiskSeen, cause, disks, freebsd_in_flight, kernel_errors, linux_in_flight

FINDING = "observed:  vdev xvdc should be xvdc: no disk of the guest has its content"
USED = {"rd_req": 12, "rd_sect": 96, "wr_req": 1, "oo_req": 0}
GOOD = DiskSeen(51744, "xvdc", "loop3", "w", "4", "4", Counted(USED, 12, 0), Counted(USED, 12, 0))
ERROR = "I/O error, dev loop3, sector 0 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2"
BUSY = Counted(USED, 12, 3)

# For each rule: what makes it fire, its words, and a near miss at which it is silent.
FIRES = {
    "dom0's device fails": (
        replace(GOOD, errors=(ERROR, ERROR)), f"dom0 could not read or write loop3, the device behind xvdc: {ERROR} (and 1 more)", GOOD,
    ),
    "dom0's device stuck": (
        replace(GOOD, first=BUSY, later=BUSY), "dom0's loop3 does not finish 3 requests for xvdc",
        replace(GOOD, first=BUSY, later=replace(BUSY, finished=13)),
    ),
    "blkback stuck": (
        replace(GOOD, waiting=2), "the guest waits for 2 requests to xvdc, and blkback does not take them",
        replace(GOOD, waiting=2, later=Counted({**USED, "rd_req": 13}, 13, 0)),
    ),
    "not connected": (
        replace(GOOD, frontend="3", backend=""), "xvdc is not connected: its frontend is initialised, its backend has no node", GOOD,
    ),
    "only the guest reports errors": (
        replace(GOOD, guest_errors=("I/O error, dev xvdc",)),
        "the guest reports an error on xvdc, and dom0 reports none on loop3: I/O error, dev xvdc", GOOD,
    ),
    "blkback lacks resources": (
        replace(GOOD, later=Counted({**USED, "oo_req": 4}, 12, 0)), "blkback had no resources for 4 requests to xvdc (oo_req)", GOOD,
    ),
    "no request": (
        replace(GOOD, later=Counted({"rd_req": 0, "wr_req": 0}, 0, 0)), "the guest sent blkback no request for xvdc", replace(GOOD, later=Counted()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_fires_and_is_silent(rule: disk_causes.Rule) -> None:
    situation, words, near_miss = FIRES[rule.name]
    assert rule.says(situation) == words
    assert cause([situation], FINDING) == words, "an earlier rule hides it"
    assert rule.says(near_miss) == ""
    assert rule.says(GOOD) == ""


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.weak], ids=lambda rule: rule.name)
def test_a_weak_rule_needs_a_finding_that_names_the_disk(rule: disk_causes.Rule) -> None:
    situation = FIRES[rule.name][0]
    assert cause([situation], "observed:  vdev xvdcc is xvdd") == ""


def test_the_disk_that_the_finding_names_comes_first() -> None:
    other = replace(GOOD, name="xvda", device="loop0", errors=("I/O error, dev loop0, sector 1",))
    own = replace(GOOD, errors=(ERROR,))
    assert "loop3, the device behind xvdc" in cause([other, own], FINDING)
    assert cause([], FINDING) == ""


# -- the texts --------------------------------------------------------------------------------------------------------------

# Recorded on a lab (Xen 4.20, Linux 6.12), shortened: a guest with xvda and a scratch disk xvdc whose file is cut.
TEXT = """\
== first vbd-5-51744
mode w
physical_device 7:1
statistics/ds_req 0
statistics/f_req 0
statistics/oo_req 0
statistics/rd_req 18
statistics/rd_sect 112
statistics/wr_req 0
statistics/wr_sect 0
device loop1
stat 18 0 112 7 0 0 0 0 0 7 7 0 0 0 0 0 0
== later vbd-5-51744
mode w
physical_device 7:1
statistics/rd_req 18
statistics/rd_sect 112
device loop1
stat 18 0 112 7 0 0 0 0 0 7 7 0 0 0 0 0 0
== xenstore
/local/domain/5/device/vbd = ""
/local/domain/5/device/vbd/51744 = ""
/local/domain/5/device/vbd/51744/state = "4"
/local/domain/0/backend/vbd/5/51744/state = "4"
/local/domain/0/backend/vbd/5/51760/state = "2"
== uptime
76.52 60.11
== dmesg
[   12.000000] I/O error, dev loop1, sector 999 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2
[   71.404262] I/O error, dev loop1, sector 0 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2
[   71.404262] Buffer I/O error on dev loop11, logical block 0, async page read
[   72.1] loop1: detected capacity change from 2048 to 0
"""
NAMES = {51744: "xvdc", 51760: "xvdd"}


def test_the_disks_of_a_guest() -> None:
    one, two = disks(TEXT, NAMES.__getitem__, 30.0)
    assert (one.name, one.device, one.mode, one.frontend, one.backend) == ("xvdc", "loop1", "w", "4", "4")
    assert one.first.vbd["rd_req"] == one.later.vbd["rd_req"] == 18
    assert (one.first.finished, one.first.in_flight) == (18, 0)
    assert one.errors == ("I/O error, dev loop1, sector 0 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2",), (
        "neither loop11 nor earlier"
    )
    assert (two.name, two.frontend, two.backend, two.device) == ("xvdd", "", "2", "")
    assert disk_causes.uptime(TEXT) == 76.52
    assert one.line == "xvdc: blkback on loop1: rd_req 18, rd_sect 112"


@pytest.mark.parametrize(
    "text",
    ["", "== later vbd-5-51744\n", "== later vbd-5-51744\nstat x y\nmode\nstatistics/rd_req x\n", TEXT[:300], "== uptime\nx"],
)
def test_a_broken_text_gives_what_it_has(text: str) -> None:
    for disk in disks(text, lambda number: "xvdc", 0.0):
        assert disk.name == "xvdc"
        assert disk.line
    assert disk_causes.uptime(text) == 0.0


def test_a_guest_cannot_flood_the_finding() -> None:
    text = "\n".join(f"[ 1.0] I/O error, dev xvdc, {'x' * 10_000}" for _ in range(5000))
    found = kernel_errors(text)
    assert len(found) == 20
    assert max(map(len, found)) == 160


def test_freebsd_reports_errors_of_file_systems() -> None:
    assert kernel_errors("g_vfs_done():xbd1[READ(offset=65536, length=8192)]error = 5\nxbd1: features: flush\n") == (
        "g_vfs_done():xbd1[READ(offset=65536, length=8192)]error = 5",
    )


def test_requests_in_flight() -> None:
    assert linux_in_flight("disk xvda 12 0 96 4 0 0 0 0 1 4 4\ndisk xvdc 1 0 8 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n") == {
        "xvda": 1,
        "xvdc": 0,
    }
    text = (
        "                        extended device statistics  \n"
        "device           r/i         w/i         kr/i         kw/i qlen   tsvc_t/i      sb/i  \n"
        "xbd0          1265.0       118.0      25984.5       1576.0    2        2.1       1.9 \n"
        "cd0              0.0         0.0          0.0          0.0    0        0.0       0.0 \n"
    )
    assert freebsd_in_flight(text) == {"xbd0": 2, "cd0": 0}
