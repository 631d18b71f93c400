# SPDX-License-Identifier: BSD-2-Clause
"""The action trace as the page and the mail show it."""

from __future__ import annotations

from pathlib import Path

from harness import trace
from harness.report import actions
from harness.report.console import Line, merge
from harness.trace import Event


def event(number: int, what: str, clock: float = 100.0, **more: object) -> Event:
    return Event(number, 0, 1000.0 + clock, str(more.pop("kind", "xl")), what, clock=clock, seconds=0.25, **more)  # type: ignore[arg-type]


def test_actions_lie_between_the_lines_of_the_guest() -> None:
    guest = [Line(1.0, "a"), Line(3.0, "b")]
    done = actions.lines((event(1, "xl mem-set 3 160m", 102.0, caller="suites/balloon/test_balloon.py:7"),), 100.0)
    assert [line.text for line in merge(guest, done)] == [
        "a", "xl mem-set 3 160m  0.25 s  (suites/balloon/test_balloon.py:7)", "b",
    ]  # fmt: skip


def test_without_an_unpaused_guest_there_is_no_time_line() -> None:
    assert actions.lines((event(1, "xl list"),), None) == []


def test_the_mail_shows_what_led_to_the_failure() -> None:
    events = (
        *(event(n, f"xl list {n}", 100.0 + n) for n in range(1, 15)),
        event(15, "evidence", kind="evidence"),
        Event(16, 15, 1200.0, "xl", "xl dmesg"),
    )
    shown = actions.last(events)
    assert len(shown) == 10
    assert shown[-1].strip().startswith("13.00 s  xl list 14")
    assert not any("dmesg" in line for line in shown)


def test_the_mail_shows_nothing_after_the_failure_and_the_last_attempt_only() -> None:
    events = (
        event(1, "t", kind="case"), event(2, "xl create"), event(3, "gather evidence", kind="evidence"), event(4, "xl destroy"),
        event(5, "t", kind="case"), event(6, "xl list"), event(7, "check the host", kind="evidence"), Event(8, 7, 0.0, "xl", "xl info"),
        event(9, "gather evidence", kind="evidence"), event(10, "xl destroy"),
    )  # fmt: skip
    assert [line.split("  ")[-2].strip() for line in actions.last(events)] == ["xl list"]


def test_a_poll_takes_one_line() -> None:
    """Otherwise ten looks at the guest's disks hide the attach that they wait for."""
    polls = [event(n, "sysctl kern.disks", 100.0 + n, kind="guest", where="g") for n in range(2, 40)]
    events = (
        event(1, "xl block-attach", 101.0),
        *polls,
        event(40, "sysctl kern.disks", 140.0, kind="guest", where="g", status="1"),
    )
    assert [line.strip() for line in actions.last(events)] == [
        "0.00 s  xl block-attach  0.25 s",
        "1.00 s  guest: sysctl kern.disks  [g]  0.25 s  38 times, the last after 38.00 s",
        "39.00 s  guest: sysctl kern.disks  [g]  0.25 s  1",
    ]


def test_an_action_that_never_ended_says_so() -> None:
    assert actions.describe(Event(1, 0, 0.0, "wait", "stage login", "guest", last="kernel", status="GuestDied: panic")) == (
        "wait: stage login  [guest]  not done  GuestDied: panic  last seen: kernel"
    )


def test_hostile_output_stays_on_one_line_without_escapes() -> None:
    text = actions.describe(event(1, "echo \x1b[31m\nx", kind="guest", where="g"))
    assert "\x1b" not in text
    assert "\n" not in text


def test_a_case_without_a_trace_has_no_actions(tmp_path: Path) -> None:
    assert actions.load(tmp_path) == ()
    with trace.record(tmp_path / trace.FILE), trace.step("xl", "xl list"):
        pass
    assert [one.what for one in actions.load(tmp_path)] == ["xl list"]


def test_the_time_line_has_one_line_of_the_evidence() -> None:
    events = (
        event(1, "xl list"),
        event(2, "gather evidence", kind="evidence"),
        Event(3, 2, 0.0, "command", "dmesg"),
        Event(4, 3, 0.0, "xl", "xl info"),
    )
    assert [line.text.partition("  ")[0] for line in actions.lines(events, 0.0)] == ["xl list", "gather evidence"]
