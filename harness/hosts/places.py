# SPDX-License-Identifier: BSD-2-Clause
"""A place of a labgrid coordinator as a host: acquired before the first connection, released with the host."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.config import addresses, load
from harness.config.commands import PowerCommands
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.hosts import power
from harness.hosts.access import Access
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy
from harness.hosts.power import CommandPower, Power
from harness.hosts.record import directory, set_aside
from harness.hosts.serial import SerialError
from harness.labgrid import place, tags
from harness.labgrid.place import Place, PlacesExcluded, PlacesTaken, Survey

# Also the address of one place.
_NAME = f"{addresses.LABGRID}name="
# Its name is part of paths.
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
# The words of `labgrid-client power` that differ from ours.
_CLIENT = {"status": "get"}
PATIENCE = 60.0
"""Seconds that a command without a lease waits for a place."""
# Names of one architecture. The tags of places are FreeBSD's or Linux's, and `xl info` shows those of dom0's uname.
_MACHINES = ({"amd64", "x86_64", "x86-64"}, {"arm64", "aarch64"})


@dataclass(frozen=True)
class PlaceConfig(HostConfig):
    """The configuration of an acquired place. Its name is the address ``labgrid:name=PLACE``."""

    place: Place | None = None
    source: HostConfig | None = None
    """The ``labgrid:`` host that it was taken for."""


class NoPlaceLeft(InfrastructureError):
    """Each matching place is excluded. ``names`` are their hosts' names."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


def take(
    config: HostConfig, deadline: Deadline, *, nowait: bool, avoid: Iterable[str] = (), exclude: Iterable[str] = ()
) -> HostConfig:
    """Acquire a place for a ``labgrid:`` host; return other hosts as they are. :func:`give_back` releases it.

    The settings of ``config`` (key, bridge, storage, power, ...) override those of the place. ``avoid`` are names of hosts: such
    places are taken last. Those of ``exclude`` are not taken. Raises HostBusy with ``nowait``, NoPlaceLeft, InfrastructureError,
    DeadlineExpired, UsageError.
    """
    if not tags.is_labgrid(config.address):
        return config
    try:
        found = place.acquire(
            config.address, coordinator(), deadline, nowait=nowait, avoid=_place_names(avoid), exclude=_place_names(exclude)
        )
    except PlacesTaken as exc:
        raise HostBusy(exc.message, hint=exc.hint) from exc
    except PlacesExcluded as exc:
        raise NoPlaceLeft(exc.message, [f"{_NAME}{name}" for name in exc.names]) from exc
    try:
        return _configured(config, found)
    except BaseException:
        found.end()
        raise


def _place_names(hosts: Iterable[str]) -> list[str]:
    return [name.removeprefix(_NAME) for name in hosts if is_place(name)]


def is_place(name: str) -> bool:
    """Whether a host's name is that of one place."""
    return name.startswith(_NAME)


def places_set_aside() -> list[str]:
    """The names of the places that this user's processes have set aside, at any coordinator."""
    return [path.name for path in directory("").glob(f"{_NAME}*") if set_aside(path.name)]


def _configured(config: HostConfig, found: Place) -> PlaceConfig:
    ask = f"ask the administrator of the lab to correct the configuration of {found.name}"
    if not _PLACE.fullmatch(found.name):
        raise InfrastructureError(f"invalid name of a labgrid place: {found.name!r}", hint="use letters, digits, '.', '_' and '-'")
    try:
        addresses.ssh(found.service.route)
    except UsageError as exc:
        what = f"the NetworkService of labgrid place {found.name} has an invalid address: {found.service.route!r}"
        raise InfrastructureError(what, hint=ask) from exc
    switch = PowerCommands(*(found.client("power", word) for word in ("on", "off", "cycle", "get"))) if found.has_power else None
    settings = replace(
        config, address=found.service.route, name=f"{_NAME}{found.name}", jump=config.jump or found.service.jump,
        power=config.power or switch, serial=config.serial or found.serial,
    )  # fmt: skip
    return PlaceConfig(**vars(settings), place=found, source=config)


def give_back(config: HostConfig) -> None:
    """Release the place of a host that :func:`take` returned. A second call does nothing."""
    if isinstance(config, PlaceConfig) and config.place is not None:
        config.place.end()


def is_lost(config: HostConfig) -> bool:
    """Whether this process no longer holds the place."""
    return isinstance(config, PlaceConfig) and config.place is not None and bool(config.place.lost)


def may_be_left(config: HostConfig) -> bool:
    """Whether a worker should leave a host for a place of its own that came back: a place that is shared, lost or set aside."""
    if not isinstance(config, PlaceConfig) or config.place is None:
        return False
    return is_lost(config) or set_aside(config.name) is not None or config.place.shared


class Places:
    """The places of one worker, each held from its first use until :meth:`close`, also while its host is brought back."""

    def __init__(self) -> None:
        self._held: dict[str, PlaceConfig] = {}
        self._parked: list[PlaceConfig] = []

    def current(self, host: HostConfig) -> HostConfig:
        """The place that is held for a ``labgrid:`` host; else ``host``."""
        return self._held.get(host.label, host)

    def occupy(
        self, host: HostConfig, deadline: Deadline, *, nowait: bool, avoid: Iterable[str], exclude: Iterable[str]
    ) -> HostConfig:
        """:meth:`current`, after taking a place if necessary. Raises as :func:`take`."""
        held = self.current(host)
        found = take(held, deadline, nowait=nowait, avoid=avoid, exclude=exclude) if held is host else held
        if isinstance(found, PlaceConfig):
            self._held[host.label] = found
        return found

    def vacate(self, config: HostConfig) -> HostConfig:
        """Release a place. Returns the ``labgrid:`` host, for which another place can be taken; any other host as it is."""
        if not isinstance(config, PlaceConfig) or config.source is None:
            return config
        self._parked = [one for one in self._parked if one is not config]
        key = config.source.label
        if self._held.get(key) is config:
            del self._held[key]
        give_back(config)
        return config.source

    def park(self, config: HostConfig) -> None:
        """Allow another place while the host of this one is brought back. This place stays acquired."""
        if isinstance(config, PlaceConfig) and config.source is not None:
            self._held.pop(config.source.label, None)
            self._parked.append(config)

    def parked(self, host: HostConfig | None = None) -> list[PlaceConfig]:
        """The parked places, or those of one ``labgrid:`` host."""
        return [config for config in self._parked if host is None or config.source is host]

    def instead(self, config: PlaceConfig) -> HostConfig:
        """The place that was taken instead of a parked one, or the ``labgrid:`` host."""
        assert config.source is not None
        return self.current(config.source)

    def resume(self, config: PlaceConfig) -> None:
        """Use a parked place again. :meth:`instead` must be released before."""
        assert config.source is not None
        self._parked = [one for one in self._parked if one is not config]
        self._held[config.source.label] = config

    def close(self) -> None:
        """Release all places."""
        for config in [*self._held.values(), *self._parked]:
            self.vacate(config)


def power_of(config: HostConfig) -> Power | None:
    """As :func:`harness.hosts.power.of`, also for a place."""
    if isinstance(config, PlaceConfig) and config.place is not None and config.power is not None:
        return PlacePower(config, config.place, config.power)
    return power.of(config)


class PlacePower(CommandPower):
    """The power port of a place, by ``labgrid-client power``."""

    def __init__(self, config: HostConfig, held: Place, commands: PowerCommands) -> None:
        super().__init__(held.name, commands, config.name)
        self._place = held

    def _kept_open(self) -> Sequence[int]:
        # labgrid switches no place that was released.
        return self._place.held_open()

    def _key(self, action: str) -> str:
        return f"power {_CLIENT.get(action, action)} of labgrid place {self._name}"

    def _hint(self, action: str) -> str:
        return f"ask the administrator of the lab to check the power port: labgrid-client -p {self._name} power {_CLIENT.get(action, action)}"


@contextlib.contextmanager
def blamed(config: HostConfig) -> Iterator[None]:
    """Inside, an error about the serial console of a place names the place and the administrator of the lab."""
    try:
        yield
    except SerialError as exc:
        if not isinstance(config, PlaceConfig) or config.place is None or (config.source and config.source.serial):
            raise
        hint = f"end its other reader, or ask the administrator of the lab to check the serial port of {config.place.name}"
        raise SerialError(f"labgrid place {config.place.name}: {exc.message}", hint=hint) from exc


@contextlib.contextmanager
def taken(config: HostConfig) -> Iterator[HostConfig]:
    """For a command that examines a host: acquire a free place for a ``labgrid:`` host inside the block. Raises as :func:`take`."""
    held = take(config, Deadline(PATIENCE), nowait=True)
    try:
        yield held
    finally:
        give_back(held)


def survey(config: HostConfig) -> Survey:
    """List the places of a ``labgrid:`` host. Raises UsageError, InfrastructureError."""
    return place.survey(config.address, coordinator())


def left_behind() -> list[tuple[str, str]]:
    """The places that ended processes of this user left acquired, and the coordinator of each."""
    return sorted({(claim.place, claim.coordinator) for claim in place.left_behind()})


def release_left_behind(where: str) -> None:
    """Release the places of :func:`left_behind` at the coordinator ``where``. Raises InfrastructureError."""
    place.survey("", where, clean=True)


def coordinator() -> str:
    """The coordinator of fxh.toml, of the environment, or labgrid's default."""
    return tags.coordinator(load().config.labgrid.coordinator)


class PlaceHost(DirectHost):
    """A host that is a labgrid place. Closing it does not release the place."""

    @property
    def place(self) -> Place:
        assert isinstance(self.config, PlaceConfig)
        assert self.config.place is not None
        return self.config.place

    @property
    def failure(self) -> str:
        return self.place.lost

    def check(self) -> None:
        """As for any host; also checks that the place is still acquired and that its tag ``arch`` is right."""
        if self.place.lost:
            raise InfrastructureError(self.place.lost)
        super().check()
        said, machine = self.place.tags.get("arch", ""), dict(self.info.values).get("machine", "")
        if any(said in names and machine not in names for names in _MACHINES):
            raise InfrastructureError(
                f"labgrid place {self.place.name} has the tag arch={said}, but its host is {machine}",
                hint=f"ask the administrator of the lab to correct the tags of {self.place.name}, or its NetworkService",
            )

    def describe_access(self) -> Access:
        user, _, address = self.config.address.partition("@")
        host, _, port = address.rpartition(":")
        return Access(f"ssh -p {port} {user}@{host.strip('[]')}", f"--xen-host {self.config.address}", self.directory)

    def keep_for(self, domains: Sequence[str], seconds: float) -> tuple[str, ...]:
        """As for any host. The place stays acquired as long as the domains stay."""
        kept = super().keep_for(domains, seconds)
        return kept if kept and self.place.keep(seconds) else ()
