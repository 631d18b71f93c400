"""A guest's waits on its toolstack, which is played here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import DeadlineExpired, GuestDied
from harness.guests import guest as guests
from harness.guests.guest import Guest
from harness.guests.linux import Linux
from harness.xen.config import DomainConfig
from harness.xen.listing import DomainState


class Host:
    """``rows`` is what `xl list` says of the guest, one after the other; the last goes on."""

    def __init__(self, rows: list[DomainState | None]) -> None:
        self.rows = rows
        self.pauses: list[float] = []
        self.watched: list[tuple[str, ...]] = []
        self.toolstack = SimpleNamespace(
            find=lambda name: self.rows.pop(0) if len(self.rows) > 1 else self.rows[0], watch=self._watch
        )
        self.xenstore = SimpleNamespace(watch=self._watch)

    @contextmanager
    def _watch(self, *paths: str, seconds: float) -> Iterator[Callable[[float], None]]:
        self.watched.append(paths)

        def pause(longest: float) -> None:
            self.pauses.append(longest)
            time.sleep(0.005)

        yield pause


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_LOOKS", 0.01)


def row(domid: int, state: str) -> DomainState:
    return DomainState("g", domid, 160, 1, state, 0.0)


def guest(host: Host, tmp_path: Path) -> Guest:
    made = Guest(host, Linux(), DomainConfig("g", "pv", 160), tmp_path)  # type: ignore[arg-type]
    made.domid = 3
    return made


def restarting(host: Host, tmp_path: Path) -> Guest:
    made = guest(host, tmp_path)
    made.config = replace(made.config, on_crash="restart")
    return made


def test_a_guest_whose_toolstack_gave_it_up_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_GIVEN_UP", 0.05)
    host = Host([row(3, "---s--"), row(4, "--p---"), None])
    with pytest.raises(
        GuestDied, match="for g to be re-created; last reason: none of its domains is left: the toolstack gave it up"
    ):
        guest(host, tmp_path).follow_reboot(60)


def test_a_guest_that_does_not_go_down_hangs(tmp_path: Path) -> None:
    host = Host([row(3, "-b----")])
    with pytest.raises(GuestDied, match=r"hang: waited .* for g to be re-created; last reason: domain 3 is still there"):
        guest(host, tmp_path).follow_reboot(0.05)


def test_what_a_host_does_not_answer_in_time_is_no_hang_of_the_guest(tmp_path: Path) -> None:
    host = Host([None])
    made = guest(host, tmp_path)

    def silent(name: str) -> None:
        raise DeadlineExpired("dom0: no end within 60 s of: xl list")

    host.toolstack.find = silent
    with pytest.raises(DeadlineExpired, match="no end within 60 s"):
        made.follow_reboot(0.05)


def test_a_machine_that_is_slow_has_longer_to_do_what_is_due(tmp_path: Path) -> None:
    made = guest(Host([None]), tmp_path)
    made.scale = 3.0
    assert made.due(20).seconds == 60.0


def test_a_new_domain_that_runs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host([row(3, "---s--"), None, row(4, "--p---"), row(4, "-b----")])
    made = guest(host, tmp_path)
    replaced = []
    made._console = SimpleNamespace(replace_stream=lambda stream, same_boot: replaced.append((stream, same_boot)))  # type: ignore[assignment]
    monkeypatch.setattr(made, "_stream", lambda: "the new console")
    assert made.follow_reboot(60) == 4
    assert replaced == [("the new console", False)]
    assert host.watched == [("g",)], "xenstored tells of a new domain, not that it runs"
    assert host.pauses == 3 * [guests._UNTOLD]


def test_a_domain_that_is_being_built_is_not_destroyed_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_BETWEEN_LIVES", 1)
    host = Host([row(4, "--p---"), row(4, "--p---"), row(4, "r-----"), None])
    seen: list[int] = []
    host.toolstack.destroy = lambda domid: seen.append(len(host.rows))
    restarting(host, tmp_path).destroy()
    assert seen == [1], "destroyed once, when it ran"


@pytest.mark.parametrize("state", ["--p---", "--psc-"])
def test_what_nobody_builds_is_destroyed_at_once(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain that we created ourselves and did not start; the next one, shut down."""
    monkeypatch.setattr(guests, "_BETWEEN_LIVES", 1)
    host = Host([row(4 if "s" in state else 3, state), None])
    seen: list[int] = []
    host.toolstack.destroy = seen.append
    restarting(host, tmp_path).destroy()
    assert seen == [4 if "s" in state else 3]


def test_a_domain_whose_building_hangs_is_destroyed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_BETWEEN_LIVES", 1)
    monkeypatch.setattr(guests, "_BUILDING", 0.2)
    host = Host([row(4, "--p---")])
    host.toolstack.destroy = lambda domid: setattr(host, "rows", [None])
    restarting(host, tmp_path).destroy()
    assert host.rows == [None]
