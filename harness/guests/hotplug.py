# SPDX-License-Identifier: BSD-2-Clause
"""Devices that are attached to a running guest and detached from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import CommandFailed, DeadlineExpired, GuestCommandFailed
from harness.guests.guest import Guest
from harness.guests.os.values import Run
from harness.xen.config import Disk


@contextlib.contextmanager
def paused(guest: Guest) -> Iterator[None]:
    """Pause the guest inside the context."""
    guest.host.toolstack.pause(guest.domid)
    try:
        yield
    finally:
        guest.host.toolstack.unpause(guest.domid)


def attach(guest: Guest, path: str, keys: Mapping[str, str], go: Callable[[], None]) -> None:
    """Attach a device by ``go`` and change ``keys`` of its backend at ``path`` (``vif/0``) before the guest sees the device.

    A backend writes its keys when it is created (drivers/net/xen-netback/xenbus.c, netback_probe), and the frontend reads them when
    it connects; the guest is paused in between.
    """
    kind, _, number = path.partition("/")
    with paused(guest):
        go()
        for key, value in keys.items():
            guest.host.xenstore.write(f"/local/domain/0/backend/{kind}/{guest.domid}/{number}/{key}", value)


def wait_disks(guest: Guest, wanted: Set[str], gone: Set[str] = frozenset(), seconds: float = 30) -> set[str]:
    """Wait until the guest has the disks ``wanted`` and none of ``gone``, or until ``seconds`` have passed; return all its disks."""
    found: set[str] = set()

    def poll() -> None:
        found.clear()
        found.update(guest.os.disks(guest.sh))
        if not wanted <= found or gone & found:
            raise ConditionNotMet(f"it has {' '.join(sorted(found))}")

    with contextlib.suppress(DeadlineExpired):
        Deadline(seconds * guest.scale).wait("disks to come and go", poll, 0.5)
    return set(found)


def digests(run: Run, names: Sequence[str]) -> dict[str, str]:
    """md5 of the first MiB of each disk of the guest (``fxh_digest`` is defined in every session, harness/console/session.py)."""
    lines = run(
        f"for d in {' '.join(names)}; do echo $d $(dd if=/dev/$d bs=64k count=16 2>/dev/null | fxh_digest); done"
    ).splitlines()
    return {words[0]: words[1] for words in map(str.split, lines) if len(words) > 1}


def let_go(guest: Guest, vdev_name: str) -> None:
    """Detach a disk. Raises GuestCommandFailed if the guest does not close its frontend within xl's limit of ten seconds."""
    with _closing(guest, f"xl block-detach {vdev_name}"):
        guest.host.toolstack.block_detach(guest.domid, vdev_name)


def let_go_interface(guest: Guest, devid: int) -> None:
    """Detach the interface with this number; the domain's first one is 0. Raises as :func:`let_go`."""
    with _closing(guest, f"xl network-detach {devid}"):
        guest.host.toolstack.network_detach(guest.domid, devid)


@contextlib.contextmanager
def _closing(guest: Guest, command: str) -> Iterator[None]:
    """Blame the guest for a ``command`` of xl that fails because the guest does not close its frontend."""
    try:
        yield
    except CommandFailed as exc:
        # libxl: error: libxl_device.c:1194:device_backend_callback: Domain 2:unable to remove device with path ... - rc -9
        if "unable to remove device" not in exc.stderr:
            raise
        raise GuestCommandFailed(guest.name, command, exc.status, exc.stderr.strip()) from exc


def disk(guest: Guest, given: Disk) -> str:
    """Attach a disk and return its name in the guest. Raises GuestCommandFailed if it does not appear within 30 s."""
    name = guest.os.disk_name(given.vdev)
    guest.host.toolstack.block_attach(guest.domid, given)
    if name not in (seen := wait_disks(guest, {name})):
        raise GuestCommandFailed(guest.name, f"xl block-attach {given.vdev}", 0, f"no {name} among {' '.join(sorted(seen))}")
    return name
