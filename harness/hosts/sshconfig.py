# SPDX-License-Identifier: BSD-2-Clause
"""How ssh reaches a host: what the user's ``~/.ssh/config`` says of it, as a value."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path

import paramiko

from harness.errors import UsageError

_JUMPS = 5


@dataclass(frozen=True)
class Route:
    """Where to connect and as whom. ``jump`` are the hosts on the way, the nearest to us first."""

    host: str
    port: int = 22
    user: str = "root"
    keys: tuple[Path, ...] = ()
    known_hosts: tuple[Path, ...] = ()
    jump: tuple[Route, ...] = ()


def parse(address: str) -> tuple[str, str, int]:
    """``[user@]host[:port]`` as (user or "", host, port or 0); an IPv6 address goes in brackets. Raises UsageError."""
    user, at, rest = address.rpartition("@")
    bracket, closed, after = rest[1:].partition("]") if rest.startswith("[") else ("", "", "")
    host, port = (bracket, after.removeprefix(":")) if closed else rest.partition(":")[::2]
    # A leading dash would be an option to whatever command it is given to.
    if not host or host.startswith("-") or (at and not user) or (port and not port.isdigit()) or any(c.isspace() for c in host):
        raise UsageError(f"host {address!r}", hint="[user@]host[:port], an alias of ~/.ssh/config, a host of fxh.toml, or local")
    return user, host, int(port or 0)


def resolve(
    address: str, *, key: str = "", jump: str = "", known_hosts: str = "", config: paramiko.SSHConfig | None = None, depth: int = 0
) -> Route:
    """What is given here goes before ``~/.ssh/config``, as on ssh's own command line. Raises UsageError."""
    if depth > _JUMPS:
        raise UsageError(f"ProxyJump of {address} goes round in a circle", hint="look into ~/.ssh/config")
    config = config or _user_config()
    user, alias, port = parse(address)
    said = config.lookup(alias)
    keys = (Path(key).expanduser(),) if key else tuple(Path(name).expanduser() for name in said.get("identityfile", ()))
    if key and not keys[0].is_file():
        raise UsageError(f"{key}: no such private key", hint=f"it is given for {address}")
    known = (known_hosts,) if known_hosts else tuple(said.get("userknownhostsfile", "~/.ssh/known_hosts").split())
    hops: tuple[Route, ...] = ()
    for hop in (jump or said.get("proxyjump", "")).split(","):
        if hop and hop.lower() != "none":
            route = resolve(hop.strip(), config=config, depth=depth + 1)
            hops += (*route.jump, route)
    if not hops and "proxycommand" in said and said["proxycommand"].lower() != "none":
        raise UsageError(f"{alias}: ProxyCommand of ~/.ssh/config is not supported", hint="write it as ProxyJump")
    return Route(
        host=said.get("hostname", alias),
        port=port or int(said.get("port", 22)),
        # ssh would take the name of whoever types; a dom0 is managed by root.
        user=user or said.get("user", "root" if depth == 0 else getpass.getuser()),
        keys=tuple(path for path in keys if path.is_file()),
        known_hosts=tuple(Path(name).expanduser() for name in known),
        jump=hops,
    )


def _user_config() -> paramiko.SSHConfig:
    path = Path("~/.ssh/config").expanduser()
    try:
        return paramiko.SSHConfig.from_path(str(path)) if path.is_file() else paramiko.SSHConfig()
    except (OSError, paramiko.ConfigParseError) as exc:
        raise UsageError(f"{path}: {exc}") from exc
