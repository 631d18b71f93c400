# SPDX-License-Identifier: BSD-2-Clause
"""Connect to a host by a name of ``fxh.toml`` or by its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import AccessError, InfrastructureError
from harness.hosts import places
from harness.hosts.direct import DirectHost
from harness.hosts.places import PlaceConfig, PlaceHost
from harness.transport import Transport
from harness.transport.local import LocalTransport

if TYPE_CHECKING:
    from harness.hosts.sshconfig import Route
    from harness.transport.ssh import SshTransport

# Seconds for one connection. Each jump host has as long.
_CONNECT = 20.0


def named(where: str) -> HostConfig:
    """The host of that name in ``fxh.toml``, or ``where`` as an address. Raises UsageError if ``fxh.toml`` is invalid."""
    from harness.config import load

    known = load().config.hosts.get(where)
    return known if known is not None else HostConfig(where)


def transport(config: HostConfig, deadline: Deadline | None = None) -> Transport:
    """Connect to a host, over its jump hosts if it has any. Host keys are verified. Raises UsageError, TransportError."""
    if config.address == "local":
        return LocalTransport()
    from harness.hosts import sshconfig

    route = sshconfig.resolve(config.address, key=config.key, jump=config.jump, known_hosts=config.known_hosts)
    over = None
    for hop in route.jump:
        try:
            over = _connect(hop, over, deadline, "")
        except InfrastructureError as exc:
            raise AccessError(f"jump host: {exc.message}", hint=exc.hint) from exc
    return _connect(route, over, deadline, config.name)


def _connect(route: Route, over: SshTransport | None, deadline: Deadline | None, name: str) -> SshTransport:
    from harness.transport.ssh import SshTransport

    deadline = deadline or Deadline(_CONNECT)
    try:
        return SshTransport(
            route.host, route.port, user=route.user, key_paths=route.keys, known_hosts=route.known_hosts, over=over, name=name,
            deadline=deadline.capped(_CONNECT),
        )  # fmt: skip
    except InfrastructureError:
        if over is not None:
            over.close()
        raise


def host(config: HostConfig, what: str = "", run_id: str = "") -> DirectHost:
    """Connect to a real host, or to an acquired labgrid place. Raises UsageError, TransportError.

    ``what`` is the purpose, which ``fxh hosts`` shows.
    """
    kind = PlaceHost if isinstance(config, PlaceConfig) else DirectHost
    return kind(transport(config), run_id=run_id, config=config, what=what)


def direct(where: str, run_id: str = "", what: str = "") -> DirectHost:
    """Connect to a real host: a name of ``fxh.toml``, ``local`` for this machine, ``[user@]host[:port]``, or ``labgrid:...``.

    A place stays acquired until this process ends. Raises UsageError, InfrastructureError.
    """
    return host(places.take(named(where), Deadline(places.PATIENCE), nowait=True), what, run_id)
