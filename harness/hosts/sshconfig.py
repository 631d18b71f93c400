# SPDX-License-Identifier: BSD-2-Clause
"""Read the way to a host from the user's ``~/.ssh/config``."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path

import paramiko

from harness.config import addresses
from harness.errors import UsageError

# ProxyJump may refer to a host that has a ProxyJump itself. Deeper nesting counts as a circle.
_JUMPS = 5


@dataclass(frozen=True)
class Route:
    """Where to connect, and the user and keys for it. ``jump`` are the jump hosts, the first one to connect to first."""

    host: str
    port: int = 22
    user: str = "root"
    keys: tuple[Path, ...] = ()
    known_hosts: tuple[Path, ...] = ()
    jump: tuple[Route, ...] = ()


def resolve(
    address: str, *, key: str = "", jump: str = "", known_hosts: str = "", config: paramiko.SSHConfig | None = None, depth: int = 0
) -> Route:
    """The route to ``address``. Arguments override ``~/.ssh/config``, as ssh's command line does. Raises UsageError."""
    if depth > _JUMPS:
        raise UsageError(f"ProxyJump of {address} leads in a circle", hint="correct it in ~/.ssh/config")
    config = config or _user_config()
    user, alias, port = addresses.ssh(address)
    settings = config.lookup(alias)
    keys = (Path(key).expanduser(),) if key else tuple(Path(name).expanduser() for name in settings.get("identityfile", ()))
    if key and not keys[0].is_file():
        raise UsageError(f"{key}: no such private key", hint=f"correct the key of {address} in fxh.toml")
    known = (known_hosts,) if known_hosts else tuple(settings.get("userknownhostsfile", "~/.ssh/known_hosts").split())
    hops: tuple[Route, ...] = ()
    for hop in addresses.jumps(jump or settings.get("proxyjump", "")):
        if hop.lower() != "none":
            route = resolve(hop, config=config, depth=depth + 1)
            hops += (*route.jump, route)
    if not hops and "proxycommand" in settings and settings["proxycommand"].lower() != "none":
        raise UsageError(f"{alias}: ProxyCommand of ~/.ssh/config is not supported", hint="use ProxyJump instead")
    return Route(
        host=settings.get("hostname", alias),
        port=port or int(settings.get("port", 22)),
        # ssh would use the name of the local user, but dom0 must be managed as root.
        user=user or settings.get("user", "root" if depth == 0 else getpass.getuser()),
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
