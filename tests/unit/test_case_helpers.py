# SPDX-License-Identifier: BSD-2-Clause
"""Helpers of cases: commands that hang, a timer's judge, channels that a log lost, captures that fail, VLANs of two runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.console.deaths import Death
from harness.errors import CommandFailed, GuestDied, InfrastructureError
from harness.guests import capture
from harness.guests.link import Link
from harness.guests.os.linux import Linux
from harness.guests.vlan import VlanLink
from harness.transport import Completed
from harness.xen import events
from suites.boot import test_timers
from suites.lifecycle import support, test_capabilities, test_storm


class Shell:
    """A guest whose shell answers, and in which no command in the background ends."""

    scale = 0.0

    def sh(self, command: str, seconds: float = 60) -> str:
        return ""

    def run(self, command: str, seconds: float = 60, *, check: bool = True) -> Any:
        return SimpleNamespace(text="", status=1)

    def hang(self, message: str) -> GuestDied:
        return GuestDied(Death("hang", message))


# -- lifecycle --------------------------------------------------------------------------------------------------------


def test_a_command_that_never_ends_is_a_hang_of_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.lifecycle.support.time.sleep", lambda seconds: None)
    with pytest.raises(GuestDied, match="`vmstat` does not end") as caught:
        support.InBackground(Shell(), 10)("vmstat")  # type: ignore[arg-type]
    assert caught.value.death.kind == "hang"


@pytest.mark.parametrize(("kind", "reported"), [("hang", True), ("panic", False)])
def test_only_a_hang_is_a_list_that_the_guest_cannot_give(kind: Any, reported: bool) -> None:
    def names() -> tuple[str, ...]:
        raise GuestDied(Death(kind, "no answer"))

    devices: Any = SimpleNamespace(names=names, guest=Shell())
    if reported:
        assert test_storm.settle(devices, ((), {})) == ["the guest cannot list its devices: hang: no answer"]
    else:
        with pytest.raises(GuestDied):
            test_storm.settle(devices, ((), {}))


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [([1066, 1051], []), ([1066], ["allocations grew from 1051 to 1066"]), ([1054], [])],
    ids=["of an event that is handled later", "of a leak", "of another driver"],
)
def test_only_what_stays_is_a_leak(monkeypatch: pytest.MonkeyPatch, counts: list[int], complaint: list[str]) -> None:
    monkeypatch.setattr(test_storm, "SETTLED", 2)
    seen = [*counts]
    holdings = lambda: {"allocations": seen.pop(0) if len(seen) > 1 else seen[0]}  # noqa: E731
    devices: Any = SimpleNamespace(holdings=holdings, guest=SimpleNamespace(scale=1.0))
    assert test_storm.leaked(devices, {"allocations": 1051}, 3) == ({"allocations": counts[-1]}, complaint)


def test_no_event_channels_are_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = SimpleNamespace(domain=3)
    monkeypatch.setattr("harness.xen.events.dump", lambda transport: (channel, channel))
    host = SimpleNamespace(transport=None)
    assert test_storm.channels(SimpleNamespace(domid=3, host=host)) == 2  # type: ignore[arg-type]
    with pytest.raises(InfrastructureError, match="no event channels of domain 4") as caught:
        test_storm.channels(SimpleNamespace(domid=4, host=host))  # type: ignore[arg-type]
    assert "conring_size" in caught.value.hint


def test_a_node_that_is_missing_after_a_restore_is_a_failure() -> None:
    found: dict[str, str | None] = dict.fromkeys(test_capabilities.FEATURES, "1")
    store = SimpleNamespace(read=lambda path: found[path.rpartition("/")[2]])
    guest: Any = SimpleNamespace(domid=3, host=SimpleNamespace(xenstore=store))
    test_capabilities.require_nodes(guest)
    test_capabilities.assert_stated(guest, "a restore")
    found["feature-suspend"] = None
    with pytest.raises(AssertionError, match="control/feature-suspend is missing"):
        test_capabilities.assert_stated(guest, "a restore")
    with pytest.raises(pytest.skip.Exception, match="needs a toolstack"):
        test_capabilities.require_nodes(guest)


# -- timers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sleeps", "empty", "right"),
    [
        ([3.1], 0.1, True), ([4.3], 1.2, True), ([9.0, 3.1], 0.1, True), ([9.0, 9.0], 0.1, False), ([2.5], 0.1, False),
        ([9.0, 2.5], 0.1, False),
    ],
    ids=["in-time", "slow-console", "slow-once", "slow", "fast", "slow-then-fast"],
)  # fmt: skip
def test_the_time_of_a_command_is_not_the_timers(sleeps: list[float], empty: float, right: bool) -> None:
    left = list(sleeps)
    assert test_timers.judge(lambda seconds: left.pop(0) if seconds else empty, 0.02) == (sleeps[-1], right)
    assert not left


# -- captures ---------------------------------------------------------------------------------------------------------


class Dom0:
    """A dom0 whose tcpdump prints ``said``. A command that has a word of ``broken`` fails."""

    def __init__(self, said: bytes, *broken: str) -> None:
        self.said, self.broken, self.done = said, broken, list[str]()

    def open(self, argv: Sequence[str]) -> Dom0:
        return self

    def read(self, size: int, timeout: float | None = None) -> bytes:
        found, self.said = self.said, b""
        return found

    def close(self) -> None:
        self.done.append("close")

    def get(self, remote: str, target: Path) -> None:
        self.done.append("get")

    def run(self, argv: Sequence[str], *rest: object, check: bool = True) -> Completed:
        name = "stop" if argv[0] == "sh" else argv[0]
        if name == "kill":
            self.said += b"1 packet captured, 1 packet received by filter, 0 packets dropped by kernel\n"
        self.done.append(name)
        if name in self.broken:
            raise CommandFailed(name, 1, "", "")
        return Completed(tuple(argv), 0, b"", b"")

    def capture(self, target: Path) -> None:
        with capture.to_file(SimpleNamespace(transport=self), "vif1.0", target, "arp"):  # type: ignore[arg-type]
            self.done.append("body")


BEGUN = b"41\ntcpdump: listening on vif1.0\n"


def test_a_capture_removes_its_file(tmp_path: Path) -> None:
    dom0 = Dom0(BEGUN)
    dom0.capture(tmp_path / "a.pcap")
    assert dom0.done == ["kill", "body", "kill", "stop", "get", "rm", "close"]


@pytest.mark.parametrize(
    ("said", "broken", "done"),
    [
        (b"", "", ["rm", "close"]),
        (b"41\ntcpdump: no such device\n", "", ["stop", "rm", "close"]),
        (BEGUN, "stop", ["kill", "body", "kill", "stop", "get", "rm", "close"]),
        (BEGUN, "kill", ["kill", "stop", "get", "rm", "close"]),
    ],
    ids=["no-tcpdump", "not-listening", "does-not-stop", "no-signal"],
)
def test_a_capture_that_fails_leaves_nothing(said: bytes, broken: str, done: list[str], tmp_path: Path) -> None:
    dom0 = Dom0(said, broken)
    with pytest.raises(InfrastructureError):
        dom0.capture(tmp_path / "a.pcap")
    assert dom0.done == done


# -- a guest that does not reach dom0 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("given_up", [True, False])
def test_a_vif_that_netback_gave_up_is_no_defect_of_dom0(given_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Netback masks the channels of a guest that breaks the protocol: the guest gets the verdict, not dom0."""

    class GivesUp:
        def run(self, argv: Sequence[str], *rest: object, check: bool = True) -> Completed:
            asks = "fatal error; disabling device" in argv[2] and argv[-1] == "vif7.0"
            return Completed(tuple(argv), 0 if asks and given_up else 1, b"", b"")

    link = plain(0, transport=GivesUp())  # type: ignore[arg-type]
    guest: Any = link.guest
    guest.directory, guest.run = tmp_path, lambda *_, check: SimpleNamespace(text="no answer")
    monkeypatch.setattr(link, "_explain", lambda: None)
    monkeypatch.setattr(events, "deaf", lambda *_: (events.Channel(0, 32, True, True, 7, 12),))
    if given_up:
        assert not link.wait_up()
        assert (tmp_path / "g.eth0.txt").read_text() == "no answer"
    else:
        with pytest.raises(InfrastructureError, match="its event channel 32 is pending and masked"):
            link.wait_up()


# -- VLANs ------------------------------------------------------------------------------------------------------------


class Bridge:
    """A dom0 that records its commands; creating a link fails with ``error``, if any."""

    def __init__(self, error: str = "") -> None:
        self.error, self.commands = error, list[str]()

    def run(self, argv: Sequence[str], *rest: object, check: bool = True) -> Completed:
        if "add" in argv and "link" in argv and self.error:
            raise CommandFailed(" ".join(argv), 2, "", self.error)
        self.commands.append(" ".join(argv))
        return Completed(tuple(argv), 0, b"", b"")


def plain(slot: int, index: int = 0, transport: Bridge | None = None, guest_os: object = None) -> Link:
    guest: Any = SimpleNamespace(
        name="g", domid=7, explainers=[], os=guest_os or Linux(), sh=lambda command: "",
        config=SimpleNamespace(vifs=[SimpleNamespace(mac="00:16:3e:00:00:01", bridge="xenbr0")] * 2),
        host=SimpleNamespace(bridge="xenbr0", transport=transport, slot=slot),
    )  # fmt: skip
    return Link(guest, index, interface="eth0")


def vlan(slot: int, transport: Bridge | None = None, guest_os: object = None) -> VlanLink:
    return VlanLink(plain(slot, 0, transport, guest_os))


def test_runs_that_share_a_bridge_have_different_addresses() -> None:
    """Two guests with one address on a bridge lose each other's frames, and the end of one run took dom0's address from the other."""
    slots = range(49)
    nets = [plain(slot, index).net for slot in slots for index in (0, 1)]
    assert (nets[:2], len(set(nets))) == ([77, 78], len(nets))
    assert not set(nets) & {vlan(slot).net for slot in range(256)}
    assert plain(255, 1).net < 256


def test_runs_that_share_a_bridge_have_different_vlans() -> None:
    found = [vlan(slot) for slot in range(150)]
    key: Callable[[VlanLink], tuple[object, ...]]
    for key in (lambda v: (v.tag,), lambda v: (v.device,), lambda v: (v.here,), lambda v: (v.there,)):
        assert len({key(made) for made in found}) == len(found)
    last = vlan(255)
    assert last.tag < 4095
    assert len(last.device) < 16, "IFNAMSIZ"
    assert all(int(number) < 256 for made in [*found, last] for number in made.here.split("."))


def test_a_vlan_removes_only_its_own_device() -> None:
    class Profile(Linux):
        def vlan_command(self, interface: str, tag: int) -> str:
            return ""

        def interfaces(self, run: object) -> tuple[()]:
            return ()

        def address(self, *words: object) -> None:
            pass

    dom0 = Bridge("Error: Unknown device type.")
    made = vlan(3, dom0, Profile())
    with pytest.raises(Exception, match="8021q"):
        made.up()
    made.down()
    assert dom0.commands == []
    dom0.error = ""
    made.up()
    made.down()
    assert dom0.commands[-1] == "ip link del fxhvlan8"
