# SPDX-License-Identifier: BSD-2-Clause
"""Save a guest to a save file in dom0 and restore it."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import CannotRun, CommandFailed, DeadlineExpired, GuestDied, HarnessError, InfrastructureError
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.xen.toolstack import RECEIVER

# Seconds from the start of the restored domain to an answer of its shell.
_RESUMED = 60.0
# Seconds from the end of xl to the end of its helper.
_HELPER_ENDS = 15.0
# Bytes of a save file for :func:`failed`: more than xl writes before it suspends the guest, less than the smallest guest.
_TOO_LITTLE = 4 << 20
# Words of xl that name a lack of the host, not of the guest (strerror(3), and libxl's about memory).
_HOST = re.compile(r"No space left on device|Cannot allocate memory|Input/output error|Not enough (?:free )?memory", re.IGNORECASE)
# Ends the xl whose command line matches "$1". busybox may lack pkill (Debian 12's does), which shows in its status only. The brackets
# in the pattern keep pkill from matching its own shell.
_END_XL = 'pkill -f "$1" || for p in $(pidof xl); do tr "\\0" " " < "/proc/$p/cmdline" | grep -q "$1" && kill "$p"; done'


@dataclass(frozen=True)
class SaveRestoreTimes:
    """``saved`` and ``restored`` are the seconds that the toolstack took; ``domids`` are the guest's before and after."""

    saved: float
    restored: float
    domids: tuple[int, int]


def through_a_file(guest: Guest) -> SaveRestoreTimes:
    """Run ``xl save``, then ``xl restore``, resume the session and remove the save file.

    Raises GuestDied if the guest does not suspend, or does not answer after it was restored.
    """
    host, first = guest.host, guest.domid
    path = _save_file(guest)
    begun = time.monotonic()
    guest.console_will_end()
    try:
        _save(guest, path)
        saved = time.monotonic()
        guest.domid = host.toolstack.restore(path, guest.name)
    finally:
        host.transport.run(["rm", "-f", path])
    restored = time.monotonic()
    _resume(guest, "restored by xl")
    return SaveRestoreTimes(saved - begun, restored - saved, (first, guest.domid))


def continued(guest: Guest) -> float:
    """Run ``xl save -c``: the guest is suspended, written to a save file and continues in its domain. Returns the seconds.

    Raises GuestDied if the guest does not suspend. The caller must check whether it answers.
    """
    path = _save_file(guest)
    begun = time.monotonic()
    try:
        _save(guest, path, stay=True)
    finally:
        guest.host.transport.run(["rm", "-f", path])
    return time.monotonic() - begun


def migrated(guest: Guest, receiver: str = RECEIVER, target: XenHost | None = None) -> float:
    """Migrate the guest live, by default to its own host, resume the session, and return the seconds that the toolstack took.

    ``receiver`` is a shell command in dom0 that passes the guest to ``target``. The guest runs while its memory is copied, and suspends for
    the rest. Raises CannotRun if Xen cannot log the dirty pages of a PV guest. Raises GuestDied if the guest does not suspend, or does
    not answer in its new domain.
    """
    source = guest.host
    source.make_directory()
    begun = time.monotonic()
    guest.console_will_end()
    migrate = f"[x]l migrate -s  {guest.domid} "
    try:
        _while_alive(guest, lambda: source.toolstack.migrate(guest.domid, receiver), migrate, may_fail=True)
    except CommandFailed as exc:
        # xc: error: Failed to enable logdirty: 95,22,0 (22 = Invalid argument)           (tools/libs/guest/xg_sr_save.c, enable_logdirty())
        if "Failed to enable logdirty" in exc.stderr and guest.config.guest_type == "pv":
            raise CannotRun(
                "needs a Xen that logs the dirty pages of a PV guest", hint="fxh run lifecycle -k migrated --type pvh"
            ) from exc
        raise guest.hang(f"xl migrate: {exc.stderr.strip() or exc.message}") from exc
    seconds = time.monotonic() - begun
    guest.host = target or source
    row = guest.state()
    if row is None:
        raise guest.hang(f"xl migrate ended without an error, and {guest.host.facts.name} has no domain {guest.name}")
    guest.domid = row.domid
    _resume(guest, "migrated by xl")
    return seconds


def failed(guest: Guest) -> str:
    """Run ``xl save`` into a save file that cannot grow enough: the toolstack continues the suspended guest. Returns xl's messages.

    Raises GuestDied if the guest does not suspend. The caller must check whether it answers.
    """
    path = _save_file(guest)
    try:
        _save(guest, path, limit=_TOO_LITTLE)
    except CommandFailed as exc:
        if "resuming domain" not in exc.stderr or "acknowledge" in exc.stderr:
            raise guest.hang(f"xl save: {exc.stderr.strip() or exc.message}") from exc
        return exc.stderr
    finally:
        guest.host.transport.run(["rm", "-f", path])
    raise InfrastructureError(f"xl save wrote {guest.name} to a file of at most {_TOO_LITTLE} bytes")


def _resume(guest: Guest, how: str) -> None:
    """Attach to the console of the guest's new domain. Raises GuestDied if its shell does not answer."""
    guest.reattach()
    try:
        guest.resume(Deadline(_RESUMED * guest.scale))
    except DeadlineExpired as exc:
        raise guest.hang(f"{how}, it does not answer: {exc.message}") from exc


def _save_file(guest: Guest) -> str:
    """The path of the save file, in a directory of dom0 that exists."""
    return f"{guest.host.make_directory()}/{guest.name}.save"


def _save(guest: Guest, path: str, *, stay: bool = False, limit: int = 0) -> None:
    """Run ``xl save``. Raises CommandFailed if it fails with a ``limit`` of the save file, and the errors of :func:`_while_alive`."""
    save = functools.partial(guest.host.toolstack.save, guest.domid, path, stay=stay, limit=limit)
    _while_alive(guest, save, f"[x]l save {'-c ' if stay else ''}{guest.domid} {path}", may_fail=bool(limit))


def _while_alive(guest: Guest, act: Callable[[], object], line: str, *, may_fail: bool = False) -> None:
    """Run ``act``, an xl whose command line in dom0 matches ``line``, a regular expression.

    Raises GuestDied as soon as the guest dies, without the minute until xl gives up, and also if xl fails. With ``may_fail`` an xl
    that fails raises CommandFailed.
    """
    errors: list[HarnessError] = []

    def run() -> None:
        try:
            act()
        except HarnessError as exc:
            errors.append(exc)

    work = threading.Thread(target=run, name=f"xl-{guest.name}", daemon=True)
    work.start()
    while work.is_alive():
        work.join(0.2)
        if guest.console.death is not None:
            # The helper ends after xl.
            guest.host.transport.run(["sh", "-c", _END_XL, "sh", line], check=False)
            work.join(_HELPER_ENDS)

            raise GuestDied(guest.console.death)
    match errors:
        case [CommandFailed() as exc] if not may_fail:
            if found := _HOST.search(exc.stderr):
                raise InfrastructureError(
                    f"xl save: {found[0]}", hint="free space in the run's directory on the host, or memory of Xen"
                ) from exc
            raise guest.hang(f"xl save: {exc.stderr.strip() or exc.message}") from exc
        case [exc]:
            raise exc
