# SPDX-License-Identifier: BSD-2-Clause
"""New console lines, on recorded consoles and lines of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report.console_diff import Difference, compare, normalise

CONSOLES = Path(__file__).parent.parent / "consoles"
BOOT = b"Copyright\r\nxbd0: 512MB <Disk> at device/vbd/51712\r\nUptime: 3s\r\n\r\nFreeBSD/amd64 (fbsd) (xc0)\r\n\r\nlogin: "


def test_equal_boots_do_not_differ() -> None:
    assert not compare(BOOT, BOOT.replace(b"51712", b"51728").replace(b"512MB", b"1024MB"))


def test_a_new_line_and_a_lost_line_are_named() -> None:
    found = compare(BOOT, BOOT.replace(b"Copyright", b"WARNING: xbd0: slow"))
    assert (found.appeared, found.disappeared) == (("WARNING: xbd0: slow",), ("Copyright",))


def test_a_boot_that_died_lacks_no_later_lines() -> None:
    found = compare(BOOT, b"Copyright\r\npanic: at the disco\r\n")
    assert (found.appeared, found.disappeared) == (("panic: at the disco",), ())
    assert compare(b"Copyright\r\npanic: at the disco\r\n", BOOT).appeared == ()


def test_the_order_of_lines_does_not_count() -> None:
    assert not compare(b"one a\ntwo b\nlogin: ", b"two b\none a\nlogin: ")


def test_what_follows_the_login_prompt_does_not_count() -> None:
    assert not compare(BOOT, BOOT + b"root\r\npanic: later\r\n")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("xn0: Ethernet address: 00:16:3e:33:98:82", "xn0: Ethernet address: 00:16:3e:00:00:01"),
        ("Mon Nov 30 22:41:16 UTC 2026", "Tue Dec  1 02:01:00 UTC 2026"),
        ("[    1.234567] Linux version", "[   11.2] Linux version"),
        ("<118>Starting syslogd.", "Starting syslogd."),
        ("inet6 fe80::216:3eff:fe33:9882%xn0", "inet6 fe80::216:3eff:fe00:1%xn0"),
        ("TSC: P-state invariant 2994.375 MHz", "TSC: P-state invariant 2995 MHz"),
        ("hostuuid 12345678-1234-1234-1234-123456789abc", "hostuuid abcdefab-1234-1234-1234-123456789abc"),
    ],
)
def test_what_differs_from_boot_to_boot_is_normalised(one: str, two: str) -> None:
    assert normalise(one) == normalise(two)


def test_two_releases_differ_in_real_lines() -> None:
    found = compare(
        (CONSOLES / "freebsd-14.2-pvh-login-panic.log").read_bytes(), (CONSOLES / "freebsd-15.1-pvh-login.log").read_bytes()
    )
    assert found.appeared
    assert found.disappeared


def test_hostile_lines_are_escaped() -> None:
    (line,) = compare(b"a\nlogin: ", b"a\n\x1b]0;x\x07evil\x08\nlogin: ").appeared
    assert "\x1b" not in line
    assert "\x08" not in line


def test_long_lines_are_cut() -> None:
    (line,) = compare(b"a\nlogin: ", b"a\n" + b"xy" * 400_000 + b"\nlogin: ").appeared
    assert line == "xy" * 119 + "x…"


def test_the_lines_that_are_not_shown_are_counted() -> None:
    found = Difference(tuple("abc"), tuple("de"))
    assert [found.left_out(most) for most in (0, 1, 2, 3)] == [5, 3, 1, 0]
