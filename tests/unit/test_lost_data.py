# SPDX-License-Identifier: BSD-2-Clause
"""An explainer reads both sides after a failed transfer, within its deadline, and never causes a second failure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.console.deaths import Death
from harness.console.session import Output
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestDied, LabDead, TransportError
from harness.guests import disk_explainer, explained
from harness.guests.explained import Explained
from harness.guests.link import Link, Transfer
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.plugin import lost_data
from harness.plugin.case_context import CaseContext
from harness.transport import Completed

SNMP = "Tcp: InSegs InCsumErrors\nTcp: {0} {1}\n"
DEVICES = "vif7.0: 10 {0} 0 0 0 0 0 0 20 {1} 0 0 0 0 0 0\n"
BEFORE = SNMP.format(100, 3) + DEVICES.format(5, 5)
AFTER = SNMP.format(120, 15) + DEVICES.format(17, 9) + "interface_up 1\nbridged 1\n== ethtool -S\n     tx_frag_overflow: 0\n"
GUEST_BEFORE = "Tcp: InSegs RetransSegs\nTcp: 1 0\neth0: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n"
GUEST_AFTER = "Tcp: InSegs RetransSegs\nTcp: 1 9\neth0: 1 6 0 0 0 0 0 0 1 20 0 0 0 0 0 0\ninterface_up 1\n"
FAILED = Transfer(0, "a", "b", 25.1, "TimeoutError: timed out")


class Transport:
    """A dom0 that prints ``text`` for the counters, and has no tcpdump."""

    name = "dom0"

    def __init__(self, text: str = AFTER, error: Exception | None = None) -> None:
        self.text, self.error, self.asked = text, error, 0

    def run(self, argv: Sequence[str], deadline: Deadline | None = None, **_: object) -> Completed:
        self.asked += 1
        assert deadline is not None, "every command of an explanation has a deadline"
        assert deadline.seconds <= 5
        if self.error:
            raise self.error
        return Completed(tuple(argv), 0, b"" if "xen-netback" in argv[2] else self.text.encode(), b"")

    def open(self, argv: Sequence[str]) -> Any:
        raise TransportError("no tcpdump")


class Session:
    """A shell in the guest that answers ``text``, or raises."""

    def __init__(self, text: str = f"{GUEST_BEFORE}== now\n{GUEST_AFTER}", error: Exception | None = None) -> None:
        self.text, self.error = text, error

    def run(self, command: str, deadline: Deadline, *, check: bool) -> Output:
        assert deadline.seconds <= 6
        if self.error:
            raise self.error
        return Output(command, 0, self.text)


def guest(tmp_path: Path, session: Any = None, transport: Any = None, **more: Any) -> Any:
    session = session or Session()
    found = {
        "name": "fxh-guest", "domid": 7, "directory": tmp_path, "os": Linux(), "explainers": [], "session": session,
        "console": SimpleNamespace(death=None), "config": SimpleNamespace(vifs=[SimpleNamespace(mac="00:16:3e:00:00:01", bridge="xenbr0")], serial_console=False),
        "host": SimpleNamespace(bridge="xenbr0", slot=0, transport=transport or Transport(), facts=SimpleNamespace(emulated=True)),
    }  # fmt: skip
    return SimpleNamespace(**found | more)


def link(tmp_path: Path, session: Any = None, transport: Any = None, **more: Any) -> Link:
    made = Link(guest(tmp_path, session, transport, **more), interface="eth0")
    made._explainer.took(BEFORE)
    return made


def test_the_finding_says_what_both_sides_counted(tmp_path: Path) -> None:
    failing = link(tmp_path)
    assert failing.checked(FAILED) is FAILED, "the transfer stays as it is"

    (explainer,) = failing.guest.explainers
    assert explainer.explained is not None
    assert explainer.explained.rows == (
        "cause:     dom0 discarded 12 packets for a wrong checksum",
        "counted:   dom0, vif7.0: Tcp.InCsumErrors 12, rx_packets 12, tx_packets 4",
        "counted:   fxh-guest, eth0: Tcp.RetransSegs 9, rx_packets 4, tx_packets 18",
        "captured:  no capture: no tcpdump",
    )
    complete = (tmp_path / "network-fxh-guest-eth0.txt").read_text()
    assert complete.startswith("cause: ")
    assert BEFORE in complete
    assert GUEST_AFTER in complete


def test_only_the_first_failed_transfer_of_a_link_is_explained(tmp_path: Path) -> None:
    transport = Transport()
    failing = link(tmp_path, transport=transport)
    assert failing.checked(Transfer(5, "a", "a", 1.0)).complaint == ""
    assert transport.asked == 0, "a transfer that arrived costs nothing"
    failing.checked(FAILED)
    asked = transport.asked
    failing.checked(FAILED)
    assert transport.asked == asked


@pytest.mark.parametrize(
    ("session", "words"),
    [
        (Session(error=GuestDied(Death("panic", "page fault"))), "page fault"),
        (Session(error=DeadlineExpired("waited 5.0 s for the end of a command")), "waited 5.0 s"),
        (Session(error=RuntimeError("a bug")), "a bug"),
    ],
    ids=["died", "stuck", "bug"],
)
def test_a_guest_that_does_not_answer_hides_nothing(session: Session, words: str, tmp_path: Path) -> None:
    failing = link(tmp_path, session)
    failing.checked(FAILED)
    (explainer,) = failing.guest.explainers
    assert explainer.explained is not None
    assert any(words in row for row in explainer.explained.rows)
    if not isinstance(session.error, RuntimeError):
        assert "dom0 discarded 12 packets" in explainer.explained.cause


@pytest.mark.parametrize("error", [DeadlineExpired("no answer"), TransportError("ssh dropped"), LabDead("QEMU is gone")])
def test_a_dom0_that_does_not_answer_hides_nothing(error: Exception, tmp_path: Path) -> None:
    failing = link(tmp_path, transport=Transport(error=error))
    failing.checked(FAILED)
    (explainer,) = failing.guest.explainers
    assert explainer.explained is not None
    assert f"counted:   dom0: not read: {error}" in explainer.explained.rows
    assert any(row.startswith("counted:   fxh-guest, eth0: Tcp.RetransSegs 9") for row in explainer.explained.rows)


def test_a_dead_guest_is_not_asked(tmp_path: Path) -> None:
    dead = link(tmp_path, Session(error=AssertionError("asked")), console=SimpleNamespace(death=Death("panic", "x")))
    dead.checked(FAILED)
    assert dead.guest.explainers[0].explained.counted[1] == "fxh-guest: not read: the guest is dead"


def test_an_expired_deadline_is_kept(tmp_path: Path) -> None:
    class Slow(Transport):
        def run(self, argv: Sequence[str], deadline: Deadline | None = None, **_: object) -> Completed:
            assert deadline is not None
            time.sleep(deadline.remaining)
            raise DeadlineExpired("no answer")

    begun = time.monotonic()
    found = link(tmp_path, transport=Slow())._explainer.explain(Deadline(0.2))
    assert time.monotonic() - begun < 2
    assert "not read: no answer" in found.counted[0]


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b]0;x\x07" * 100, "== now\n" * 5000, "Tcp: " + "A " * 100_000, f"== now\nTcp: A\nTcp: {'9' * 5000}\n", "\0" * 5000,
        "== now\nTcp: InCsumErrors\nTcp: -5\n", "== now\neth0: 1 2 3\n", "x\n== now\nfoo: 12 \u202e<script>alert(1)</script>\n",
    ],
)  # fmt: skip
def test_a_hostile_guest_prints_no_control_characters_and_no_flood(text: str, tmp_path: Path) -> None:
    for guest_os in (Linux(), FreeBSD()):
        failing = link(tmp_path, Session(text), os=guest_os)
        failing.checked(FAILED)
        rows = failing.guest.explainers[0].explained.rows
        assert len(rows) <= 9
        assert all(row.isprintable() and len(row) <= 400 for row in rows)
        assert "\x1b" not in (tmp_path / "network-fxh-guest-eth0.txt").read_text()


def test_an_os_without_counters_says_so(tmp_path: Path) -> None:
    class Other(Linux):
        def network_counters(self, interface: str) -> str:
            return ""

    failing = link(tmp_path, os=Other())
    failing.checked(FAILED)
    assert failing.guest.explainers[0].explained.counted[1] == "fxh-guest: not read: the harness knows no counters of Linux"


# -- at the end of a case ---------------------------------------------------------------------------------------------------


class FakeExplainer:
    """An explainer with a given explanation."""

    def __init__(self, subject: str, known: Explained | None = None, found: Explained | None = None) -> None:
        self.subject, self.explained, self.found, self.asked = subject, known, found or Explained(), 0

    def explain(self, deadline: Deadline) -> Explained:
        self.asked += 1
        return self.found


def context(tmp_path: Path, *explainers: FakeExplainer, prepared: Sequence[FakeExplainer] = ()) -> CaseContext:
    found = CaseContext(tmp_path)
    found.guests.append(guest(tmp_path, Session("disk xvda 1 0 8 0 0 0 0 0 0 0 0\n"), Transport(""), explainers=list(explainers)))
    found.prepared.append(guest(tmp_path, explainers=list(prepared)))
    return found


CAUSE = Explained("the guest sent no frame on eth0", ("dom0: nothing",), failed=True)


@pytest.mark.parametrize(
    ("explainers", "prepared", "wanted"),
    [
        ([FakeExplainer("vif 0", found=CAUSE), FakeExplainer("vif 0", found=CAUSE)], [], [0, 1]),
        ([FakeExplainer("vif 0", found=CAUSE), FakeExplainer("vif 1", found=Explained())], [], [1, 1]),
        ([FakeExplainer("vif 0", known=CAUSE), FakeExplainer("vif 1", found=CAUSE)], [], [0, 0]),
        ([], [FakeExplainer("vif 0", known=CAUSE), FakeExplainer("vif 1", found=Explained("never asked"))], []),
    ],
    ids=["the last explainer of a link", "each link", "a transfer failed", "the preparation failed"],
)
def test_a_failed_case_gets_the_cause_once(
    explainers: list[FakeExplainer], prepared: list[FakeExplainer], wanted: list[int], tmp_path: Path
) -> None:
    rows = lost_data.rows(context(tmp_path, *explainers, prepared=prepared), "observed:  x", time.monotonic())
    assert rows == CAUSE.rows
    assert [one.asked for one in explainers] == wanted


def test_a_case_whose_link_works_gets_no_rows(tmp_path: Path) -> None:
    assert lost_data.rows(context(tmp_path, FakeExplainer("vif 0")), "observed:  x", time.monotonic()) == ()
    assert Explained(counted=("dom0: rx_packets 5",)).rows == ()
    assert explained.rows([CAUSE, CAUSE], "x") == CAUSE.rows


def test_a_later_death_does_not_hide_the_failed_transfer(tmp_path: Path) -> None:
    failing = link(tmp_path)
    failing.checked(FAILED)
    found = failing.guest.explainers[0].explained
    assert explained.rows([found], "panic: page fault")[0] == "observed:  earlier: TimeoutError: timed out after 0 bytes and 25.1 s"
    assert explained.rows([found], f"observed:  {FAILED.complaint}")[0].startswith("cause: ")


def test_a_slow_serial_port_is_left_alone(tmp_path: Path) -> None:
    serial = SimpleNamespace(vifs=[SimpleNamespace(mac="00:16:3e:00:00:01", bridge="xenbr0")], serial_console=True)
    slow = link(tmp_path, Session(error=AssertionError("asked")), config=serial)
    slow.checked(FAILED)
    assert slow.guest.explainers[0].explained.counted[1] == "fxh-guest: not read: its serial port is too slow"


def test_without_a_cause_a_failed_transfer_still_shows_the_counters() -> None:
    rows = Explained("", ("dom0: nothing changed",), failed=True).rows
    assert rows[0].startswith("cause:     not known")
    assert rows[1] == "counted:   dom0: nothing changed"


# -- disks --------------------------------------------------------------------------------------------------------------------

DISK = Path(__file__).parent / "data" / "counters" / "failing-disk.txt"
REASON = "observed:  vdev xvdc (number 51744, 0xca20) should be xvdc: no disk of the guest has its content"


def explain(tmp_path: Path, text: str, age: float = 1e6, **more: Any) -> Explained:
    return disk_explainer.explain(guest(tmp_path, transport=Transport(text), **more), REASON, Deadline(5), age)


def test_a_disk_that_dom0_cannot_read(tmp_path: Path) -> None:
    found = explain(tmp_path, DISK.read_text())
    assert found.rows == (
        "cause:     dom0 could not read or write loop0, the device behind xvdc: I/O error, dev loop0, sector 0 op 0x0:(READ) flags 0x0 "
        "phys_seg 1 prio class 2 (and 3 more)",
        "counted:   xvdc: blkback on loop0: rd_req 4, rd_sect 280",
    )
    assert "== xenstore" in (tmp_path / "disks-fxh-guest.txt").read_text()
    assert explain(tmp_path, DISK.read_text(), age=0.5).rows == (), "the messages are older than the case"


@pytest.mark.parametrize("error", [DeadlineExpired("stuck"), GuestDied(Death("hang", "x")), RuntimeError("a bug")])
def test_disks_of_a_guest_that_does_not_answer(error: Exception, tmp_path: Path) -> None:
    found = explain(tmp_path, DISK.read_text(), session=Session(error=error))
    assert bool(found.rows) == (not isinstance(error, RuntimeError))


def test_disks_of_a_dom0_that_does_not_answer(tmp_path: Path) -> None:
    found = disk_explainer.explain(guest(tmp_path, transport=Transport(error=TransportError("gone"))), REASON, Deadline(5), 1.0)
    assert found.rows == ()
    assert "not read: gone" in (tmp_path / "disks-fxh-guest.txt").read_text()
