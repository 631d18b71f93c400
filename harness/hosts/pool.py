# SPDX-License-Identifier: BSD-2-Clause
"""Several hosts used as one: each worker leases a share of any host with room. A lost host is avoided for a while, or recovered."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.config import addresses
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import AccessError, DeadlineExpired, InfrastructureError, TransportError, UsageError
from harness.hosts import connect, operator_mail, places, recovery, serial
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy, HostTooSmall, LeaseRequest
from harness.hosts.places import NoPlaceLeft, Places
from harness.hosts.power import Power, interrupted
from harness.hosts.record import set_aside
from harness.hosts.recovery import Recovery
from harness.hosts.serial import SerialLog
from harness.labgrid import tags

log = logging.getLogger("fxh.hosts")

LAB = "lab"
# Seconds for which a lost host is tried last.
_AVOID = 120.0
# Seconds between two attempts while all hosts are lost.
_PAUSE = 3.0
# Seconds that a lost host gets to come back: a reboot, or the restart of a switch.
_COME_BACK = 300.0
# Seconds between two requests for another place while one is brought back. Each starts a process.
_ASK_AGAIN = 30.0
# Seconds to get a lease, or the answer that the host is busy.
_ANSWER = 60.0


class LeftOff(TransportError):
    """The power cycle of a host was interrupted, so it may be off. Its recovery switches it on."""


def select_hosts(words: str, hosts: Mapping[str, HostConfig]) -> tuple[HostConfig, ...]:
    """The hosts that ``words`` selects, separated by commas: names, ``tag:TAG``, addresses, ``local``, ``lab``, ``labgrid:KEY=VALUE,...``.

    Raises UsageError for an unknown tag, an invalid address, and a ``labgrid:`` host if labgrid is not installed.
    """
    found: dict[str, HostConfig] = {}
    for word in tags.split(words):
        if word.startswith("tag:"):
            tagged = [host for host in hosts.values() if word[4:] in host.tags]
            if not tagged:
                known = sorted({tag for host in hosts.values() for tag in host.tags})
                raise UsageError(f"no host has {word}", hint=f"tags in fxh.toml: {', '.join(known) or 'none'}")
            found |= {host.name: host for host in tagged}
        elif word in hosts:
            found[word] = hosts[word]
        elif word == LAB:
            found[word] = HostConfig(LAB, name=LAB)
        else:
            if word != "local" and not tags.is_labgrid(word):
                addresses.ssh(word)
            found[word] = HostConfig(word, name=word if tags.is_labgrid(word) else "")
    for host in found.values():
        if tags.is_labgrid(host.address):
            tags.parse(host.address)
    return tuple(found.values())


def is_one(hosts: Sequence[HostConfig]) -> bool:
    """Whether every case of a pool runs on the same machine. The places of a labgrid are different ones."""
    return len(hosts) == 1 and not tags.is_labgrid(hosts[0].address)


def label(words: str) -> str:
    """The name of a pool in cells. It is the same for every host that serves a case."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", words.replace("tag:", "")).strip("-")


@dataclass
class HostPool:
    """One worker's view of the hosts. ``first`` is the index of the host that it tries first; it differs between workers."""

    hosts: Sequence[HostConfig]
    first: int = 0
    what: str = ""
    """The purpose of the leases, which ``fxh hosts`` shows."""
    connect: Callable[[HostConfig, str], DirectHost] = connect.host
    _lost: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Lost hosts by name: the time (monotonic, s) and the reason."""
    _lost_leases: dict[str, str] = field(default_factory=dict)
    """By host, the run whose lease was lost with it. The next lease there supersedes it."""
    power: Callable[[HostConfig], Power | None] = places.power_of
    report: Callable[[str, str], None] = operator_mail.report
    """Reports a host that is set aside, by its name and the reason."""
    _given_up: bool = False
    """No lost host came back in time. Later calls try each host once, without waiting."""
    _recoveries: dict[str, Recovery] = field(default_factory=dict)
    """The last recovery of each host."""
    _boots: dict[str, str] = field(default_factory=dict)
    """By host with power commands, the boot id when it was last used."""
    _serials: dict[str, SerialLog] = field(default_factory=dict)
    _places: Places = field(default_factory=Places)
    _ask_again: dict[str, float] = field(default_factory=dict)
    """By ``labgrid:`` host, when to try again to get a place that is not being brought back (monotonic s)."""

    def acquire(self, request: LeaseRequest, deadline: Deadline) -> DirectHost:
        """Lease a share of a host and check the host.

        Raises InfrastructureError if no host works, DeadlineExpired if all are full until the deadline.
        """
        order = [self.hosts[(self.first + n) % len(self.hosts)] for n in range(len(self.hosts))]
        single = len(order) == 1
        patience = Deadline(min(_COME_BACK, deadline.remaining))
        while True:
            coming_back = self._recovers()
            self._use_recovered_places()
            failures: dict[str, str] = {}
            left_off: list[str] = []
            busy: list[HostConfig] = []
            # Hosts that were lost recently come last.
            todo = sorted(order, key=lambda host: self._avoided(self._places.current(host).label))
            while todo:
                host = todo.pop(0)
                config = self._places.current(host)
                if self._avoided(config.label) and busy:
                    continue
                if set_aside(config.name) or places.is_lost(config):
                    config = self._vacate(config)
                if unusable := self._unusable(config):
                    failures[config.label] = unusable
                    continue
                parked = self._places.parked(host)
                failures |= {one.name: self._unusable(one) or "it came back just now" for one in parked}
                if parked and config is host and time.monotonic() < self._ask_again.get(host.label, 0.0):
                    continue
                try:
                    again = any(map(places.is_place, failures))
                    limit = deadline if single else Deadline(_ANSWER)
                    return self._take(host, request, limit, nowait=again or not single, failed=failures)
                except NoPlaceLeft as exc:
                    failures |= {name: str(aside) for name in exc.names if (aside := set_aside(name))}
                    self._ask_again[host.label] = time.monotonic() + _ASK_AGAIN
                except InfrastructureError as exc:
                    name = self._places.current(host).label
                    failures[name] = str(exc)
                    left_off += [name] if isinstance(exc, LeftOff) else []
                    if isinstance(exc, HostBusy):
                        # A place that was lost with a lease comes back sooner than another user releases one.
                        if parked:
                            self._ask_again[host.label] = time.monotonic() + _ASK_AGAIN
                        elif not (again and self._may_return(failures, patience)):
                            busy.append(host)
                    elif single and isinstance(exc, DeadlineExpired):
                        earlier = self._lost.get(name, (0.0, ""))[1]
                        raise DeadlineExpired(f"{exc.message}; it was lost earlier: {earlier}" if earlier else exc.message) from exc
                    elif isinstance(exc, HostTooSmall):
                        self._vacate(self._places.current(host))
                    else:
                        self.mark_lost(name, exc.message, hangs=self._may_hang(name, exc))
                    if name != self._places.current(host).label:
                        todo.insert(0, host)  # without this place
            if busy:
                # Queue on one host; workers queue on different ones.
                host = busy[self.first % len(busy)]
                log.info("none of %d hosts has room: waiting for %s", len(self.hosts), host.label)
                return self._take(host, request, deadline, nowait=False, failed=failures)
            # A parked place may have come back meanwhile.
            if coming_back or self._recovers() or self._places.parked():
                if deadline.expired:
                    raise deadline.expire("a host", "; ".join(failures.values()))
                time.sleep(_PAUSE)
                continue
            if any(not interrupted(name) for name in left_off):
                continue  # switched on already
            if not self._may_return(failures, patience):
                self._given_up = True
                reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
                raise InfrastructureError(f"no host works:\n{reasons}", hint="run fxh doctor HOST")
            time.sleep(_PAUSE)

    def _take(
        self, config: HostConfig, request: LeaseRequest, deadline: Deadline, *, nowait: bool, failed: Iterable[str]
    ) -> DirectHost:
        """Does not take the places ``failed``, or places that are set aside. Raises as :func:`harness.hosts.places.take`."""
        config = self._places.occupy(
            config,
            deadline,
            nowait=nowait,
            avoid=filter(self._avoided, self._lost),
            exclude={*places.places_set_aside(), *failed},
        )
        name = config.label
        if aside := set_aside(config.name):
            raise aside
        if (off := interrupted(config.name)) and self.power(config) is not None:
            raise LeftOff(f"{name}: {off}")
        self._read_serial(config)
        host = self.connect(config, self.what)
        host.serial = self._serials.get(name)
        try:
            if config.address != LAB:
                host.acquire(
                    LeaseRequest(
                        secrets.token_hex(3), request.memory, request.vcpus, request.disk, nowait=nowait, silence=request.silence,
                        supersede=self._lost_leases.get(name, ""),
                    ),
                    deadline,
                )  # fmt: skip
            self._examine(host, config)
        except BaseException:
            host.close()
            raise
        self._lost.pop(name, None)
        self._lost_leases.pop(name, None)
        self._given_up = False
        return host

    def _examine(self, host: DirectHost, config: HostConfig) -> None:
        """Check a host that was just leased. Raises InfrastructureError; TransportError if it may hang."""
        # Its preparation may have begun before we had the lease, which it then did not see.
        if aside := set_aside(config.name):
            raise aside
        try:
            host.check()
            if self.power(config) is not None:
                self._boots[config.label] = recovery.read_boot_id(host.transport)
        except DeadlineExpired as exc:  # not that of the lease: sshd answers, but xenstore or xl does not
            raise TransportError(exc.message, hint=exc.hint) from exc

    def mark_lost(self, name: str, why: str, run: str = "", *, hangs: bool = False) -> None:
        """Avoid a host for 120 s.

        ``run`` is the run whose lease was lost with it. ``hangs``: it does not answer, and is recovered meanwhile if it has power
        commands.
        """
        log.warning("host %s is lost: %s", name, why.splitlines()[0] if why else "")
        self._lost[name] = (time.monotonic(), why)
        if run:
            self._lost_leases[name] = run
        config = next((config for config in map(self._places.current, self.hosts) if config.label == name), None)
        if config is None or self._recovering(name):
            return
        power = self.power(config) if hangs and not places.is_lost(config) else None
        if power is None:
            self._vacate(config)
            return
        found = Recovery(
            config, power, lambda: self.connect(config, self.what).transport, why, self._boots.get(name, ""), self.report
        )
        self._recoveries[name] = found
        found.start()
        self._places.park(config)

    def close(self) -> None:
        """Stop reading serial consoles. A host whose power is being cycled is on again when this returns."""
        for recovery_ in self._recoveries.values():  # all, before the first wait
            recovery_.request_stop()
        for recovery_ in self._recoveries.values():
            recovery_.stop()
        for log_ in self._serials.values():
            log_.stop()
        self._serials.clear()
        self._places.close()

    def _vacate(self, config: HostConfig) -> HostConfig:
        """Release a labgrid place that does not work. Returns its ``labgrid:`` host; any other host as it is."""
        found = self._places.vacate(config)
        if found is not config and config.name in self._serials:
            self._serials.pop(config.name).stop()
        return found

    def own_place_is_back(self, present: HostConfig) -> bool:
        """Whether the worker should leave the host ``present``: it shares that place, and one for itself is back.

        Releases places that came back and are not needed.
        """
        back = [config for config in self._places.parked() if not self._recovering(config.name)]
        if places.may_be_left(present) and any(map(self._works, back)):
            return True
        for config in back:
            self._vacate(config)
        return False

    def _use_recovered_places(self) -> None:
        """End the parking of places whose recovery has ended: use or release them."""
        for config in self._places.parked():
            if self._recovering(config.name):
                continue
            other = self._places.instead(config)
            if self._works(config) and (other is config.source or places.may_be_left(other)):
                self._vacate(other)
                self._places.resume(config)
                self._lost.pop(config.name, None)
            else:
                self._vacate(config)

    def _works(self, config: HostConfig) -> bool:
        """Whether the recovery of a parked place succeeded, and the place is still acquired."""
        return self._recoveries[config.name].error is None and set_aside(config.name) is None and not places.is_lost(config)

    def _unusable(self, config: HostConfig) -> str:
        """Why a host cannot be used at present: it is set aside, or being brought back."""
        if aside := set_aside(config.name):
            return str(aside)
        return f"it hung and is being brought back: {self._recoveries[config.name].why}" if self._recovering(config.name) else ""

    def _may_return(self, failures: Iterable[str], patience: Deadline) -> bool:
        """Whether one of these hosts may come back: it was lost with a lease, and not long ago."""
        recent = not patience.expired and not self._given_up
        return recent and any(name in self._lost_leases and set_aside(name) is None for name in failures)

    def _may_hang(self, name: str, error: InfrastructureError) -> bool:
        """Whether ``error`` means that the host does not answer, and it has not just answered a recovery."""
        last = self._recoveries.get(name)
        return (
            isinstance(error, TransportError)
            and not isinstance(error, AccessError)
            and not (last is not None and last.answered + _AVOID > time.monotonic())
        )

    def _recovers(self) -> bool:
        return any(one.running for one in self._recoveries.values())

    def _recovering(self, name: str) -> bool:
        return name in self._recoveries and self._recoveries[name].running

    def _read_serial(self, config: HostConfig) -> None:
        """Start to read the serial console of a host, if it has one. Raises SerialError."""
        if config.name not in self._serials and (found := serial.of(config)):
            with places.blamed(config):
                found.start()
            self._serials[config.name] = found

    def _avoided(self, name: str) -> bool:
        since, _ = self._lost.get(name, (-_AVOID, ""))
        return time.monotonic() - since < _AVOID
