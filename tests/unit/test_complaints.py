# SPDX-License-Identifier: BSD-2-Clause
"""Complaints of kernels, Xen and dom0, on recorded consoles and a sample of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.console.clean import Cleaner
from harness.console.complaints import DOM0, GUEST, KINDS, XEN, Kind, complaints

CONSOLES = Path(__file__).parent.parent / "consoles"


def recorded(name: str) -> str:
    return Cleaner().text((CONSOLES / name).read_bytes()).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_knows_its_sample(kind: Kind) -> None:
    for source in kind.sources:
        (found,) = complaints(kind.sample, source)
        assert found.kind == kind.name


def test_a_reversal_glued_to_other_output_names_both_locks() -> None:
    found = complaints(recorded("freebsd-14.2-pvh-witness-login.log"))
    assert "lock order reversal: dev mtx / umareclaim" in {complaint.identity for complaint in found}
    (reversal,) = (complaint for complaint in found if complaint.kind == "lock order reversal")
    assert any("devd -> umareclaim" in line for line in reversal.detail), "the order belongs to it"


def test_reversals_of_a_saved_and_restored_guest() -> None:
    found = complaints(recorded("freebsd-15.1-pvh-witness-restored.log"))
    assert {complaint.identity for complaint in found if complaint.kind == "lock order reversal"} == {
        "lock order reversal: sapblk / mntfs",
        "lock order reversal: sapblk / xenstore request",
        "lock order reversal: sapblk / xdlock",
    }


@pytest.mark.parametrize(
    "name", ["freebsd-15.1-pvh-login.log", "freebsd-14.2-pvh-login-panic.log", "freebsd-13.2-pvh-boot-login-panic.log"]
)
def test_a_healthy_boot_has_warnings_only(name: str) -> None:
    assert {complaint.kind for complaint in complaints(recorded(name))} <= {"kernel warning"}


def test_the_identity_has_no_numbers_or_addresses() -> None:
    one, two = (complaints(f"xbd{n}: Error {n} writing 0x{n}fff") for n in (1, 7))
    assert one[0].identity == two[0].identity == "device error: xbd#: Error # writing #"


def test_equal_complaints_are_counted() -> None:
    (found,) = complaints("xn0: Error 3\nxn1: Error 4\nother\nxn0: Error 5\n")
    assert (found.count, found.line) == (3, 1)


def test_the_first_row_that_matches_takes_the_line() -> None:
    (found,) = complaints("xn0: watchdog timeout: Error 5")
    assert found.kind == "timeout"


def test_an_identity_of_a_baseline_is_found_again() -> None:
    now = complaints("xn0: Error 3\nxbd0: Error 4\n")
    assert [complaint.message for complaint in now if complaint.identity not in {"device error: xn#: Error #"}] == ["xbd0: Error 4"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (DOM0, "xen-blkback: backend/vbd/3/51712: using 1 queues, protocol 1 (x86_64-abi) persistent grants"),
        (DOM0, "vif vif-3-0 vif3.0: renamed from x"),
        (GUEST, "xbd0: 1024MB <Virtual Block Device> at device/vbd/51712 on xenbusb_front0"),
        (GUEST, "xn0: backend features: feature-sg feature-gso-tcp4"),
        (GUEST, "xbd0: features: flush, write_barrier"),
        (XEN, "(XEN) d3v0 Over-allocation is fine"),
    ],
)
def test_ordinary_messages_are_no_complaints(source: str, text: str) -> None:
    assert complaints(text, source) == ()


def test_hostile_output_is_escaped() -> None:
    (found,) = complaints("xn0: Error \x1b[31m<script>\x00")
    assert "\x1b" not in found.message + found.identity
    assert "\x00" not in found.message


@given(st.text("lock order reversal:\n 1st 2nd (xn0: Error WARNING#\r\t\x1b", max_size=400))
def test_any_text_is_taken(text: str) -> None:
    for source in (GUEST, XEN, DOM0):
        for complaint in complaints(text, source):
            assert 1 <= complaint.line <= text.count("\n") + 1
