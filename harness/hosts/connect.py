# SPDX-License-Identifier: BSD-2-Clause
"""From what a user calls a host to a connection to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.hosts.host import DirectHost
from harness.transport import Transport
from harness.transport.local import LocalTransport

if TYPE_CHECKING:
    from harness.hosts.sshconfig import Route
    from harness.transport.ssh import SshTransport

_CONNECT = 20.0


def named(where: str) -> HostConfig:
    """The host of ``fxh.toml`` that is called so, else ``where`` itself as an address. Raises UsageError."""
    from harness.config import load

    known = load().config.hosts.get(where)
    return known if known is not None else HostConfig(where)


def transport(config: HostConfig, deadline: Deadline | None = None) -> Transport:
    """The way to a host: over its jump hosts, host keys verified. Raises UsageError, TransportError."""
    if config.address == "local":
        return LocalTransport()
    from harness.hosts import sshconfig

    route = sshconfig.resolve(config.address, key=config.key, jump=config.jump, known_hosts=config.known_hosts)
    over = None
    for hop in route.jump:
        over = _connect(hop, over, deadline, "")
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


def direct(where: str, run_id: str = "", what: str = "") -> DirectHost:
    """A real host: a name of ``fxh.toml``, ``local`` for this machine, else ``[user@]host[:port]``.

    Raises UsageError, TransportError.
    """
    config = named(where)
    return DirectHost(transport(config), run_id=run_id, config=config, what=what)
