# SPDX-License-Identifier: BSD-2-Clause
"""Devices that are attached and detached again and again, without waiting for the guest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, GuestDied
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewScratch
from harness.xen.config import Disk, Vif

from .support import InBackground, channels

# Arguments: rounds, domid, verb, name of the device for the detach, options of the detach, words of the attach.
_STORM = """
rounds=$1 domid=$2 verb=$3 name=$4 options=$5; shift 5
for n in $(seq "$rounds"); do
    xl "$verb-attach" "$domid" "$@" || { echo "round $n: xl $verb-attach failed"; exit; }
    xl "$verb-detach" $options "$domid" "$name" || { echo "round $n: xl $verb-detach failed"; exit; }
done
echo "all rounds"
"""
# Seconds: of one round on a real host and under emulation, of all rounds at most, and until the guest has removed the last device.
ROUND, EMULATED_ROUND, ROUNDS, SETTLED = 5, 30, 1200, 20


def storm(guest: Guest, verb: str, name: str, words: list[str], *, rounds: int, options: str = "") -> str:
    """Attach and detach a device ``rounds`` times. Returns the last line of the script: "all rounds", or the failure with xl's words."""
    argv = ["sh", "-c", _STORM, "sh", str(rounds), str(guest.domid), verb, name, options, *words]
    seconds = min(ROUNDS, rounds * (EMULATED_ROUND if guest.host.facts.emulated else ROUND))
    done = guest.host.transport.run(argv, Deadline(seconds), check=False)
    last = (done.text.strip().splitlines() or ["no output"])[-1]
    said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
    return last if last == "all rounds" else f"{last}: {'; '.join(said)}"


def nodes(guest: Guest) -> dict[str, str]:
    """The state of each device of the guest in xenstore, by path: of both ends."""
    store = guest.host.xenstore
    found = store.tree(f"/local/domain/{guest.domid}/device") | {
        path: value
        for kind in ("vbd", "vif")
        for path, value in store.tree(f"/local/domain/0/backend/{kind}/{guest.domid}").items()
    }
    return {path: value for path, value in found.items() if path.endswith("/state")}


class Devices:
    """The devices of a guest, and what its kernel holds for them."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.run = InBackground(guest, 10)

    def names(self) -> tuple[str, ...]:
        """Disks and interfaces. Raises GuestDied (a hang) if the guest cannot list them."""
        ask = self.guest.os
        return *ask.disks(self.run), *sorted(interface.name for interface in ask.interfaces(self.run))

    def holdings(self) -> dict[str, int]:
        return {**self.guest.os.holdings(self.run), "event channels": channels(self.guest)}


def settle(devices: Devices, wanted: tuple[tuple[str, ...], Mapping[str, str]]) -> list[str]:
    """Wait until the guest has the devices and nodes ``wanted``; return what differs after the time."""

    def differences() -> list[str]:
        names, states = devices.names(), nodes(devices.guest)
        found = [f"the guest has {' '.join(names)} instead of {' '.join(wanted[0])}"] if names != wanted[0] else []
        return found + [f"{path} is {states.get(path, 'gone')}" for path in sorted(states.keys() ^ wanted[1].keys())]

    try:
        return after_time(devices.guest, differences)
    except GuestDied as exc:
        if exc.death.kind != "hang":
            raise
        return [f"the guest cannot list its devices: {exc}"]


def leaked(devices: Devices, before: Mapping[str, int], slack: int) -> tuple[dict[str, int], list[str]]:
    """Return the holdings of the guest, and those that stay more than ``slack`` above ``before``.

    A leak grows with each round, and other drivers may allocate a little. A guest that no longer shows a device may still handle events
    of it, so its holdings get the time to settle, too.
    """
    after: dict[str, int] = {}

    def grown() -> list[str]:
        after.update(devices.holdings())
        growth = {kind: (before.get(kind, 0), count) for kind, count in after.items()}
        return [f"{kind} grew from {first} to {last}" for kind, (first, last) in growth.items() if last - first > slack]

    return after, after_time(devices.guest, grown)


def after_time(guest: Guest, differences: Callable[[], list[str]]) -> list[str]:
    """Return the last ``differences``, once there are none or the guest's time to settle is over."""
    last: list[str] = []

    def poll() -> None:
        last[:] = differences()
        if last:
            raise ConditionNotMet("; ".join(last))

    with contextlib.suppress(DeadlineExpired):
        Deadline(SETTLED * guest.scale).wait("the guest to be as before", poll, 0.5)
    return last


def assert_survives(guest: Guest, case: CaseContext, verb: str, name: str, words: list[str], options: str = "") -> None:
    """Fail unless the guest has the same devices and holds no more for them after many rounds than after one."""
    rounds = 6 if guest.host.facts.emulated else 200
    devices = Devices(guest)
    wanted = (devices.names(), nodes(guest))
    # The first round allocates what stays: caches, modules, names.
    end = storm(guest, verb, name, words, rounds=1, options=options)
    wrong = settle(devices, wanted)
    before = {} if wrong else devices.holdings()
    if end == "all rounds" and not wrong:
        end = storm(guest, verb, name, words, rounds=rounds, options=options)
        wrong = settle(devices, wanted)
    if end != "all rounds":
        wrong.insert(0, end)
    if not wrong:
        after, wrong = leaked(devices, before, rounds // 2)
        case.metrics |= {kind: float(count) for kind, count in after.items()}
    case.metrics["rounds"] = float(rounds)
    assert not wrong, finding(
        test=f"xl {verb}-attach, then at once xl {verb}-detach{options and ' '}{options}: once, then {rounds} times",
        observed=wrong,
        expected="each command succeeds; the guest removes the device and everything that it holds for it",
        reference=f"{guest.os.source('xenbus')}; {guest.os.source('netfront' if verb == 'network' else 'blkfront')}",
    )


@pytest.mark.parametrize("force", [False, True], ids=["asked", "forced"])
def test_disk_storm(guest: Guest, scratch: NewScratch, force: bool, case: CaseContext) -> None:
    """A disk that is attached and at once detached, often, asked or by force, leaves nothing in the guest, in xenstore and in Xen.

    Kind of bug: the lifetime of a device: it goes while its driver still connects, so it stays or leaks.

    Source: sys/xen/xenbus/xenbusb.c; sys/dev/xen/blkfront/blkfront.c; Linux drivers/xen/xenbus; xen tools/libs/light/libxl_device.c
    Catches: a device that exists forever because its node was written after its removal (FreeBSD 13.2, xenbusb_write_ivar())
    """
    (disk,) = scratch("xvdf")
    assert_survives(guest, case, "block", "xvdf", [Disk(disk.target, "xvdf").render()], "--force" if force else "")


def test_interface_storm(guest: Guest, case: CaseContext) -> None:
    """An interface that is attached and at once detached, often, leaves nothing in the guest, in xenstore and in Xen.

    Kind of bug: the lifetime of a device: it goes while its driver still connects, so it stays or leaks.

    Source: sys/xen/xenbus/xenbusb.c; sys/dev/xen/netfront/netfront.c; Linux drivers/xen/xenbus; xen tools/libs/light/libxl_nic.c
    Catches: an interface that exists forever because its node was written after its removal (FreeBSD 13.2, xenbusb_write_ivar())
    """
    mac = guest.host.mac(guest.name, 7)
    words = Vif(guest.host.bridge, mac).render().split(",")
    assert_survives(guest, case, "network", mac, words)
