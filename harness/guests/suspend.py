# SPDX-License-Identifier: BSD-2-Clause
"""Saving a guest to a file in dom0 and restoring it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import CommandFailed, DeadlineExpired, GuestDied, HarnessError
from harness.guests.guest import Guest

# Seconds from the start of the restored domain to an answer of its shell.
_RESUMED = 60.0
# Seconds from the end of xl to the end of its helper.
_HELPER_ENDS = 15.0
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
    """Run ``xl save``, then ``xl restore``, resume the session and remove the file.

    Raises GuestDied if the guest does not suspend, or does not answer after it was restored.
    """
    host, path, first = guest.host, f"{guest.host.directory}/{guest.name}.save", guest.domid
    host.prepare()
    begun = time.monotonic()
    guest.console_will_end()
    _save(guest, path)
    saved = time.monotonic()
    try:
        guest.domid = host.toolstack.restore(path, guest.name)
    finally:
        host.transport.run(["rm", "-f", path])
    restored = time.monotonic()
    guest.reattach()
    try:
        guest.resume(Deadline(_RESUMED * guest.scale))
    except DeadlineExpired as exc:
        raise guest.hang(f"restored by xl, it does not answer: {exc.message}") from exc
    return SaveRestoreTimes(saved - begun, restored - saved, (first, guest.domid))


def _save(guest: Guest, path: str) -> None:
    """Run ``xl save``. Raises GuestDied as soon as the guest dies, not only when xl gives up after a minute."""
    failed: list[HarnessError] = []

    def save() -> None:
        try:
            guest.host.toolstack.save(guest.domid, path)
        except HarnessError as exc:
            failed.append(exc)

    work = threading.Thread(target=save, name=f"save-{guest.name}", daemon=True)
    work.start()
    while work.is_alive():
        work.join(0.2)
        if guest.console.death is not None:
            # The helper ends after xl.
            command = ["sh", "-c", _END_XL, "sh", f"[x]l save {guest.domid} {path}"]
            guest.host.transport.run(command, check=False)
            work.join(_HELPER_ENDS)

            raise GuestDied(guest.console.death)
    match failed:
        case [CommandFailed() as exc]:
            raise guest.hang(f"xl save: {exc.stderr.strip() or exc.message}")
        case [exc]:
            raise exc
