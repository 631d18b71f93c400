# SPDX-License-Identifier: BSD-2-Clause
"""Parsers for the addresses in ``fxh.toml``: of hosts, servers and mailboxes. They need no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError

if TYPE_CHECKING:
    from email.headerregistry import Address

LABGRID = "labgrid:"
"""The prefix of the address of a host that a labgrid coordinator provides."""

# arch=amd64: what labgrid 26 accepts as the name of a tag (TAG_KEY in labgrid/remote/common.py), and any value without a blank.
_TAG = re.compile(r"([a-z][a-z0-9_]+)=([^\s,=]+)")
# mail.example.org   mail.example.org:587   [2001:db8::25]:25
_SERVER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")


def ssh(address: str) -> tuple[str, str, int]:
    """Split ``[user@]host[:port]`` into (user or "", host, port or 0). An IPv6 address has brackets. Raises UsageError."""
    user, at, rest = address.rpartition("@")
    bracket, closed, after = rest[1:].partition("]") if rest.startswith("[") else ("", "", "")
    host, colon, port = (bracket, after[:1], after[1:]) if closed else rest.partition(":")
    # A command that gets the host as an argument would take a leading dash for an option.
    if (
        not re.fullmatch(r"[^\s-]\S*", host)
        or (at and not re.fullmatch(r"\S+", user))
        or (colon and colon != ":")
        or (port and not _is_port(port))
    ):
        raise UsageError(
            f"invalid host {address!r}", hint="use [user@]host[:port], an alias of ~/.ssh/config, a host of fxh.toml, or local"
        )
    return user, host, int(port or 0)


def jumps(addresses: str) -> list[str]:
    """The jump hosts in ``addresses``, separated by commas. Raises UsageError."""
    found = [hop for hop in map(str.strip, addresses.split(",")) if hop]
    for hop in found:
        ssh(hop)
    return found


def labgrid_tags(address: str) -> Mapping[str, str]:
    """The tags in ``labgrid:KEY=VALUE,...``. Raises UsageError."""
    found: dict[str, str] = {}
    for word in filter(None, address.removeprefix(LABGRID).split(",")):
        tag = _TAG.fullmatch(word)
        if tag is None:
            raise UsageError(
                f"{address}: invalid tag {word!r}", hint="use KEY=VALUE, KEY in lower case: labgrid:tag=xen,arch=amd64"
            )
        found[tag[1]] = tag[2]
    if not found:
        raise UsageError(
            f"{address}: no tags", hint="name the tags of the places: labgrid:tag=xen, or one place: labgrid:name=PLACE"
        )
    return found


def host(address: str) -> None:
    """Check ``hosts.NAME.address``. Raises UsageError."""
    if address.startswith(LABGRID):
        labgrid_tags(address)
    else:
        ssh(address)


def server(text: str) -> tuple[str, int]:
    """Split ``HOST`` or ``HOST:PORT``. The port is 0 if it is missing. Raises UsageError."""
    match = _SERVER.fullmatch(text)
    if not match or (match[3] and not _is_port(match[3])):
        raise UsageError(f"invalid server {text!r}", hint="use HOST or HOST:PORT, and [ADDRESS]:PORT for an IPv6 address")
    return match[1] or match[2], int(match[3] or 0)


def mailboxes(texts: Iterable[str], what: str, *, local: bool = False) -> tuple[Address, ...]:
    """Parse addresses ``user@host`` and ``Name <user@host>``, separated by commas; with ``local`` also user names (``root``).

    Raises UsageError with ``what``, the name of the setting, for an invalid address.
    """
    # Only mail needs them, and their import takes as long as the rest of a short command's configuration.
    from email.headerregistry import Address, HeaderRegistry

    found: list[Address] = []
    for text in texts:
        if local and re.fullmatch(r"[A-Za-z0-9._-]+", text):
            found.append(Address(username=text))
            continue
        try:
            header: Any = HeaderRegistry()("To", text)
            if header.defects or not header.addresses:
                raise ValueError
        except (ValueError, IndexError) as exc:
            raise UsageError(f"{what} {text!r} is not a mail address", hint="use user@host") from exc
        found += header.addresses
    return tuple(found)


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) < 1 << 16
