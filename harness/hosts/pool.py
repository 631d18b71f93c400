# SPDX-License-Identifier: BSD-2-Clause
"""Several hosts used as one: each worker leases a share of any host with room. A lost host is avoided for a while, or recovered."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import AccessError, DeadlineExpired, InfrastructureError, TransportError, UsageError
from harness.hosts import connect, operator_mail, recovery, serial
from harness.hosts import power as powers
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy, HostTooSmall, LeaseRequest
from harness.hosts.power import Power
from harness.hosts.record import set_aside
from harness.hosts.recovery import Recovery
from harness.hosts.serial import SerialLog

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
    """The hosts that ``words`` selects, separated by commas: names, ``tag:TAG``, addresses, ``local``, ``lab``.

    Raises UsageError for an unknown tag or an invalid address.
    """
    found: dict[str, HostConfig] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        if word.startswith("tag:"):
            tagged = [host for host in hosts.values() if word[4:] in host.tags]
            if not tagged:
                tags = sorted({tag for host in hosts.values() for tag in host.tags})
                raise UsageError(f"no host has {word}", hint=f"tags in fxh.toml: {', '.join(tags) or 'none'}")
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
    """The name of a pool in cells. It is the same for every host that serves a case."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", words.replace("tag:", "")).strip("-")


@dataclass
class HostPool:
    """One worker's view of the hosts. ``first`` is the index of the host that it tries first; it differs between workers."""

    hosts: Sequence[HostConfig]
    first: int = 0
    what: str = ""
    """The purpose of the leases, which ``fxh hosts`` shows."""
    connect: Callable[[HostConfig, str], DirectHost] = field(
        default=lambda config, what: DirectHost(connect.transport(config), config=config, what=what)
    )
    _lost: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Lost hosts by name: the time (monotonic, s) and the reason."""
    _lost_leases: dict[str, str] = field(default_factory=dict)
    """By host, the run whose lease was lost with it. The next lease there supersedes it."""
    power: Callable[[HostConfig], Power | None] = powers.of
    report: Callable[[str, str], None] = operator_mail.report
    """Reports a host that is set aside, by its name and the reason."""
    _given_up: bool = False
    """No lost host came back in time. Later calls try each host once, without waiting."""
    _recoveries: dict[str, Recovery] = field(default_factory=dict)
    """The last recovery of each host."""
    _boots: dict[str, str] = field(default_factory=dict)
    """By host with power commands, the boot id when it was last used."""
    _serials: dict[str, SerialLog] = field(default_factory=dict)

    def acquire(self, request: LeaseRequest, deadline: Deadline) -> DirectHost:
        """Lease a share of a host and check the host.

        Raises InfrastructureError if no host works, DeadlineExpired if all are full until the deadline.
        """
        order = [self.hosts[(self.first + n) % len(self.hosts)] for n in range(len(self.hosts))]
        single = len(order) == 1
        patience = Deadline(min(_COME_BACK, deadline.remaining))
        while True:
            failures: dict[str, str] = {}
            busy: list[HostConfig] = []
            # Hosts that were lost recently come last.
            for config in sorted(order, key=self._avoided):
                if self._avoided(config) and busy:
                    continue
                if unusable := self._unusable(config):
                    failures[_name(config)] = unusable
                    continue
                try:
                    return self._take(config, request, deadline if single else Deadline(_ANSWER), nowait=not single)
                except HostBusy as exc:
                    busy.append(config)
                    failures[_name(config)] = exc.message
                except HostTooSmall as exc:
                    failures[_name(config)] = exc.message
                except InfrastructureError as exc:
                    if single and isinstance(exc, DeadlineExpired):
                        earlier = self._lost.get(_name(config), (0.0, ""))[1]
                        raise DeadlineExpired(f"{exc.message}; it was lost earlier: {earlier}" if earlier else exc.message) from exc
                    failures[_name(config)] = str(exc)
                    self.mark_lost(_name(config), exc.message, hangs=self._may_hang(_name(config), exc))
            if busy:
                # Queue on one host; workers queue on different ones.
                config = busy[self.first % len(busy)]
                log.info("none of %d hosts has room: waiting for %s", len(self.hosts), _name(config))
                return self._take(config, request, deadline, nowait=False)
            if any(one.running for one in self._recoveries.values()):
                if deadline.expired:
                    raise deadline.expire("a host", "; ".join(failures.values()))
                time.sleep(_PAUSE)
                continue
            may_return = any(name in self._lost_leases and set_aside(name) is None for name in failures)
            if patience.expired or self._given_up or not may_return:
                self._given_up = True
                reasons = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
                raise InfrastructureError(f"no host works:\n{reasons}", hint="run fxh doctor HOST")
            time.sleep(_PAUSE)

    def _take(self, config: HostConfig, request: LeaseRequest, deadline: Deadline, *, nowait: bool) -> DirectHost:
        name = _name(config)
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
            host.check()
            if self.power(config) is not None:
                self._boots[name] = recovery.read_boot_id(host.transport)
        except BaseException:
            host.close()
            raise
        self._lost.pop(name, None)
        self._lost_leases.pop(name, None)
        self._given_up = False
        return host

    def mark_lost(self, name: str, why: str, run: str = "", *, hangs: bool = False) -> None:
        """Avoid a host for 120 s. ``run`` is the run whose lease was lost with it.

        ``hangs``: it does not answer. Then it is brought back meanwhile, if it has power commands.
        """
        log.warning("host %s is lost: %s", name, why.splitlines()[0] if why else "")
        self._lost[name] = (time.monotonic(), why)
        if run:
            self._lost_leases[name] = run
        config = next((config for config in self.hosts if _name(config) == name), None)
        power = self.power(config) if hangs and config is not None else None
        if config is None or power is None or self._recovering(name):
            return
        found = Recovery(
            config, power, lambda: self.connect(config, self.what).transport, why, self._boots.get(name, ""), self.report
        )
        self._recoveries[name] = found
        found.start()

    def close(self) -> None:
        """Stop reading serial consoles. A host whose power is being cycled is on again when this returns."""
        for recovery_ in self._recoveries.values():
            recovery_.stop()
        for log_ in self._serials.values():
            log_.stop()
        self._serials.clear()

    def _unusable(self, config: HostConfig) -> str:
        """Why a host cannot be used at present: it is set aside, or being brought back."""
        if aside := set_aside(config.name):
            return str(aside)
        return f"it hung and is being brought back: {self._recoveries[config.name].why}" if self._recovering(config.name) else ""

    def _may_hang(self, name: str, error: InfrastructureError) -> bool:
        """Whether ``error`` is no answer, unless a moment ago the host did answer a recovery."""
        last = self._recoveries.get(name)
        return (
            isinstance(error, TransportError)
            and not isinstance(error, AccessError)
            and not (last is not None and last.answered + _AVOID > time.monotonic())
        )

    def _recovering(self, name: str) -> bool:
        return name in self._recoveries and self._recoveries[name].running

    def _read_serial(self, config: HostConfig) -> None:
        """Start to read the serial console of a host, if it has one. Raises SerialError."""
        if config.name not in self._serials and (found := serial.of(config)):
            found.start()
            self._serials[config.name] = found

    def _avoided(self, config: HostConfig) -> bool:
        since, _ = self._lost.get(_name(config), (-_AVOID, ""))
        return time.monotonic() - since < _AVOID


def _name(config: HostConfig) -> str:
    return config.name or config.address
