# SPDX-License-Identifier: BSD-2-Clause
"""Several hosts used as one: each worker leases a share of any host with room. A lost host is avoided for a while."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfrastructureError, UsageError
from harness.hosts import connect, places
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy, HostTooSmall, LeaseRequest
from harness.hosts.places import name_of
from harness.labgrid import tags

log = logging.getLogger("fxh.hosts")

LAB = "lab"
# Seconds for which a lost host is tried last.
_AVOID = 120.0
# Seconds between two attempts while all hosts are lost.
_PAUSE = 3.0
# Seconds that a lost host gets to come back: a reboot, or the restart of a switch.
_COME_BACK = 300.0
# Seconds to get a lease, or the answer that the host is busy.
_ANSWER = 60.0


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
                from harness.hosts import sshconfig

                sshconfig.parse(word)
            found[word] = HostConfig(word)
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
    """Lost hosts and labgrid places by name: the time (monotonic, s) and the reason."""
    _lost_leases: dict[str, str] = field(default_factory=dict)
    """By host, the run whose lease was lost with it. The next lease there supersedes it."""
    _given_up: bool = False
    """No lost host came back in time. Later calls try each host once, without waiting."""

    def acquire(self, request: LeaseRequest, deadline: Deadline) -> DirectHost:
        """Lease a share of a host and check the host.

        Raises InfrastructureError if no host works, DeadlineExpired if all are full until the deadline.
        """
        order = [self.hosts[(self.first + n) % len(self.hosts)] for n in range(len(self.hosts))]
        single = len(order) == 1
        patience = Deadline(min(_COME_BACK, deadline.remaining))
        while True:
            failures: dict[str, InfrastructureError] = {}
            busy: list[HostConfig] = []
            # Hosts that were lost recently come last.
            for config in sorted(order, key=lambda config: self._avoided(name_of(config))):
                if self._avoided(name_of(config)) and busy:
                    continue
                try:
                    return self._take(config, request, deadline if single else Deadline(_ANSWER), nowait=not single)
                except HostBusy as exc:
                    busy.append(config)
                    failures[name_of(config)] = exc
                except HostTooSmall as exc:
                    failures[name_of(config)] = exc
                except InfrastructureError as exc:
                    if single and isinstance(exc, DeadlineExpired):
                        earlier = self._lost.get(name_of(config), (0.0, ""))[1]
                        raise DeadlineExpired(f"{exc.message}; it was lost earlier: {earlier}" if earlier else exc.message) from exc
                    failures[name_of(config)] = exc
                    self.mark_lost(name_of(config), exc.message)
            if busy:
                # Queue on one host; workers queue on different ones.
                config = busy[self.first % len(busy)]
                log.info("none of %d hosts has room: waiting for %s", len(self.hosts), name_of(config))
                return self._take(config, request, deadline, nowait=False)
            if patience.expired or self._given_up or not any(name in self._lost_leases for name in failures):
                self._given_up = True
                reasons = "\n".join(f"  {name}: {exc.message}" for name, exc in failures.items())
                hints = "; ".join(dict.fromkeys(exc.hint for exc in failures.values() if exc.hint))
                raise InfrastructureError(f"no host works:\n{reasons}", hint=hints or "run fxh doctor HOST")
            time.sleep(_PAUSE)

    def _take(self, config: HostConfig, request: LeaseRequest, deadline: Deadline, *, nowait: bool) -> DirectHost:
        name, lost = name_of(config), [name for name in self._lost if self._avoided(name)]
        taken = places.take(config, deadline, nowait=nowait, avoid=lost)
        try:
            host = self.connect(taken, self.what)
        except BaseException as exc:
            self._give_back(taken, exc)
            raise
        try:
            if config.address != LAB:
                host.acquire(
                    LeaseRequest(
                        secrets.token_hex(3), request.memory, request.vcpus, request.disk, nowait=nowait, silence=request.silence,
                        supersede=self._lost_leases.get(name, ""),
                    ),
                    deadline,
                )  # fmt: skip
            host.check()
        except BaseException as exc:
            host.close()
            self._give_back(taken, exc)
            raise
        self._lost.pop(name, None)
        self._lost_leases.pop(name, None)
        self._given_up = False
        return host

    def _give_back(self, taken: HostConfig, why: BaseException) -> None:
        """Release the labgrid place of a host that does not work, and take it last for a while."""
        if isinstance(taken, places.PlaceConfig):
            self._lost[taken.name] = (time.monotonic(), str(why))
            places.give_back(taken)

    def mark_lost(self, name: str, why: str, run: str = "", place: str = "") -> None:
        """Avoid a host for 120 s. ``run`` is the run whose lease was lost with it, ``place`` the labgrid place that it was."""
        log.warning("host %s is lost: %s", place or name, why.splitlines()[0] if why else "")
        self._lost |= {lost: (time.monotonic(), why) for lost in (name, place) if lost}
        if run:
            self._lost_leases[name] = run

    def _avoided(self, name: str) -> bool:
        since, _ = self._lost.get(name, (-_AVOID, ""))
        return time.monotonic() - since < _AVOID


def _name(config: HostConfig) -> str:
    return config.name or config.address
