# SPDX-License-Identifier: BSD-2-Clause
"""Helpers that the lifecycle cases share."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable

from harness.errors import InfrastructureError
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.guests.memory import Memory
from harness.oracles.finding import finding
from harness.xen import events


def connected(guest: Guest) -> dict[str, str]:
    """Preparation of a guest: give it an address and wait until dom0 and the guest reach each other."""
    link = Link(guest).up()
    assert link.wait_up(), finding(
        test="an address for the guest's interface",
        observed=f"{guest.name} does not reach dom0 over {link.vif}",
        expected="dom0 and the guest reach each other",
        reference=guest.os.source("netfront"),
    )
    return {"interface": link.interface}


def ready(guest: Guest) -> dict[str, str | int]:
    """Preparation of a guest: an address, and a balloon that stands still."""
    return {**connected(guest), "balloon": Memory(guest).settle()[0].current}


def channels(guest: Guest) -> int:
    """How many event channels to another domain the guest has, by Xen's count. It always has one for its console.

    Raises InfrastructureError if Xen's log is too small for the dump.
    """
    count = Counter(channel.domain for channel in events.dump(guest.host.transport))[guest.domid]
    if not count:
        raise InfrastructureError(
            f"Xen's log has no event channels of domain {guest.domid}", hint="enlarge conring_size on Xen's command line"
        )
    return count


class InBackground:
    """Runs commands in the background of the guest's shell, because a command that never ends would block the shell."""

    def __init__(self, guest: Guest, seconds: float) -> None:
        """Each command may take ``seconds`` on a machine of full speed."""
        self.guest, self.seconds = guest, seconds
        self._number = 0

    def __call__(self, command: str) -> str:
        """The output of ``command``, whatever its exit status. Raises GuestDied (a hang) if it does not end in time."""
        return self.start(command)()

    def start(self, command: str) -> Callable[[], str]:
        """Start ``command``. Returns a function that waits for its end and returns its output; see :meth:`__call__`."""
        self._number += 1
        out = f"/tmp/fxh-out-{self._number}"
        self.guest.sh(f"( ( {command} ) > {out} 2>&1; echo > {out}.end ) > /dev/null 2>&1 &")
        return functools.partial(self._result, command, out)

    def _result(self, command: str, out: str) -> str:
        end = time.monotonic() + self.seconds * self.guest.scale
        while "yes" not in self.guest.run(f"[ -e {out}.end ] && echo yes", check=False).text:
            if time.monotonic() > end:
                raise self.guest.hang(f"`{command}` does not end within {self.seconds * self.guest.scale:.0f} s")
            time.sleep(0.3)
        return self.guest.sh(f"cat {out}; rm -f {out} {out}.end")
