# SPDX-License-Identifier: BSD-2-Clause
"""The steps of a random walk, on a guest. suites/lifecycle/invariants.py judges the guest after each of them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence

from harness.console.complaints import Complaint
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import CommandFailed, GuestCommandFailed, GuestDied, HarnessError, LoggedOut
from harness.guests import hotplug, suspend
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB
from harness.oracles.walk import Bounds, Model, Step, Violation
from harness.plugin.fixtures import NewScratch
from harness.xen.config import Disk, Vif

from .invariants import Invariants
from .loads import DiskLoads, NetLoad

# Pauses the domain "$1" for "$2" seconds. One script, because each command over ssh takes a second under emulation.
_PAUSE = 'xl pause "$1" && sleep "$2"; xl unpause "$1"'
# Seconds until the console of a dead guest says so.
_DYING = 10
# Seconds: an interface comes or goes; then FreeBSD removes its device, and ignores one that comes back before
# (sys/xen/xenbus/xenbusb.c, xenbusb_add_device(): "already tracking this node").
_DEVICE, _REMOVED = 30, 0.5


def bounds(guest: Guest, link: Link, vcpus: int) -> Bounds:
    """The bounds of the steps for this guest."""
    ask = guest.os
    offloads = ask.offloads(guest.sh, link.interface)
    # Where offloads depend on each other, only TSO is switched: no other offload needs it.
    switched = tuple(sorted(offloads)) if ask.independent_offloads else ("tso",)
    whole = guest.config.memory
    return Bounds(
        low=-(-int(whole * ask.balloon_limits.low) // 4) * 4,
        whole=whole,
        pause=ask.longest_pause,
        offloads=switched,
        on=frozenset(name for name in switched if offloads[name]),
        mtu=next(one.mtu for one in ask.interfaces(guest.sh) if one.name == link.interface),
        vcpus=vcpus,
        without=ask.fatal_events(guest.config.type),
    )


def _violation(error: GuestDied | LoggedOut | GuestCommandFailed) -> Violation:
    """What an error of the guest says about it. All other errors, also those of commands in dom0, say nothing."""
    lines = tuple(error.message.splitlines()[:6])
    if isinstance(error, GuestCommandFailed):
        return Violation("the step succeeds", lines)
    if isinstance(error, LoggedOut):
        return Violation("the guest answers", lines)
    return Violation("the guest answers" if error.death.kind == "hang" else "the guest lives", lines, error)


class Late(Exception):
    """There is no time for the next step."""


class Walker:
    """One walk of one guest, which has just been booted and has an address."""

    def __init__(self, guest: Guest, scratch: NewScratch, vcpus: int, expected: Callable[[Complaint], bool]) -> None:
        """``expected`` says whether a complaint is a known issue."""
        self.guest = guest
        self.link = Link(guest, interface=guest.prepared["interface"])
        self.bounds = bounds(guest, self.link, vcpus)
        self.model = Model.start(self.bounds)
        self.disks = dict(zip(self.bounds.disks, scratch(*self.bounds.disks), strict=True))
        self.vifs = {name: Vif(guest.host.bridge, guest.host.mac(guest.name, 7 + n)) for n, name in enumerate(self.bounds.vifs)}
        self.disk_loads = DiskLoads(guest)
        self.net_load = NetLoad(guest)
        self._invariants = Invariants(
            guest,
            self.link,
            {name: disk.digest for name, disk in self.disks.items()},
            self.vifs,
            self.disk_loads,
            self.net_load,
            expected,
        )

    def close(self) -> None:
        """End what runs in dom0. May be called again."""
        with contextlib.suppress(HarnessError):
            self.net_load.stop()

    def take(self, step: Step) -> Violation | None:
        """Do one step and check the invariants. Returns the first violation. Raises the errors of dom0."""
        before, self.model = self.model, self.model.after(step)
        return self._judged(lambda: self._stepped(before, step))

    def finish(self) -> Violation | None:
        """Wait for the loads, and check them. Returns and raises as :meth:`take`."""
        return self._judged(self._finished)

    def _judged(self, act: Callable[[], Violation | None]) -> Violation | None:
        try:
            return act()
        except (GuestDied, LoggedOut, GuestCommandFailed) as exc:
            return _violation(exc)
        except CommandFailed:
            # A command of dom0 about a dead domain fails, too, and perhaps before the console says that the domain is dead.
            end = time.monotonic() + _DYING
            while (death := self.guest.console.death) is None and time.monotonic() < end:
                time.sleep(0.2)
            if death is None:
                raise
            return _violation(GuestDied(death))

    def _stepped(self, before: Model, step: Step) -> Violation | None:
        if step.event == "save and restore" and self.guest.os.suspension_breaks_poll:
            self._end_stream(down=bool(before.down))
        self._do(step)
        return self._invariants.violated(self.model, before, step)

    def _finished(self) -> Violation | None:
        self._end_stream(down=bool(self.model.down))
        return self._invariants.finished()

    def _end_stream(self, *, down: bool) -> None:
        """Wait for the end of the stream, which needs the vif: bring it up if it is ``down``."""
        if down and self.net_load.running:
            self._do(Step("vif up"))
        self.net_load.wait()

    def follow(self, steps: Sequence[Step], until: float = math.inf) -> tuple[int, Violation | None]:
        """Do ``steps``. Returns after how many of them an invariant did not hold, and which; (0, None) if all held.

        Raises Late before a step that would begin after ``until`` (monotonic s).
        """
        for count, step in enumerate(steps, 1):
            if time.monotonic() >= until:
                raise Late
            if violation := self.take(step):
                return count, violation
        violation = self.finish()
        return (len(steps), violation) if violation else (0, None)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        doing: Mapping[str, Callable[[str | int], object]] = {
            "attach": lambda name: self._attach(str(name)),
            "detach": lambda name: self._detach(str(name)),
            "save and restore": lambda _: self._save(),
            "pause": lambda seconds: self._dom0("sh", "-c", _PAUSE, "sh", str(self.guest.domid), str(seconds)),
            "balloon": lambda mib: self._balloon(int(mib)),
            "vif down": lambda _: self._dom0("ip", "link", "set", self.link.vif, "down"),
            "vif up": lambda _: self._dom0("ip", "link", "set", self.link.vif, "up"),
            "offload": lambda words: self._offload(*str(words).split()),
            "mtu": lambda mtu: self.guest.os.set_mtu(self.guest.sh, self.link.interface, int(mtu)),
            "disk load": lambda name: self.disk_loads.start(str(name)),
            "net load": lambda way: self.net_load.start(self.link, str(way)),
            "vcpus": lambda count: self.guest.host.toolstack.vcpu_set(self.guest.domid, int(count)),
        }
        doing[step.event](step.value)

    def _dom0(self, *argv: str) -> None:
        self.guest.host.transport.run(list(argv), Deadline(60))

    def _attach(self, name: str) -> None:
        if name in self.disks:
            hotplug.disk(self.guest, Disk(self.disks[name].target, name))
            return
        self.guest.host.toolstack.network_attach(self.guest.domid, self.vifs[name])
        self._wait_interface(name, there=True)

    def _detach(self, name: str) -> None:
        if name in self.disks:
            # A disk in use stays until its last user closes it (root_mount/test_detach_in_use).
            self.disk_loads.wait(name)
            hotplug.let_go(self.guest, name)
            hotplug.wait_disks(self.guest, set(), {self.guest.os.disk_name(name)})
            return
        hotplug.let_go_interface(self.guest, 1 + list(self.vifs).index(name))
        self._wait_interface(name, there=False)
        time.sleep(_REMOVED)

    def _wait_interface(self, name: str, *, there: bool) -> None:
        mac = self.vifs[name].mac

        def poll() -> None:
            if any(one.mac == mac for one in self.guest.os.interfaces(self.guest.sh)) != there:
                raise ConditionNotMet(f"the guest {'has no' if there else 'still has the'} interface {mac}")

        self.guest.deadline(_DEVICE).wait(f"the interface {mac} to {'come' if there else 'go'}", poll, 0.3)

    def _save(self) -> None:
        suspend.through_a_file(self.guest)
        self.link = self._invariants.link = Link(self.guest, interface=self.link.interface)

    def _balloon(self, mib: int) -> None:
        memory = Memory(self.guest)
        memory.ask(mib)
        memory.settle(int(self.guest.prepared["balloon"]) - (self.bounds.whole - mib) * MIB)

    def _offload(self, name: str, wanted: str) -> None:
        # FreeBSD waits up to 30 s for its interface, which it resets for `rx` and `lro`.
        self.guest.run(self.guest.os.offload_command(self.link.interface, name, wanted == "on"), 90)
