# SPDX-License-Identifier: BSD-2-Clause
"""A place of a labgrid coordinator as a host: acquired before the first connection, released with the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.config import load
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import InfrastructureError, TransportError, UsageError
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy
from harness.hosts.saved_state import Access
from harness.labgrid import place, tags
from harness.labgrid.place import Place, PlacesTaken, Survey

PATIENCE = 60.0
"""Seconds that a command without a lease waits for a place."""
# Names of one architecture. The tags of places are FreeBSD's or Linux's, and `xl info` shows those of dom0's uname.
_MACHINES = ({"amd64", "x86_64", "x86-64"}, {"arm64", "aarch64"})


@dataclass(frozen=True)
class PlaceConfig(HostConfig):
    """The configuration of a place that is ours: its name, and the address of its NetworkService."""

    place: Place | None = None
    source: str = ""
    """The name of the ``labgrid:`` host that it was taken from."""


def name_of(config: HostConfig) -> str:
    """The name of a host in messages and in a pool. A place has the name of the host that it was taken from."""
    return config.source if isinstance(config, PlaceConfig) else config.name or config.address


def take(config: HostConfig, deadline: Deadline, *, nowait: bool, avoid: Iterable[str] = ()) -> HostConfig:
    """Acquire a place for a ``labgrid:`` host; return other hosts as they are. :func:`give_back` releases it.

    Its other settings (key, bridge, storage) are those of ``config``. ``avoid`` are places to take last.
    Raises HostBusy with ``nowait``, InfrastructureError, DeadlineExpired, UsageError.
    """
    if not tags.is_labgrid(config.address):
        return config
    try:
        found = place.acquire(config.address, coordinator(), deadline, nowait=nowait, avoid=tuple(avoid))
    except PlacesTaken as exc:
        raise HostBusy(exc.message, hint=exc.hint) from exc
    from harness.hosts import sshconfig

    try:
        sshconfig.parse(found.service.route)
    except UsageError as exc:
        found.end()
        raise InfrastructureError(
            f"the NetworkService of labgrid place {found.name} has an invalid address: {found.service.route!r}",
            hint=f"ask the administrator of the lab to correct the configuration of the exporter of {found.name}",
        ) from exc
    settings = vars(replace(config, address=found.service.route, name=found.name, jump=config.jump or found.service.jump))
    return PlaceConfig(**settings, place=found, source=name_of(config))


def give_back(config: HostConfig) -> None:
    """Release the place of a host that :func:`take` returned. A second call does nothing."""
    if isinstance(config, PlaceConfig) and config.place is not None:
        config.place.end()


@contextlib.contextmanager
def taken(config: HostConfig) -> Iterator[HostConfig]:
    """For a command that looks at a host: inside, a ``labgrid:`` host is a free place that is ours. Raises as :func:`take`."""
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
    """A host that is a labgrid place. Closing it releases the place."""

    @property
    def place(self) -> Place:
        assert isinstance(self.config, PlaceConfig)
        assert self.config.place is not None
        return self.config.place

    @property
    def failure(self) -> str:
        return self.place.lost

    def check(self) -> None:
        """As for any host; also checks that the place is still ours and that its tag ``arch`` is true."""
        if self.place.lost:
            raise TransportError(self.place.lost)
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

    def close(self) -> None:
        try:
            super().close()
        finally:
            give_back(self.config)
