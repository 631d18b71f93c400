# SPDX-License-Identifier: BSD-2-Clause
"""A guest's memory from both sides: its balloon driver's numbers, and Xen's."""

from __future__ import annotations

import time

from harness.deadline import Deadline
from harness.guests.guest import Guest
from harness.oracles.ballooning import MIB, SLACK, Sample

# It has settled when it has not moved for this long, in seconds.
_STILL = 2.0


class Memory:
    """Of one running guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._path = f"/local/domain/{guest.domid}/memory/target"

    def sample(self) -> Sample:
        own = self.guest.profile.balloon(self.guest.sh)
        row = self.guest.state()
        asked = self.guest.host.xenstore.read(self._path)
        return Sample(
            own.current, own.target, own.managed, own.free,
            domain=row.memory * MIB if row else 0,
            asked=int(asked) << 10 if asked and asked.isdigit() else 0,
        )  # fmt: skip

    def ask(self, mib: int) -> None:
        """By the toolstack. Raises CommandFailed with its words."""
        self.guest.host.toolstack.mem_set(self.guest.domid, mib)

    def write(self, value: str) -> None:
        """Past the toolstack: ``memory/target`` as it is."""
        self.guest.host.xenstore.write(self._path, value)

    def settle(self, wanted: int | None = None, seconds: float = 60) -> tuple[Sample, float]:
        """The sample when the guest stands still, and after how many seconds.

        Where ``wanted`` bytes are given: when it is there in two looks, not only on its way past. A guest that does not get
        there within ``seconds`` is returned as it is then: the case judges.
        """
        # On its way only the guest is asked: Xen's count costs a process in dom0, and is of interest where the guest stands still.
        begun = time.monotonic()
        deadline = Deadline(seconds * self.guest.scale)
        last, since, stands = self._stands_at(), time.monotonic(), False
        while not deadline.expired:
            there = wanted is None or abs(last - wanted) <= SLACK
            if there and stands and (wanted is not None or time.monotonic() - since > _STILL):
                break
            time.sleep(_STILL / 6)
            now = self._stands_at()
            stands = now == last
            if not stands:
                since = time.monotonic()
            last = now
        taken = time.monotonic() - begun
        return self.sample(), taken

    def _stands_at(self) -> int:
        return self.guest.profile.balloon(self.guest.sh).current
