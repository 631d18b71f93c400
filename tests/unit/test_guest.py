# SPDX-License-Identifier: BSD-2-Clause
"""A guest's waits on its toolstack, which is played here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.deadline import Deadline
from harness.errors import CommandFailed, DeadlineExpired, GuestDied
from harness.guests import guest as guests
from harness.guests.guest import Guest
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.transport import Completed
from harness.xen.config import DomainConfig
from harness.xen.listing import DomainState

REFUSED = """Parsing config from /var/lib/fxh/run-3b8272/g.cfg
xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel
libxl: error: libxl_dom.c:566:libxl__build_dom: xc_dom_parse_image failed
libxl: error: libxl_create.c:1695:domcreate_rebuild_done: Domain 2:cannot (re-)build domain: -3
libxl: error: libxl_domain.c:1060:domain_destroy_cb: Domain 2:Destruction of domain failed
"""
FAILED = """libxl: error: libxl_bootloader.c:764:bootloader_finished: Domain 4:bootloader failed - consult logfile /var/log/xen/bootloader.4.log
libxl: error: libxl_exec.c:117:libxl_report_child_exitstatus: bootloader [397] exited with error status 1
"""


class Host:
    """``rows`` is what `xl list` says of the guest, one after the other; the last one repeats."""

    def __init__(self, rows: list[DomainState | None]) -> None:
        self.rows = rows
        self.said = ""
        self.pauses: list[float] = []
        self.awaited: list[tuple[str, ...]] = []
        self.toolstack = SimpleNamespace(
            find=lambda name: self.rows.pop(0) if len(self.rows) > 1 else self.rows[0],
            follow_log=self._pausing,
            log=lambda name: (
                f"{REFUSED.replace('no loader', 'once no loader')}Domain 3 has shut down, reason code 1 0x1\n{self.said}"
            ),
        )
        self.xenstore = SimpleNamespace(watch=self._pausing)

    @contextmanager
    def _pausing(self, *paths: str, seconds: float) -> Iterator[Callable[[float], None]]:
        self.awaited.append(paths)

        def pause(longest: float) -> None:
            self.pauses.append(longest)
            time.sleep(0.005)

        yield pause


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_POLL_SHUTDOWN", 0.01)


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
    end = "for g to be re-created; last reason: no domain of this name is left: the toolstack did not create it again"
    with pytest.raises(GuestDied, match=f"{end}$"):
        guest(host, tmp_path).follow_reboot(60)
    host.said = REFUSED
    with pytest.raises(GuestDied, match=f"{end}: xc_dom_find_loader: no loader found: Invalid kernel"):
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
    assert made.deadline(20).seconds == 60.0


def test_a_new_domain_that_runs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host([row(3, "---s--"), None, row(4, "--p---"), row(4, "-b----")])
    made = guest(host, tmp_path)
    replaced = []
    made._console = SimpleNamespace(replace_stream=lambda stream, same_boot: replaced.append((stream, same_boot)))  # type: ignore[assignment]
    monkeypatch.setattr(made, "_stream", lambda: "the new console")
    assert made.follow_reboot(60) == 4
    assert replaced == [("the new console", False)]
    assert host.awaited == [("g",)], "xenstored tells of a new domain, not that it runs"
    assert host.pauses == 3 * [guests._POLL_NEW]


def test_a_domain_that_is_being_built_is_not_destroyed_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_ABSENT_POLLS", 1)
    host = Host([row(4, "--p---"), row(4, "--p---"), row(4, "r-----"), None])
    seen: list[int] = []
    host.toolstack.destroy = lambda domid: seen.append(len(host.rows))
    restarting(host, tmp_path).destroy()
    assert seen == [1], "destroyed once, when it ran"


@pytest.mark.parametrize("state", ["--p---", "--psc-"])
def test_what_nobody_builds_is_destroyed_at_once(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain that we created ourselves and did not start; the next one, shut down."""
    monkeypatch.setattr(guests, "_ABSENT_POLLS", 1)
    host = Host([row(4 if "s" in state else 3, state), None])
    seen: list[int] = []
    host.toolstack.destroy = seen.append
    restarting(host, tmp_path).destroy()
    assert seen == [4 if "s" in state else 3]


def test_a_domain_whose_building_hangs_is_destroyed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_ABSENT_POLLS", 1)
    monkeypatch.setattr(guests, "_BUILDING", 0.2)
    host = Host([row(4, "--p---")])
    host.toolstack.destroy = lambda domid: setattr(host, "rows", [None])
    restarting(host, tmp_path).destroy()
    assert host.rows == [None]


@pytest.mark.parametrize(
    ("said", "summary"),
    [
        (REFUSED, "refused: xc_dom_find_loader: no loader found: Invalid kernel"),
        (FAILED, "refused: bootloader failed: RuntimeError: Unable to find partition containing kernel"),
    ],
)
def test_a_kernel_that_xen_refuses_is_the_guests_death(said: str, summary: str, tmp_path: Path) -> None:
    made = creating(said, tmp_path)
    with pytest.raises(GuestDied) as caught:
        made.create()
    assert caught.value.death.summary == summary
    assert said.splitlines()[0] in caught.value.death.excerpt


def test_a_domain_that_the_host_cannot_build_is_not(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        creating("libxl: error: libxl_device.c:1124:device_backend_callback: Domain 5:unable to add device\n", tmp_path).create()


def creating(said: str, tmp_path: Path) -> Guest:
    """A guest whose toolstack fails to create it, with these words."""
    made = guest(Host([None]), tmp_path)

    def create(config: DomainConfig, deadline: Deadline | None) -> int:
        raise CommandFailed("xl create", 3, "", said)

    made.host.toolstack.create = create  # type: ignore[method-assign]
    trace = b"Traceback (most recent call last):\r\n  File ...\r\nRuntimeError: Unable to find partition containing kernel\r\n"
    made.host.transport = SimpleNamespace(run=lambda argv, check: Completed(tuple(argv), 0, trace, b""))  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("versions", "asked"),
    [
        ("1501000\n1501000", "netstat -s -p tcp"),
        ("1302001\n1302000", "netstat -s -p tcp"),
        ("1004000", "netstat -s -p tcp"),  # its uname may know no -U
        ("1501000\n1302001", "sysctl -b net.inet.tcp.stats | od -A n -t x1 -j 248 -N 8"),
        ("1302001\n1402501", "sysctl -b net.inet.tcp.stats | od -A n -t x1 -j 240 -N 8"),
    ],
)
def test_counters_of_a_kernel_that_is_not_the_worlds(versions: str, asked: str) -> None:
    """netstat of 13 reads tcps_rcvbyte of a kernel 14 as segments with a bad checksum."""
    commands: list[str] = []

    def run(command: str) -> str:
        commands.append(command)
        if command.startswith("sysctl -n kern.osreldate"):
            return versions
        return (
            "\t\t7 discarded for bad checksums\n"
            if command.startswith("netstat")
            else "           07  00  00  00  00  00  00  00\n"
        )

    assert FreeBSD().checksum_errors(run) == 7
    assert commands[1:] == [asked]
