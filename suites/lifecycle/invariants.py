# SPDX-License-Identifier: BSD-2-Clause
"""The invariants of a random walk: they hold after each step, in the guest, in xenstore, in Xen and in dom0."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from harness.console.clean import cleaned
from harness.console.complaints import DOM0, GUEST, XEN, Complaint, complaints
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired
from harness.guests import hotplug
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.guests.together import together
from harness.hosts import logs
from harness.hosts.logs import LogMark
from harness.oracles.ballooning import MIB, SLACK
from harness.oracles.walk import Ledger, Model, Step, Violation, of_domains, unequal
from harness.xen import vdev
from harness.xen.config import Vif

from .loads import DATA, SIZE, DiskLoads, NetLoad, digests
from .look import Look, look
from .support import channels

# Seconds until both ends agree; for an answer of dom0; by which two clocks that are read in whole seconds may differ more than before.
_SETTLED, _ANSWER, _CLOCK = 20, 20, 4.0
_CONNECTED = "4"
# Bytes of the console that are searched for complaints after a step, from the end.
_CONSOLE = 1 << 20
# Events after which the guest has other devices.
_HOLDING = ("attach", "detach", "save and restore")
# Events that set the counters of an end back, or that lose packets.
_RECOUNTED = ("save and restore", "vif down", "vif up", "offload")


@dataclass(frozen=True)
class Answers:
    """The answers of the guest."""

    disks: frozenset[str]
    macs: frozenset[str]
    mtu: int
    balloon: int
    offloads: Mapping[str, bool]
    cpus: int
    clock: int
    digest: str
    counts: Mapping[str, int]


class Invariants:
    """Judges one guest of a walk."""

    def __init__(
        self,
        guest: Guest,
        link: Link,
        content: dict[str, str],
        vifs: Mapping[str, Vif],
        disks: DiskLoads,
        net: NetLoad,
        expected: Callable[[Complaint], bool],
    ) -> None:
        """``content`` is the digest of the first MiB of each disk by vdev, ``vifs`` the interfaces by their names in the walk.

        ``expected`` says whether a complaint is a known issue.
        """
        self.guest, self.link = guest, link
        self._content, self._disks, self._net = content, disks, net
        self._vifs = {name: (number, vif) for number, (name, vif) in enumerate(vifs.items(), 1)}
        guest.sh(f"dd if=/dev/urandom of={DATA} bs=64k count={SIZE >> 16} 2>/dev/null")
        self._domid, self._domids, self._expected = guest.domid, {guest.domid}, expected
        self._first, self._own, self._clock = self._both()
        self._console, self._last = guest.console.offset, self._first
        self._counted: tuple[Mapping[str, int], Mapping[str, int]] | None = None
        self._cpus = self._own.cpus
        self._ledger = Ledger(guest.os.kept_per_restore)

    def violated(self, model: Model, before: Model, step: Step) -> Violation | None:
        """The first invariant that does not hold after ``step``, which led from ``before`` to ``model``."""
        self._ledger.take(step.event)
        if step.event in _RECOUNTED or model.down:
            self._counted = None
        for name, lines in self._checks(model, before, step):
            if lines:
                return Violation(name, tuple(lines[:12]))
        return None

    def finished(self) -> Violation | None:
        """The first invariant that does not hold once all loads have ended."""
        self._net.wait()
        self._disks.wait()
        lines = [*self._net.wrong, *self._disks.wrong]
        return Violation("the loads arrive as they were sent", tuple(lines)) if lines else None

    def _checks(self, model: Model, before: Model, step: Step) -> Iterator[tuple[str, list[str]]]:
        quiet = not self._net.running and not model.down
        seen, said, clock = self._both()
        # Each check may ask again, and the next one judges the last answers.
        lines, seen, said = self._settle(seen, said, lambda *now: self._devices(model, *now))
        yield "both ends have the devices of the walk, connected", lines
        lines, seen, said = self._settle(seen, said, lambda *now: self._leaks(model, now[0]))
        yield "nothing is left in dom0", lines
        yield "no kernel and no hypervisor complains", self._complaints(seen)
        lines, seen, said = self._settle(seen, said, lambda *now: self._balloon(model, *now))
        yield "the balloon is at its target, for the guest and for Xen", lines
        yield "the guest's clock goes like dom0's", self._time(clock)
        lines, seen, said = self._settle(seen, said, lambda *now: self._settings(model, now[1]))
        yield "the interface keeps its settings", lines
        lines, seen, said = self._settle(seen, said, lambda *now: self._cpu_count(model, before, now[1].cpus))
        self._cpus = said.cpus
        yield "the guest has the CPUs of the walk, or as many as before", lines
        yield "files and disks keep their content", self._files(model, said)
        self._net.poll()
        yield "the loads arrive as they were sent", [*self._net.wrong, *self._disks.wrong]
        yield "both ends count the same packets, and no errors", self._counters(seen, said) if quiet else []
        yield "dom0 and the guest reach each other", self._network(model)
        if step.event in _HOLDING:
            yield "guest and Xen hold no more for the same devices", self._holdings(model)

    # -- looking --------------------------------------------------------------------------------------------------------

    def _ask(self) -> Answers:
        ask, name = self.guest.os, self.link.interface
        disks, interfaces, balloon, offloads, cpus, clock, digest, counts = together(
            self.guest,
            ask.disks,
            ask.interfaces,
            ask.balloon,
            lambda run: ask.offloads(run, name),
            ask.cpus,
            lambda run: int(run("date +%s")),
            lambda run: " ".join(digests(run(f"fxh_digest < {DATA}"))),
            lambda run: ask.parse_counters(run(f"{ask.network_counters(name)}; true"), name),
        )
        mtu = next((one.mtu for one in interfaces if one.name == name), 0)
        macs = frozenset(one.mac for one in interfaces)
        return Answers(frozenset(disks), macs, mtu, balloon.current, offloads, cpus, clock, digest, counts)

    def _both(self) -> tuple[Look, Answers, tuple[float, float]]:
        """dom0 and the guest; the guest's clock minus dom0's, and by how much that may be wrong (s): a busy machine takes its time."""
        begun = time.monotonic()
        seen = self._look()
        between = time.monotonic()
        said = self._ask()
        here, there = between - begun, time.monotonic() - between
        # Each clock was read at some time of its question.
        return seen, said, (said.clock - seen.clock - (here + there) / 2, (here + there) / 2)

    def _look(self) -> Look:
        return look(self.guest, self.link.vif)

    def _settle(self, seen: Look, said: Answers, wrong: Callable[[Look, Answers], list[str]]) -> tuple[list[str], Look, Answers]:
        """The lines that ``wrong`` returns now and still 20 s later, and the last answers, which it has judged."""
        if not (lines := wrong(seen, said)):
            return [], seen, said

        def poll() -> None:
            nonlocal lines, seen, said
            seen, said = self._look(), self._ask()
            lines = wrong(seen, said)
            if lines:
                raise ConditionNotMet("; ".join(lines))

        with contextlib.suppress(DeadlineExpired):
            Deadline(_SETTLED * self.guest.scale).wait("guest and dom0 to agree", poll, 0.5)
        return lines, seen, said

    # -- dom0 and Xen ---------------------------------------------------------------------------------------------------

    def _plugged(self, model: Model) -> tuple[list[str], list[str]]:
        """The disks and interfaces that the walk attached."""
        return sorted(model.attached & self._content.keys()), sorted(model.attached & self._vifs.keys())

    def _devices(self, model: Model, seen: Look, said: Answers) -> list[str]:
        ask, (disks, vifs) = self.guest.os, self._plugged(model)
        numbers = [f"vbd {vdev.number(name)}" for name in disks] + [f"vif {self._vifs[name][0]}" for name in vifs]
        states = {**self._first.states, **{f"{end} {number}": _CONNECTED for end in ("front", "back") for number in numbers}}
        lines = [
            f"xenstore: {name} is {seen.states.get(name, 'gone')} instead of {states.get(name, 'gone')}"
            for name in sorted(states.keys() | seen.states.keys())
            if states.get(name) != seen.states.get(name)
        ]
        wanted = (
            ("disks", self._own.disks | {ask.disk_name(name) for name in disks}, said.disks),
            ("interfaces", self._own.macs | {self._vifs[name][1].mac for name in vifs}, said.macs),
        )
        lines += [
            f"the guest has the {kind} {' '.join(sorted(there))} instead of {' '.join(sorted(right))}"
            for kind, right, there in wanted
            if there != right
        ]
        return lines

    def _leaks(self, model: Model, seen: Look) -> list[str]:
        leaks = [str(item) for item in seen.inventory.leaks_since(self._first.inventory)]
        disks, vifs = self._plugged(model)
        wanted = anonymous(self._first, self._domid) | {f"/local/domain/0/backend/vbd/N/{vdev.number(name)}" for name in disks}
        for name in vifs:
            number = self._vifs[name][0]
            wanted |= {f"/local/domain/0/backend/vif/N/{number}", f"vifN.{number}"}
        return leaks + [
            f"{name} of a device that the guest does not have" for name in sorted(anonymous(seen, self.guest.domid) - wanted)
        ]

    def _complaints(self, seen: Look) -> list[str]:
        """New complaints that are no known issues. On a shared host, lines about other domains do not count."""
        self._domids.add(self.guest.domid)
        end, last, log = self.guest.console.offset, self._last, seen.inventory
        begin = max(self._console, end - _CONSOLE)
        texts = (
            (cleaned(self.guest.console.since(begin, end - begin)).decode(errors="replace"), GUEST),
            (self._own_lines(logs.dom0_since(log.log, log.uptime, log.uptime - last.inventory.uptime)), DOM0),
            (self._own_lines(logs.xen_since(seen.xen, LogMark.of(last.begun, last.xen))), XEN),
        )
        self._console, self._last = end, seen
        return [f"{source}: {one.message}" for text, source in texts for one in complaints(text, source) if not self._expected(one)]

    def _own_lines(self, log: str) -> str:
        return log if self.guest.host.checkpoints is not None else of_domains(log, self._domids)

    def _holdings(self, model: Model) -> list[str]:
        held = {**self.guest.os.holdings(self.guest.sh), "event channels": channels(self.guest)}
        return list(self._ledger.grown((model.attached, self._cpus), held))

    # -- the guest ------------------------------------------------------------------------------------------------------

    def _settings(self, model: Model, said: Answers) -> list[str]:
        lines = [
            f"the offload {offload} is {'on' if said.offloads.get(offload) else 'off'}"
            for offload in model.bounds.offloads
            if said.offloads.get(offload) != (offload in model.on)
        ]
        return [*lines, *([f"the MTU is {said.mtu} instead of {model.mtu}"] if said.mtu != model.mtu else [])]

    def _cpu_count(self, model: Model, before: Model, running: int) -> list[str]:
        # A guest may ignore the request (lifecycle/test_vcpu_set.py), or obey it a moment later.
        allowed = {self._cpus, model.vcpus, before.vcpus}
        return [] if running in allowed else [f"{running} CPUs run instead of {' or '.join(map(str, sorted(allowed)))}"]

    def _balloon(self, model: Model, seen: Look, said: Answers) -> list[str]:
        taken, lines = (model.bounds.whole - model.balloon) * MIB, []
        if abs(self._own.balloon - taken - said.balloon) > SLACK:
            lines.append(f"the balloon is at {said.balloon / MIB:.1f} MiB instead of {(self._own.balloon - taken) / MIB:.1f} MiB")
        given = self._first.memory - seen.memory
        if abs(given - taken) > SLACK:
            lines.append(
                f"since the start Xen's count of the domain's memory fell by {given / MIB:.1f} MiB instead of {taken / MIB:.1f} MiB"
            )
        return lines

    def _time(self, clock: tuple[float, float]) -> list[str]:
        jump, doubt = clock[0] - self._clock[0], clock[1] + self._clock[1]
        return [f"the guest's clock jumped by {jump:+.1f} s, compared with dom0's"] if abs(jump) > _CLOCK + doubt else []

    def _files(self, model: Model, said: Answers) -> list[str]:
        lines = []
        if said.digest != self._own.digest:
            lines.append(f"the file {DATA} has the digest {said.digest} instead of {self._own.digest}")
        self._disks.poll()
        self._content |= {name: digest for name, digest in self._disks.written.items() if name in self._content}
        names = {self.guest.os.disk_name(name): name for name in self._plugged(model)[0] if name not in self._disks.running}
        if not names:
            return lines
        self.guest.sh(self.guest.os.uncached_command)
        found = hotplug.digests(self.guest.sh, sorted(names))
        return lines + [
            f"the disk {name} has the digest {found.get(shown, 'of nothing')} instead of {self._content[name]}"
            for shown, name in sorted(names.items())
            if found.get(shown) != self._content[name]
        ]

    # -- the network ----------------------------------------------------------------------------------------------------

    def _network(self, model: Model) -> list[str]:
        if model.down or self.link.wait_up(_ANSWER):
            return []
        return [f"the guest does not reach dom0 over {self.link.vif} within {_ANSWER} s"]

    def _counters(self, seen: Look, said: Answers) -> list[str]:
        """Compare what both ends counted since the last event that set them back. They are read one after the other, so no stream
        may run meanwhile."""
        now = said.counts, seen.vif
        first, self._counted = self._counted, self._counted or now
        return list(unequal(first, now)) if first is not None else []


def anonymous(seen: Look, domid: int) -> set[str]:
    """The vifs and xenstore directories of a domain's devices in dom0, with N for its number.

    The directory of all its devices of a kind stays when the last one goes, so it does not count.
    """
    own = re.compile(rf"(?<=/){domid}(?=/|$)|(?<=^vif){domid}(?=\.)|(?<=^xnb){domid}(?=\.)|(?<=^tap){domid}(?=\.)")
    found = {own.sub("N", item.name) for item in seen.inventory.items if item.owner == domid and item.kind != "process"}
    return {name for name in found if not name.endswith("/N")}
