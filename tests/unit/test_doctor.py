"""The doctor's judgement on what a healthy lab printed (tests/doctor), and on that with one thing broken at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.schema import HostConfig
from harness.errors import TransportError
from harness.hosts import doctor
from harness.hosts.doctor import FAIL, OK, WARN, Check, judge
from harness.transport import Transport

HEALTHY = (Path(__file__).parent.parent / "doctor" / "lab-xen-4.20.txt").read_text()
NOW = int(doctor.sections(HEALTHY)["clock"]) + 0.5

LEFT = "fxh-1a2b3c-1-x                               4   512     1     -b----       1.0"

# Written after the source of Xen's tools and the FreeBSD handbook, not recorded: we had no FreeBSD dom0.
FREEBSD = """%user
0
%uname
FreeBSD 14.1-RELEASE
%clock
{clock}
%tools
xl /usr/local/sbin/xl
xenstore-read /usr/local/bin/xenstore-read
python3 /usr/local/bin/python3
zfs /sbin/zfs
xenconsole /usr/local/lib/xen/bin/xenconsole
%python
3.11.9
%info
host                   : dom0
release                : 14.1-RELEASE
version                : FreeBSD 14.1-RELEASE GENERIC
machine                : amd64
nr_cpus                : 8
virt_caps              : pv hvm hap
total_memory           : 32000
free_memory            : 24000
xen_major              : 4
xen_minor              : 18
xen_extra              : .0
xen_caps               : xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64
%list
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0  8192     4     r-----     158.1
%store
Domain-0
%console
700
pts
%links
bridge0
%disk
zroot/var   90000000 5000000 85000000     6%    /var
writable
%pygrub
pygrub /usr/local/lib/xen/bin/pygrub
"""


def bad(text: str, config: HostConfig | None = None, now: float = NOW) -> dict[str, Check]:
    return {check.name: check for check in judge(text, config or HostConfig("h"), now) if check.status != OK}


def test_a_healthy_lab() -> None:
    assert bad(HEALTHY) == {}


def test_a_healthy_freebsd_dom0() -> None:
    text = FREEBSD.format(clock=int(NOW))
    assert set(bad(text, HostConfig("h", bridge="bridge0", storage="zvol:tank"))) == {"debug aids", "pygrub as"}
    assert bad(text)["bridge"].detail == "no xenbr0; there are: bridge0"


def without(section: str, instead: str = "") -> Callable[[str], str]:
    return lambda text: re.sub(rf"(?ms)^%{section}\n.*?(?=^%|\Z)", f"%{section}\n{instead}\n", text)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("breakage", "name", "status", "detail", "mend"),
    [
        (without("user", "1000"), "root", FAIL, "we are user 1000", "xl needs root"),
        (replaced("xl /usr/sbin/xl\n", ""), "xl", FAIL, "not there", "xen-utils"),
        (replaced("python3 /usr/bin/python3\n", ""), "python3", FAIL, "not there", "leases"),
        (without("python", "3.6.8"), "python3 version", FAIL, "3.6.8", "3.7"),
        (replaced("pygrub /usr/lib/xen-4.20/bin/pygrub\n", ""), "pygrub", WARN, "skipped", "xen-utils"),
        (replaced("runas /usr/lib/xen-4.20/bin/pygrub\n", ""), "pygrub as", WARN, "no restricted mode", "XSA-443"),
        (replaced("user xen-qemuuser-range-base\n", ""), "pygrub as", WARN, "neither xen-qemuuser-range-base nor", "useradd"),
        (without("info", "xencall: error: Could not obtain handle on privileged command interface"), "xl info", FAIL, "xencall", "booted under Xen"),
        (replaced("xen_minor              : 20", "xen_minor              : 11"), "Xen", WARN, "4.11", "4.14"),
        (replaced("hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ", ""), "guest types", WARN, "no PVH", "SVM"),
        (replaced("free_memory            : 2270", "free_memory            : 100"), "memory", FAIL, "100 MiB", "destroy domains"),
        (replaced("   768     1", "  2900     1"), "memory", OK, "dom0 has 2900", ""),
        (without("store", "xenstore-read: couldn't connect"), "xenstore", FAIL, "couldn't connect", "reboot"),
        (without("console", "pts"), "xenconsoled", FAIL, "does not run", "xenconsoled --log=all"),
        (without("console", "183"), "console", FAIL, "no /dev/pts", "devpts"),
        (without("links", ""), "bridge", FAIL, "there are: none", "docs/hosts.md"),
        (replaced("xenbr0 up", "xenbr0 down"), "bridge", WARN, "is down", "ip link set xenbr0 up"),
        (replaced("5982792", "30000"), "disk", FAIL, "29 MiB", "fxh clean"),
        (replaced("5982792", "900000"), "disk", WARN, "878 MiB", "fxh clean"),
        (replaced("writable\n", ""), "disk", FAIL, "not writable", "dmesg"),
        (without("clock", str(int(NOW) - 3600)), "clock", WARN, "-3600 s", "NTP"),
        (replaced("%store", "(null)    9     0     1     --psrd       1.0\n%store"), "zombies", WARN, "1 domains", "reboot"),
        (replaced("%store", f"{LEFT}\n%store"), "domains of ours", WARN, "nobody owns fxh-1a2b3c-1-x", "fxh clean"),
        (lambda text: replaced("%store", f"{LEFT}\n%store")(without("leases", "1a2b3c")(text)), "domains of ours", OK, "fxh-1a2b3c-1-x", ""),
    ],
)  # fmt: skip
def test_each_broken_link_has_its_mend(breakage: Callable[[str], str], name: str, status: str, detail: str, mend: str) -> None:
    text = breakage(HEALTHY)
    assert text != HEALTHY
    check = next(check for check in judge(text, HostConfig("h"), NOW) if check.name == name)
    assert check.status == status, check
    assert detail in check.detail
    assert mend in check.mend


def test_memory_that_dom0_took() -> None:
    text = HEALTHY.replace("free_memory            : 2270", "free_memory            : 10").replace("   768     1", "  2900     1")
    assert "dom0_mem=" in bad(text)["memory"].mend


def test_a_host_that_is_not_reached() -> None:
    def connect() -> Transport:
        raise TransportError("x port 22: timed out", mend="is the host up?")

    assert doctor.examine(HostConfig("x"), connect) == (Check("ssh", FAIL, "x port 22: timed out", "is the host up?"),)


def test_nothing_came_back() -> None:
    checks = judge("", HostConfig("x"), NOW)
    assert {"root", "xl", "xl info", "xenstore", "disk"} <= {check.name for check in checks if check.status == FAIL}
