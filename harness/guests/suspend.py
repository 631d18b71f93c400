# SPDX-License-Identifier: BSD-2-Clause
"""A guest that is saved to a file in dom0 and restored from it: what was on its way before goes on after."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import CommandFailed, DeadlineExpired, GuestDied, HarnessError
from harness.guests.guest import Guest

# From the restored domain's first step to an answer of its shell.
_AWAKE = 60.0
# From the end of xl to that of its helper.
_GONE = 15.0
# A busybox may have no pkill (Debian 12's), and says so only by its status. The brackets in the pattern keep pkill from matching
# the shell that looks for it.
_END = 'pkill -f "$1" || for p in $(pidof xl); do tr "\\0" " " < "/proc/$p/cmdline" | grep -q "$1" && kill "$p"; done'


@dataclass(frozen=True)
class SaveRestoreTimes:
    """``saved`` and ``restored`` are the seconds that the toolstack took; ``domids`` the guest's before and after."""

    saved: float
    restored: float
    domids: tuple[int, int]


def through_a_file(guest: Guest) -> SaveRestoreTimes:
    """``xl save``, then ``xl restore``; the guest's shell is ours again afterwards. The file is removed.

    Raises GuestDied for a guest that does not suspend, or does not answer once it is back.
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
        guest.resume(Deadline(_AWAKE * guest.scale))
    except DeadlineExpired as exc:
        raise guest.hang(f"restored by xl, it does not answer: {exc.message}") from exc
    return SaveRestoreTimes(saved - begun, restored - saved, (first, guest.domid))


def _save(guest: Guest, path: str) -> None:
    """Save it; a guest that dies of that is told at once, and not when the toolstack gives it up after a minute."""
    failed: list[HarnessError] = []

    def go() -> None:
        try:
            guest.host.toolstack.save(guest.domid, path)
        except HarnessError as exc:
            failed.append(exc)

    work = threading.Thread(target=go, name=f"save-{guest.name}", daemon=True)
    work.start()
    while work.is_alive():
        work.join(0.2)
        if guest.console.death is not None:
            # Where xl is gone its helper goes, too.
            words = ["sh", "-c", _END, "sh", f"[x]l save {guest.domid} {path}"]
            guest.host.transport.run(words, check=False)
            work.join(_GONE)
            raise GuestDied(guest.console.death)
    match failed:
        case [CommandFailed() as exc]:
            raise guest.hang(f"xl save: {exc.stderr.strip() or exc.message}")
        case [exc]:
            raise exc
