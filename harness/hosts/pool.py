# SPDX-License-Identifier: BSD-2-Clause
"""Many hosts as one: each worker takes a share of whichever has room, and a host that is lost is left alone for a while."""

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
from harness.hosts import connect
from harness.hosts.host import DirectHost
from harness.hosts.lease import HostBusy, HostTooSmall, LeaseRequest

log = logging.getLogger("fxh.hosts")

LAB = "lab"
_AVOID = 120.0
_PAUSE = 3.0
# So long may a host that was ours take to come back: a reboot, a switch that is restarted.
_COME_BACK = 300.0


def members(words: str, hosts: Mapping[str, HostConfig]) -> tuple[HostConfig, ...]:
    """The hosts meant by ``words``, by commas: names, ``tag:TAG``, addresses, ``local``, ``lab``. Raises UsageError."""
    found: dict[str, HostConfig] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        if word.startswith("tag:"):
            tagged = [host for host in hosts.values() if word[4:] in host.tags]
            if not tagged:
                tags = sorted({tag for host in hosts.values() for tag in host.tags})
                raise UsageError(f"no host with {word}", hint=f"tags in fxh.toml: {', '.join(tags) or 'none'}")
            found |= {host.name: host for host in tagged}
        elif word in hosts:
            found[word] = hosts[word]
        elif word == LAB:
            found[word] = HostConfig(LAB, name=LAB)
        else:
            if word != "local":
                from harness.hosts import sshconfig

                sshconfig.parse(word)
            found[word] = HostConfig(word)
    return tuple(found.values())


def label(words: str) -> str:
    """A pool's name in cells: it stays the same, whichever host serves a case."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", words.replace("tag:", "")).strip("-")


@dataclass
class Pool:
    """One worker's view of it. ``first`` is where it begins to look, so that workers begin at different hosts."""

    hosts: Sequence[HostConfig]
    first: int = 0
    what: str = ""
    connect: Callable[[HostConfig, str], DirectHost] = field(
        default=lambda config, what: DirectHost(connect.transport(config), config=config, what=what)
    )
    _lost: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Hosts to be left alone: since when, and why."""
    _before: dict[str, str] = field(default_factory=dict)
    """The last lease on each host that was lost: the next one there ends it."""
    _given_up: bool = False
    """Nobody came back in time once: from then on it is looked for, and not waited for."""

    def acquire(self, wish: LeaseRequest, deadline: Deadline) -> DirectHost:
        """A host with a lease on it, prepared. Raises InfrastructureError when none has room in time, or none is left."""
        order = [self.hosts[(self.first + n) % len(self.hosts)] for n in range(len(self.hosts))]
        alone = len(order) == 1
        patience = Deadline(min(_COME_BACK, deadline.remaining))
        while True:
            why: dict[str, str] = {}
            busy: list[HostConfig] = []
            # Whoever was lost lately is asked last.
            for config in sorted(order, key=self._avoided):
                if self._avoided(config) and busy:
                    continue
                try:
                    return self._take(config, wish, deadline if alone else Deadline(60), nowait=not alone)
                except HostBusy as exc:
                    busy.append(config)
                    why[_name(config)] = exc.message
                except HostTooSmall as exc:
                    why[_name(config)] = exc.message
                except InfrastructureError as exc:
                    if alone and isinstance(exc, DeadlineExpired):
                        before = self._lost.get(_name(config), (0.0, ""))[1]
                        raise DeadlineExpired(f"{exc.message}; it was lost before: {before}" if before else exc.message) from exc
                    why[_name(config)] = exc.message
                    self.lost(_name(config), exc.message)
            if busy:
                # All are full: queue at one; which one differs between workers.
                config = busy[self.first % len(busy)]
                log.info("no host of %d has room: waiting at %s", len(self.hosts), _name(config))
                return self._take(config, wish, deadline, nowait=False)
            if patience.expired or self._given_up or not any(name in self._before for name in why):
                self._given_up = True
                reasons = "\n".join(f"  {name}: {reason}" for name, reason in why.items())
                raise InfrastructureError(f"none of the hosts serves:\n{reasons}", hint="fxh doctor HOST says more")
            time.sleep(_PAUSE)

    def _take(self, config: HostConfig, wish: LeaseRequest, deadline: Deadline, *, nowait: bool) -> DirectHost:
        name = _name(config)
        host = self.connect(config, self.what)
        try:
            if config.address != LAB:
                host.acquire(
                    LeaseRequest(
                        secrets.token_hex(3), wish.memory, wish.vcpus, wish.disk, nowait=nowait, silence=wish.silence,
                        supersede=self._before.get(name, ""),
                    ),
                    deadline,
                )  # fmt: skip
            host.check()
        except BaseException:
            host.close()
            raise
        self._lost.pop(name, None)
        self._before.pop(name, None)
        self._given_up = False
        return host

    def lost(self, name: str, why: str, run: str = "") -> None:
        """Leave a host alone for a while. ``run`` is the lease that was lost with it."""
        log.warning("host %s is lost: %s", name, why.splitlines()[0] if why else "")
        self._lost[name] = (time.monotonic(), why)
        if run:
            self._before[name] = run

    def _avoided(self, config: HostConfig) -> bool:
        since, _ = self._lost.get(_name(config), (-_AVOID, ""))
        return time.monotonic() - since < _AVOID


def _name(config: HostConfig) -> str:
    return config.name or config.address
