"""From what a user calls a host to a connection to it."""

from __future__ import annotations

from harness.errors import UsageError
from harness.hosts.host import DirectHost
from harness.transport.local import LocalTransport


def direct(where: str, run_id: str = "") -> DirectHost:
    """A real host: ``local`` for this machine, else ``[user@]host[:port]``. Raises UsageError, TransportError."""
    if where == "local":
        return DirectHost(LocalTransport(), run_id=run_id)
    from harness.transport.ssh import SshTransport

    user, _, address = where.rpartition("@")
    name, _, port = address.partition(":")
    if not name or (port and not port.isdigit()):
        raise UsageError(f"host {where!r}", mend="[user@]host[:port], or local")
    return DirectHost(SshTransport(name, int(port or 22), user=user or "root"), run_id=run_id)
