# SPDX-License-Identifier: BSD-2-Clause
"""The doctor's checks for the recorded output of a healthy lab (tests/doctor), and for the same output with one defect."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import HostConfig
from harness.errors import TransportError
from harness.hosts import doctor
from harness.hosts.doctor import FAIL, OK, WARN, Check, evaluate
from harness.transport import Transport
from harness.transport.local import LocalTransport
from harness.xen import gdbsx

RECORDED = Path(__file__).parent.parent / "doctor"
HEALTHY = (RECORDED / "lab-xen-4.20.txt").read_text()
INFOS = sorted((RECORDED / "info").glob("*.txt"))
NOW = int(doctor.sections(HEALTHY)["clock"]) + 0.5

LEFT = "fxh-1a2b3c-1-x                               4   512     1     -b----       1.0"

# Written from the source of Xen's tools and the FreeBSD handbook, not recorded: no FreeBSD dom0 was available.
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
    return {check.name: check for check in evaluate(text, config or HostConfig("h"), now) if check.status != OK}


def test_a_healthy_lab() -> None:
    assert bad(HEALTHY) == {}


def test_a_healthy_freebsd_dom0() -> None:
    text = FREEBSD.format(clock=int(NOW))
    assert set(bad(text, HostConfig("h", bridge="bridge0", storage="zvol:tank"))) == {"debug aids", "pygrub user"}
    assert bad(text)["bridge"].detail == "no xenbr0; bridges of the host: bridge0"


def without(section: str, instead: str = "") -> Callable[[str], str]:
    return lambda text: re.sub(rf"(?ms)^%{section}\n.*?(?=^%|\Z)", f"%{section}\n{instead}\n", text)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("breakage", "name", "status", "detail", "hint"),
    [
        (without("user", "1000"), "root", FAIL, "the login is user 1000", "xl needs root"),
        (replaced("xl /usr/sbin/xl\n", ""), "xl", FAIL, "missing", "xen-utils"),
        (replaced("python3 /usr/bin/python3\n", ""), "python3", FAIL, "missing", "leases"),
        (without("python", "3.6.8"), "python3 version", FAIL, "3.6.8", "3.7"),
        (replaced("pygrub /usr/lib/xen-4.20/bin/pygrub\n", ""), "pygrub", WARN, "skipped", "xen-utils"),
        (replaced("runas /usr/lib/xen-4.20/bin/pygrub\n", ""), "pygrub user", WARN, "no restricted mode", "XSA-443"),
        (replaced("user xen-qemuuser-range-base\n", ""), "pygrub user", WARN, "user xen-qemuuser-range-base or", "useradd"),
        (without("info", "xencall: error: Could not obtain handle on privileged command interface"), "xl info", FAIL, "xencall", "booted under Xen"),
        (replaced("xen_minor              : 20", "xen_minor              : 11"), "Xen", WARN, "4.11", "4.14"),
        (replaced("hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ", ""), "guest types", WARN, "no PVH", "SVM"),
        (replaced("free_memory            : 2270", "free_memory            : 100"), "memory", FAIL, "100 of 3071 MiB", "destroy unused domains"),
        (replaced("   768     1", "  2900     1"), "memory", OK, "dom0 has 2900", ""),
        (without("store", "xenstore-read: couldn't connect"), "xenstore", FAIL, "couldn't connect", "reboot"),
        (without("console", "pts"), "xenconsoled", FAIL, "does not run", "xenconsoled --log=all"),
        (without("console", "183"), "console", FAIL, "no /dev/pts", "devpts"),
        (without("links", ""), "bridge", FAIL, "bridges of the host: none", "docs/hosts.md"),
        (replaced("xenbr0 up", "xenbr0 down"), "bridge", WARN, "is down", "ip link set xenbr0 up"),
        (replaced("5982792", "30000"), "disk", FAIL, "29 MiB", "fxh clean"),
        (replaced("5982792", "900000"), "disk", WARN, "878 MiB", "fxh clean"),
        (replaced("writable\n", ""), "disk", FAIL, "not writable", "dmesg"),
        (replaced("5982792       4% /\n", "59\n"), "disk", WARN, "free space is unknown", "df -Pk"),
        (without("clock", str(int(NOW) - 3600)), "clock", WARN, "-3600 s", "NTP"),
        (replaced("%store", "(null)    9     0     1     --psrd       1.0\n%store"), "zombies", WARN, "1 domains", "reboot"),
        (replaced("%store", f"{LEFT}\n%store"), "fxh domains", WARN, "no living run owns fxh-1a2b3c-1-x", "fxh clean"),
        (lambda text: replaced("%store", f"{LEFT}\n%store")(without("leases", "1a2b3c")(text)), "fxh domains", OK, "fxh-1a2b3c-1-x", ""),
    ],
)  # fmt: skip
def test_each_defect_has_a_hint(breakage: Callable[[str], str], name: str, status: str, detail: str, hint: str) -> None:
    text = breakage(HEALTHY)
    assert text != HEALTHY
    check = next(check for check in evaluate(text, HostConfig("h"), NOW) if check.name == name)
    assert check.status == status, check
    assert detail in check.detail
    assert hint in check.hint


def test_the_hint_for_a_dom0_with_too_much_memory() -> None:
    text = HEALTHY.replace("free_memory            : 2270", "free_memory            : 10").replace("   768     1", "  2900     1")
    assert "dom0_mem=" in bad(text)["memory"].hint


def test_an_unreachable_host_is_a_failed_check() -> None:
    def connect() -> Transport:
        raise TransportError("x port 22: timed out", hint="check that the host is up")

    assert doctor.examine(HostConfig("x"), connect) == (Check("ssh", FAIL, "x port 22: timed out", "check that the host is up"),)


def test_empty_output_fails_the_checks() -> None:
    checks = evaluate("", HostConfig("x"), NOW)
    assert {"root", "xl", "xl info", "xenstore", "disk"} <= {check.name for check in checks if check.status == FAIL}


# -- other versions: values of the lab in the form that `xl info` has in development versions and vendors' builds --------------------


@pytest.mark.parametrize("path", INFOS, ids=[path.stem for path in INFOS])
def test_development_and_vendor_versions(path: Path) -> None:
    checks = evaluate(without("info", path.read_text())(HEALTHY), HostConfig("h"), NOW)
    arm = path.stem.endswith("-arm64")
    found = {check.name: check for check in checks}
    version = re.sub("-(arm64|debian|qubes|xenserver)$", "", path.stem).replace("4.17.5", "4.17.5-15")
    assert (found["Xen"].status, found["Xen"].detail) == (OK, version)
    assert {name for name, check in found.items() if check.status != OK} == ({"architecture"} if arm else set())
    if arm:
        assert found["architecture"].status == FAIL
        assert found["architecture"].detail.startswith("an ARM host (aarch64, xen-3.0-aarch64, xen-3.0-armv7l)")
        assert "VT-x" not in "".join(check.hint for check in checks)


@pytest.mark.parametrize(
    ("major", "minor", "extra", "version", "status"),
    [
        ("4", "22", "-unstable", "4.22-unstable", OK),
        ("4", "22", "-rc1", "4.22-rc1", OK),
        ("4", "21", ".0-rc4-pre", "4.21.0-rc4-pre", OK),
        ("4", "17", ".5-pre", "4.17.5-pre", OK),
        ("4", "14", "_02-150300.3", "4.14_02-150300.3", OK),
        ("4", "18", "", "4.18", OK),
        ("4", "18", ".0 (vendor build)", "4.18.0 (vendor build)", OK),
        ("4", "9", "-unstable", "4.9-unstable", WARN),
        ("4", "99", "-unstable", "4.99-unstable", WARN),
        ("5", "0", "-rc1", "5.0-rc1", WARN),
    ],
)
def test_versions_are_compared_as_numbers(major: str, minor: str, extra: str, version: str, status: str) -> None:
    text = replaced("xen_major              : 4\n", f"xen_major              : {major}\n")(HEALTHY)
    text = replaced("xen_minor              : 20\n", f"xen_minor              : {minor}\n")(text)
    text = replaced("xen_extra              : .5-pre\n", f"xen_extra              : {extra}\n")(text)
    check = next(check for check in evaluate(text, HostConfig("h"), NOW) if check.name == "Xen")
    assert (check.status, check.detail) == (status, version)


def test_a_version_that_is_not_a_number_fails_the_check() -> None:
    text = replaced("xen_minor              : 20\n", "xen_minor              : x\n")(HEALTHY)
    assert bad(text)["xl info"].status == FAIL


@given(st.lists(st.tuples(st.integers(0, len(HEALTHY)), st.integers(0, 40), st.text("%\n :0129x.-²٣é\0", max_size=12)), max_size=4))
def test_no_text_breaks_the_doctor(cuts: list[tuple[int, int, str]]) -> None:
    text = HEALTHY
    for at, size, new in cuts:
        text = text[:at] + new + text[at + size :]
    assert evaluate(text, HostConfig("h"), NOW)


@pytest.mark.parametrize("old", ["1795570437", "5982792", "3.13.5", ": 2270", ": 20\n", "   768 ", "158.1", ": 3071"])
def test_no_number_breaks_the_doctor(old: str) -> None:
    """int() refuses thousands of digits."""
    for number in ("9" * 5000, "²", "1.2.3", "-1", ""):
        assert evaluate(replaced(old, re.sub(r"[0-9]+", number, old, count=1))(HEALTHY), HostConfig("h"), NOW)


# -- complaints within a table ---------------------------------------------------------------------------------------------

COMPLAINT = "libxl: error: libxl_x.c:1:libxl__x: Domain 9:cannot read its name: No such file or directory"


@pytest.mark.parametrize("where", ["before", "between", "after", "on standard error"])
def test_a_complaint_within_the_list_loses_no_row(where: str) -> None:
    header, row = re.search(r"(?m)^(Name .*\n)(Domain-0 .*\n)", HEALTHY).groups()  # type: ignore[union-attr]
    new = {
        "before": f"{COMPLAINT}\n{header}{row}",
        "between": f"{header}{COMPLAINT}\n{row}",
        "after": f"{header}{row}{COMPLAINT}\n",
        "on standard error": f"{header}{row}%list stderr\n{COMPLAINT}\n",
    }[where]
    found = evaluate(replaced(header + row, new)(HEALTHY), HostConfig("h"), NOW)
    checks = {check.name: check for check in found}
    assert "dom0 has 768" in checks["memory"].detail
    assert checks["xl list"].status == WARN
    assert "cannot read its name" in checks["xl list"].detail
    assert {check.name for check in found if check.status != OK} == {"xl list"}


@pytest.mark.parametrize(
    ("section", "name"), [("info", "xl info"), ("list", "xl list"), ("store", "xenstore"), ("python", "python3")]
)
def test_a_complaint_loses_no_value(section: str, name: str) -> None:
    """Also if both streams arrive as one."""
    found = evaluate(replaced(f"%{section}\n", f"%{section}\nwarning: host: something is old\n")(HEALTHY), HostConfig("h"), NOW)
    assert not [check for check in found if check.status == FAIL], name


FAKES = """
for name in xl xenstore-read python3; do cat > "$1/$name" <<'END'
#!/bin/sh
echo "complaint of ${0##*/}" >&2
case ${0##*/}-$1 in
  xl-list) echo 'Name                                        ID   Mem VCPUs\tState\tTime(s)'
           echo 'Domain-0                                     0   768     1     r-----     158.1';;
  xl-info) echo 'xen_major              : 4';;
  xenstore-read-*) echo Domain-0;;
  python3-*) echo 3.13.5;;
esac
END
chmod +x "$1/$name"; done
"""


def test_the_probe_keeps_standard_error_apart(tmp_path: Path) -> None:
    subprocess.run(["sh", "-c", FAKES, "sh", str(tmp_path)], check=True)
    text = LocalTransport().run(["sh", "-c", f"PATH={tmp_path}:$PATH\n{doctor.SCRIPT}"], check=False).text
    parts = doctor.sections(text)
    assert parts["list"].splitlines()[1].startswith("Domain-0")
    assert [parts[f"{name} stderr"] for name in ("info", "list", "store", "python")] == [
        "complaint of xl", "complaint of xl", "complaint of xenstore-read", "complaint of python3",
    ]  # fmt: skip
    assert (parts["info"], parts["store"], parts["python"]) == ("xen_major              : 4", "Domain-0", "3.13.5")


# -- gdbsx -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "line"), [("answers", "gdbsx "), ("", "gdbsx-off "), ("something else", "gdbsx-off ")])
def test_gdbsx_counts_only_if_xen_answers_it(answer: str, line: str, tmp_path: Path) -> None:
    for name, does in (("gdbsx", "exit 1"), ("python3", f"echo {answer}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    text = LocalTransport().run(["sh", "-c", f"PATH={tmp_path}:$PATH\n{gdbsx.PROBE}"], check=False).text
    assert text == f"{line}{tmp_path}/gdbsx\n"


def test_a_machine_without_xen_has_no_answer(tmp_path: Path) -> None:
    (tmp_path / "gdbsx").write_text("#!/bin/sh\n")
    (tmp_path / "gdbsx").chmod(0o755)
    text = LocalTransport().run(["sh", "-c", f"PATH={tmp_path}:$PATH\n{gdbsx.PROBE}"], check=False).text
    assert text == f"gdbsx-off {tmp_path}/gdbsx\n"


def test_a_gdbsx_that_xen_does_not_answer_is_named() -> None:
    aids = {check.name: check for check in evaluate(HEALTHY, HostConfig("h"), NOW)}["debug aids"]
    assert aids.detail == "xenctx /usr/lib/xen-4.20/bin/xenctx; this Xen does not answer /usr/sbin/gdbsx"
    text = replaced("xenctx /usr/lib/xen-4.20/bin/xenctx\n", "")(HEALTHY)
    assert bad(text)["debug aids"].detail.startswith("neither xenctx nor gdbsx; this Xen does not answer")
    text = replaced("gdbsx-off ", "gdbsx ")(HEALTHY)
    assert {check.name: check for check in evaluate(text, HostConfig("h"), NOW)}["debug aids"].detail.endswith(
        ", gdbsx /usr/sbin/gdbsx"
    )
