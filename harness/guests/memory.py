# SPDX-License-Identifier: BSD-2-Clause
"""A guest's memory: the numbers of its balloon driver, and Xen's."""

from __future__ import annotations

import time

from harness.deadline import Deadline
from harness.guests.guest import Guest
from harness.oracles.ballooning import MIB, SLACK, Sample

# The balloon has settled if it has not moved for this many seconds.
_STILL = 2.0


class Memory:
    """The memory of one running guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._path = f"/local/domain/{guest.domid}/memory/target"

    def sample(self) -> Sample:
        """The numbers of guest and Xen now, in bytes."""
        own = self.guest.os.balloon(self.guest.sh)
        row = self.guest.state()
        asked = self.guest.host.xenstore.read(self._path)
        return Sample(
            own.current, own.target, own.managed, own.free, own.unexplained,
            domain=row.memory * MIB if row else 0,
            asked=int(asked) << 10 if asked and asked.isdigit() else 0,
        )  # fmt: skip

    def ask(self, mib: int) -> None:
        """Set the target by the toolstack. Raises CommandFailed with its message."""
        self.guest.host.toolstack.mem_set(self.guest.domid, mib)

    def write(self, value: str) -> None:
        """Write ``memory/target`` directly, without the toolstack."""
        self.guest.host.xenstore.write(self._path, value)

    def settle(self, wanted: int | None = None, seconds: float = 60) -> tuple[Sample, float]:
        """Wait until the balloon has settled. Returns the sample and the seconds that it took.

        With ``wanted`` bytes: wait until two polls in turn see that value. If the guest does not reach it within ``seconds``,
        the result is the sample at that time, and the case judges it.
        """
        # Poll the guest only: Xen's count costs a process in dom0, and is needed only once the guest has settled.
        begun = time.monotonic()
        deadline = Deadline(seconds * self.guest.scale)
        last, since, still = self._current(), time.monotonic(), False
        while not deadline.expired:
            reached = wanted is None or abs(last - wanted) <= SLACK
            if reached and still and (wanted is not None or time.monotonic() - since > _STILL):
                break
            time.sleep(_STILL / 6)
            now = self._current()
            still = now == last
            if not still:
                since = time.monotonic()
            last = now
        taken = time.monotonic() - begun
        return self.sample(), taken

    def _current(self) -> int:

        return self.guest.os.balloon(self.guest.sh).current
