# SPDX-License-Identifier: BSD-2-Clause
"""Known issues: syntax of entries, matching of cases and failures, and the entries of suites/known_issues.toml."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import pytest

from harness import osversion, paths
from harness.cli import matrix
from harness.errors import UsageError
from harness.oracles.finding import finding
from harness.plugin import cells, known
from harness.plugin.cells import Cell
from harness.plugin.progress import Progress


def cell_of(version: str, osreldate: int = 0, kind: str = "pvh") -> Cell:
    return Cell("freebsd", kind, "xen-4.20", "4.20", osversion.parse(version, osreldate))


def first(issues: Iterable[known.KnownIssue], case: str, cell: Cell) -> known.KnownIssue | None:
    return next(iter(known.covering(issues, case, cell)), None)


NEW, OLD = cell_of("14.1"), cell_of("13.2")
CONTROL = Cell("control", "pvh", "xen-4.20", "4.20")
TODAY = datetime.date(2026, 11, 25)
TEXT = """
[[issue]]
case = "boot/test_control_shutdown[poweroff]"
cells = "freebsd*"
freebsd = "<14.1"
says = "its kernel has halted"
bug = "9e0b0f5de67f"
why = "it halts"
since = 2026-11-25
review = 2027-05-25
"""


def test_covers_by_case_cell_and_release() -> None:
    (issue,) = known.parse(TEXT)
    assert issue.covers("boot/test_control_shutdown[poweroff]", OLD)
    assert not issue.covers("boot/test_control_shutdown[poweroff]", NEW)
    assert not issue.covers("boot/test_control_shutdown[poweroff]", CONTROL)
    assert not issue.covers("boot/test_control_shutdown[reboot]", OLD)


def test_an_entry_without_parameters_covers_all_of_them() -> None:
    (issue,) = known.parse(TEXT.replace("[poweroff]", ""))
    assert issue.covers("boot/test_control_shutdown[halt]", OLD)
    assert issue.covers("boot/test_control_shutdown", OLD)


def test_only_an_issue_with_sometimes_may_pass() -> None:
    (always,), (race,) = known.parse(TEXT), known.parse(f"{TEXT}sometimes = true\n")
    assert (always.sometimes, race.sometimes) == (False, True)
    with pytest.raises(UsageError, match="sometimes = 'yes'"):
        known.parse(f'{TEXT}sometimes = "yes"\n')


def test_excuses_only_what_it_says() -> None:
    (issue,) = known.parse(TEXT)
    assert issue.excuses("waited 3 s; last reason: its kernel has halted, and xl says -b----")
    assert not issue.excuses("panic: page fault", "1234abcd panic: page fault @ xbd_connect")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('why = "it halts"\n', "", "missing: why"),
        ("bug =", "bgu =", "missing: bug; unknown: bgu"),
        ("2027-05-25", '"soon"', "review = 'soon'"),
        ('"its kernel has halted"', '"("', "says:"),
        ('"<14.1"', '"until 14"', "FreeBSD 'until 14'"),
        ('"<14.1"', '"<14.1.2"', "'<14.1.2' is not a bound"),
        ('"<14.1"', '">=1402000,=<1500000"', "issue 1 (boot/test_control_shutdown[poweroff]): FreeBSD"),
        ("[[issue]]", "[[issue", "known_issues.toml"),
        ("[[issue]]", "[[issues]]", "unknown table issues"),
    ],
)
def test_an_invalid_entry_is_an_error(old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        known.parse(TEXT.replace(old, new))
    assert words in str(caught.value)


COMPLAINT = """
[[complaint]]
cells = "freebsd*"
freebsd = "<14.1"
says = "^lock order reversal: devd /"
bug = "a report"
why = "harmless"
since = 2026-11-25
review = 2027-05-25
"""


def test_an_entry_covers_a_complaint_of_every_case_and_no_failure() -> None:
    issues = known.parse(TEXT + COMPLAINT)
    assert [issue.complaint for issue in issues] == [False, True]
    found = known.find_complaint(issues, "boot/test_any[1]", OLD, "lock order reversal: devd / x", "lock order reversal:")
    assert found is issues[1]
    for cell, identity in ((NEW, "lock order reversal: devd / x"), (OLD, "lock order reversal: xbd / x")):
        assert known.find_complaint(issues, "boot/test_any", cell, identity) is None
    assert first(issues[1:], "boot/test_any", OLD) is None, "it excuses no failure"
    assert known.find_complaint(issues, "boot/test_control_shutdown[poweroff]", OLD, "its kernel has halted") is None
    assert known.stale(issues[1:], [("boot/test_any", OLD)], TODAY) == ()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('cells = "freebsd*"\n', "", "complaint 1 (*): missing: cells"),
        ('why = "harmless"', 'why = "harmless"\nsometimes = true', "unknown: sometimes"),
        ("^lock", "(lock", "says:"),
    ],
)
def test_an_invalid_entry_for_a_complaint_is_an_error(old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        known.parse(COMPLAINT.replace(old, new))
    assert words in str(caught.value)


def test_stale_entries() -> None:
    issues = known.parse(TEXT)
    case = "boot/test_control_shutdown[poweroff]"
    assert known.stale(issues, [(case, OLD)], TODAY) == ()
    assert known.stale(issues, [("boot/test_other", OLD)], TODAY) == (f"{case} in freebsd*: fits no case",)
    (late,) = known.stale(issues, [(case, OLD)], datetime.date(2027, 5, 26))
    assert "its review was due on 2027-05-25" in late
    (early,) = known.stale(issues, [(case, OLD)], datetime.date(2026, 11, 24))
    assert "in the future" in early


@pytest.mark.parametrize(
    ("callspec", "case"),
    [
        ("freebsd-pvh-xen-4.20-4096", "s/test_a[4096]"), ("4096-freebsd-pvh-xen-4.20", "s/test_a[4096]"),
        ("freebsd-pvh-xen-4.20", "s/test_a"), ("freebsd-pvh-xen-4.20-poweroff-destroy", "s/test_a[poweroff-destroy]"),
    ],
)  # fmt: skip
def test_case_id_leaves_the_cell_out(callspec: str, case: str) -> None:
    assert known.case_id("s", "test_a", callspec, OLD) == case


def test_list_shows_cases_skips_and_known_issues() -> None:
    entries = [
        matrix.Entry("boot", "boot/test_a", OLD, "A title."),
        matrix.Entry("boot", "boot/test_b[x]", OLD, "B", issue="bug 1: why"),
        matrix.Entry("boot", "boot/test_c", OLD, "C", skip="needs the control guest; elsewhere: fxh run boot -k test_c"),
        matrix.Entry("boot", "boot/test_a", CONTROL, "A title."),
    ]
    short = matrix.table(entries)
    assert len(short) == 2
    assert "freebsd-pvh-xen-4.20   2 run  1 known  skipped: 1 needs the control guest" in short[1]
    assert short[0].endswith("1 run  0 known")
    full = "\n".join(matrix.table(entries, cases=True))
    assert "KNOWN: bug 1: why" in full
    assert "elsewhere: fxh run boot -k test_c" in full


def test_a_known_issue_does_not_count_as_a_skip() -> None:
    report = pytest.TestReport("x", ("x", 1, "x"), {}, "skipped", None, "call")
    assert Progress().pytest_report_teststatus(report) == ("skipped", "", "SKIPPED")
    report.wasxfail = "known issue, bug 1"  # type: ignore[attr-defined]
    assert Progress().pytest_report_teststatus(report) == ("xfailed", "", "XFAILED")


@pytest.mark.parametrize(
    ("needs", "command"),
    [
        ({"os": "freebsd"}, "fxh run boot -k test_a --disk IMAGE"),
        ({"types": ("pvh", "pv"), "capability": ("pygrub",)}, "fxh run boot -k test_a --type pvh,pv --xen-host HOST"),
        ({"capability": ("emulated",)}, "fxh run boot -k test_a --accel tcg"),
    ],
)
def test_a_skip_names_the_command_that_would_run_it(needs: dict[str, Any], command: str) -> None:
    assert cells.elsewhere([pytest.mark.needs(**needs).mark], "suites/boot/test_boot.py::test_a[control-pv-xen-4.20]") == command


# -- the entries of suites/known_issues.toml --------------------------------------------------------------------------

RELEASE_14_0, STABLE_14_0 = ("14.0-RELEASE", 1400097), ("14.0-STABLE", 1400507)
STABLE_14_2, RELEASE_15_1 = ("14.2-STABLE", 1402501), ("15.1-RELEASE-p1", 1501000)


@pytest.mark.parametrize(
    ("case", "kind", "known_in", "fixed_in"),
    [
        (
            "boot/test_control_shutdown[poweroff]", "pvh",
            [("13.2", 1302001), ("13.2", 0), RELEASE_14_0, ("14.0", 0)], [STABLE_14_0, ("14.1", 0), STABLE_14_2, RELEASE_15_1],
        ),
        ("boot/test_control_shutdown[poweroff]", "hvm", [], [("13.2", 1302001), RELEASE_14_0]),
        (
            "boot/test_saved_and_restored[2]", "pvh",
            [("13.2", 1302001), STABLE_14_0, STABLE_14_2, ("14.2", 0)], [("15.0", 0), ("15.0-RELEASE", 1500068), RELEASE_15_1],
        ),
        ("boot/test_saved_and_restored[1]", "pvh", [STABLE_14_0, STABLE_14_2], [("13.2", 1302001), RELEASE_15_1]),
        ("balloon/test_saved_while_ballooned", "pvh", [STABLE_14_0, STABLE_14_2], [("13.2", 1302001), RELEASE_15_1]),
        # Seven such cases passed on 14.2 as HVM.
        ("balloon/test_saved_while_ballooned", "hvm", [], [STABLE_14_2, RELEASE_15_1]),
    ],
)  # fmt: skip
def test_an_issue_covers_its_types_and_versions(
    case: str, kind: str, known_in: list[tuple[str, int]], fixed_in: list[tuple[str, int]]
) -> None:
    issues = known.load(paths.project() / "suites")
    assert all(first(issues, case, cell_of(*version, kind)) for version in known_in)
    assert not any(first(issues, case, cell_of(*version, kind)) for version in fixed_in)


def test_a_restored_14_has_one_issue_for_each_way_it_dies() -> None:
    """With two CPUs the guest dies on suspend, with one CPU on resume."""
    issues = known.load(paths.project() / "suites")
    found = [first(issues, f"boot/test_saved_and_restored[{cpus}]", cell_of(*STABLE_14_2)) for cpus in (1, 2)]
    assert [issue and issue.bug.split()[1] for issue in found] == ["4ece79968e70", "e7e2431586a4"]
    assert found[0] is not None
    assert found[0].excuses("trap: Fatal trap 12: page fault while in kernel mode in xen_intr_disable_source()")
    assert not found[0].excuses("trap: Fatal trap 12: page fault while in kernel mode in xbd_resume()")


def test_a_4k_disk_has_one_issue_for_attach_and_one_for_resize() -> None:
    """Up to 14.1 a disk with 4096-byte sectors is too large when attached. From 14.2 on it is too large after a resize."""
    issues = known.load(paths.project() / "suites")
    attach = finding(test="a disk of 4194304 bytes with sectors of 4096 bytes", observed="xbd2 has 33554432 bytes (8 times as many)", expected="", reference="")  # fmt: skip
    resize = finding(test="the backend of xbd2 (4096 byte sectors) grew from 4194304 to 8388608 bytes", observed="xbd2 has 67108864 bytes", expected="", reference="")  # fmt: skip
    for version, known_text, other in (
        (("13.2", 1302001), attach, resize), (STABLE_14_2, resize, attach), (RELEASE_15_1, resize, attach), (("14.2", 0), resize, attach),
    ):  # fmt: skip
        issue = first(issues, "root_mount/test_resize[4096]", cell_of(*version))
        assert issue is not None
        assert issue.excuses(known_text)
        assert not issue.excuses(other)
        assert first(issues, "root_mount/test_resize[512]", cell_of(*version)) is None


HOG = "test:      xl mem-set 204\nobserved:  {}\nobserved:  pid 812 ({}), jid 0, uid 0, was killed: failed to reclaim memory"


@pytest.mark.parametrize(
    ("version", "kind", "says", "killed", "excused"),
    [
        (("13.2", 1302001), "pvh", "no answer to 'sysctl' within 20 s", "perl", True),
        (
            ("13.2", 1302001),
            "hvm",
            "guest asks for a login instead of a prompt: the shell on its console has exited",
            "login",
            True,
        ),
        (RELEASE_15_1, "pvh", "guest asks for a login instead of a prompt: the shell on its console has exited", "login", True),
        (RELEASE_15_1, "hvm", "guest asks for a login instead of a prompt: the shell on its console has exited", "login", True),
        (RELEASE_15_1, "pvh", "panic: vm_page_alloc", "perl", False),
        (
            ("13.2", 1302001),
            "pvh",
            "guest asks for a login instead of a prompt: the shell on its console has exited",
            "login",
            False,
        ),
    ],
)
def test_the_issues_of_a_memory_hog(version: tuple[str, int], kind: str, says: str, killed: str, excused: bool) -> None:
    issue = first(known.load(paths.project() / "suites"), "balloon/test_memory_hog", cell_of(*version, kind))
    assert issue is not None
    assert issue.excuses(HOG.format(says, killed)) is excused
