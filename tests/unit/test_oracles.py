# SPDX-License-Identifier: BSD-2-Clause
"""Oracles of disk names and the message of a failed case. The rows of the tables come from the sources of FreeBSD and libxl."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.oracles.finding import finding
from harness.oracles.naming import Given, collisions, misnamed
from harness.xen import vdev

OLD, NEW = (8, 0), (13, 2)


def test_extended_vdev_numbers_are_right_since_9_1() -> None:
    xvdq = vdev.number("xvdq")
    assert [vdev.freebsd_disk(xvdq, version) for version in ((8, 4), (9, 0), (9, 1), (9, 3))] == ["xbd0", "xbd0", "xbd16", "xbd16"]
    assert vdev.freebsd_disk(vdev.number("hda"), (9, 0)) == "ada0"


@pytest.mark.parametrize(
    ("name", "linux"),
    [
        ("hda", "xvda"), ("hdc", "xvdc"), ("sda", "xvda"), ("sde", "xvde"), ("sde3", "xvde3"), ("0x4100", "xvdq"), ("0x2100", "xvde"),
        ("xvdq", "xvdq"), ("xvda16", "xvda16"), ("d1000p0", "xvdalm"), ("d6p0", "xvdg"),
    ],
)  # fmt: skip
def test_linux_table(name: str, linux: str) -> None:
    assert vdev.linux_disk(vdev.number(name)) == linux


def test_linux_refuses_majors_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="Linux refuses"):
        vdev.linux_disk(0xCB00)


def name_of(name: str) -> str:
    return vdev.freebsd_disk(vdev.number(name), NEW)


def test_misnamed_disks_are_reported() -> None:
    given = (Given("xvdb", "b"), Given("hda", "h"), Given("xvdq", "q"))
    assert misnamed(given, {"xbd0": "root", "xbd1": "b", "ada0": "h", "xbd16": "q"}, name_of) == ()

    swapped = misnamed(given, {"xbd1": "h", "ada0": "b", "xbd16": "q"}, name_of)
    assert swapped == (
        "vdev xvdb (number 51728, 0xca10) should be xbd1: it is ada0, and xbd1 holds vdev hda",
        "vdev hda (number 768, 0x300) should be ada0: it is xbd1, and ada0 holds vdev xvdb",
    )
    # The bug of FreeBSD 8.0: an extended number becomes xbd0.
    (renamed,) = misnamed(given, {"xbd1": "b", "ada0": "h", "xbd0": "q"}, name_of)
    assert renamed.endswith("should be xbd16: it is xbd0, and there is no xbd16")
    (missing,) = misnamed(given, {"xbd1": "b", "ada0": "h"}, name_of)
    assert "no disk of the guest has its content, and there is no xbd16" in missing
    (corrupt,) = misnamed(given, {"xbd1": "b", "ada0": "h", "xbd16": "x"}, name_of)
    assert corrupt.endswith("no disk of the guest has its content, and xbd16 holds unknown data")


def test_collisions() -> None:
    assert collisions(("xvda", "xvdb1", "xvdb2", "hda", "0xCB00"), name_of) == {
        "xbd0": ("xvda", "0xCB00"),
        "xbd1": ("xvdb1", "xvdb2"),
    }
    assert collisions(("xvda", "hda", "sda"), name_of) == {}


def test_finding_has_four_parts() -> None:
    text = finding(test="A", observed=["B", "C"], expected="D", reference="E")
    assert text.splitlines() == ["test:      A", "observed:  B", "observed:  C", "expected:  D", "reference: E"]
