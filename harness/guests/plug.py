"""Devices given to a guest that is paused meanwhile: when it looks, their backends say what a case wants them to say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from harness.guests.guest import Guest


@contextlib.contextmanager
def paused(guest: Guest) -> Iterator[None]:
    """Inside, the guest makes no step."""
    guest.host.toolstack.pause(guest.domid)
    try:
        yield
    finally:
        guest.host.toolstack.unpause(guest.domid)


def attach(guest: Guest, path: str, keys: Mapping[str, str], go: Callable[[], None]) -> None:
    """Attach a device by ``go``; ``keys`` of its backend at ``path`` (``vif/0``) are changed before the guest sees it.

    A backend writes them when it is made (drivers/net/xen-netback/xenbus.c, netback_probe) and a frontend reads them when it
    connects.
    """
    kind, _, number = path.partition("/")
    with paused(guest):
        go()
        for key, value in keys.items():
            guest.host.xenstore.write(f"/local/domain/0/backend/{kind}/{guest.domid}/{number}/{key}", value)
