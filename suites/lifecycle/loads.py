# SPDX-License-Identifier: BSD-2-Clause
"""Loads of a random walk: they run in the background of the guest while the next steps happen."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from harness.errors import InfrastructureError
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.guests.peer import Peer

DATA = "/tmp/fxh-data"
"""A file of random bytes in the guest, which must keep its content."""
# Bytes of the file and of a disk's load, seconds that dom0 sends, and seconds for which a load may stand still.
SIZE, LASTING, PATIENCE = 1 << 20, 6, 120
# fxh_digest prints 32 hex digits, then perhaps a name.
_DIGEST = re.compile(r"\b[0-9a-f]{32}\b")


def digests(text: str) -> list[str]:
    """The md5 digests in the output of ``fxh_digest``."""
    return _DIGEST.findall(text)


@dataclass
class DiskLoads:
    """Writes to disks and to files in the guest's background, each followed by a read. One for each target at a time."""

    guest: Guest
    running: set[str] = field(default_factory=set)
    written: dict[str, str] = field(default_factory=dict)
    """The digest of the last load by target."""
    wrong: list[str] = field(default_factory=list)

    def start(self, name: str) -> None:
        """Write new random data over the disk with vdev ``name``, or to the file ``file``, and read it back."""
        self.wait(name)
        target = "/tmp/fxh-copy" if name == "file" else f"/dev/{self.guest.profile.disk_name(name)}"
        new, out = f"/tmp/fxh-new-{name}", self._out(name)
        blocks = f"bs=64k count={SIZE >> 16}"
        script = (
            f"dd if=/dev/urandom of={new} {blocks}; fxh_digest < {new} > {out}.part; "
            f"for i in 1 2 3; do dd if={new} of={target} {blocks} conv=notrunc; sync; done; {self.guest.profile.uncached_command}; "
            f"dd if={target} {blocks} | fxh_digest >> {out}.part; rm {new}; mv {out}.part {out}"
        )
        self.guest.sh(f"rm -f {out}; ( {script} ) > /dev/null 2>&1 &")
        self.running.add(name)

    def poll(self) -> None:
        """Take the results of the loads that have ended."""
        if not self.running:
            return
        text = self.guest.sh(
            "; ".join(f"echo @{name}; cat {self._out(name)} 2>/dev/null" for name in sorted(self.running)) + "; true"
        )
        for part in text.split("@")[1:]:
            name, _, rest = part.partition("\n")
            if found := digests(rest):
                self._ended(name.strip(), found)

    def _ended(self, name: str, found: list[str]) -> None:
        self.running.discard(name)
        self.written[name] = found[0]
        if found[0] != found[-1] or len(found) != 2:
            self.wrong.append(
                f"{name}: {SIZE} bytes with digest {found[0]} were written, {' '.join(found[1:]) or 'nothing'} was read"
            )

    def wait(self, *names: str) -> None:
        """Wait for the end of these loads, of all without a name. Raises GuestDied (a hang) if one does not end."""
        deadline = self.guest.deadline(PATIENCE)
        while wanted := self.running & set(names or self.running):
            self.poll()
            if not self.running & wanted:
                continue
            if deadline.expired:
                raise deadline.expire(f"the load on {', '.join(sorted(wanted))} to end")
            time.sleep(0.5)

    def _out(self, name: str) -> str:
        return f"/tmp/fxh-load-{name}"


class NetLoad:
    """One TCP stream between dom0 and the guest, in the background of both."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.wrong: list[str] = []
        self._peer: Peer | None = None
        self._way, self._port = "", 6001

    @property
    def running(self) -> bool:
        return self._peer is not None

    def start(self, link: Link, way: str) -> None:
        """Start a stream ``to dom0`` or ``to the guest``."""
        self.wait()
        self._port += 1
        self._way = way
        nc = f"{link.nc(4 * PATIENCE)} {link.here} {self._port}"
        if way == "to dom0":
            self._peer = link.peer("recv", self._port, SIZE)
            script = f"{nc} < {DATA} > /dev/null; fxh_digest < {DATA} > /tmp/fxh-came"
        else:
            self._peer = link.source(self._port, SIZE // 4, lasting=LASTING, patience=3 * PATIENCE)
            script = f"{nc} < /dev/null | fxh_digest > /tmp/fxh-came.part; mv /tmp/fxh-came.part /tmp/fxh-came"
        self.guest.sh(f"rm -f /tmp/fxh-came; ( {script} ) > /dev/null 2>&1 &")

    def poll(self) -> None:
        """Take the result of the stream if it has ended."""
        if self._peer is not None and (came := digests(self.guest.sh("cat /tmp/fxh-came 2>/dev/null; true"))):
            self._ended(came[0])

    def wait(self) -> None:
        """Wait for the end of the stream, which needs the vif. A stream that does not end is wrong."""
        end = time.monotonic() + 2 * PATIENCE * self.guest.scale
        while self._peer is not None:
            self.poll()
            if self._peer is not None and time.monotonic() > end:
                self.wrong.append(f"{self._way}: the stream does not end within {2 * PATIENCE * self.guest.scale:.0f} s")
                self.stop()
            time.sleep(0.5 if self._peer is not None else 0)

    def _ended(self, came: str) -> None:
        assert self._peer is not None, "no stream runs"
        peer, self._peer = self._peer, None
        try:
            done = peer.result(PATIENCE)
        except InfrastructureError as exc:
            self.wrong.append(f"{self._way}: the guest's end has ended, dom0's has not: {exc.message}")
            peer.stop()
            return
        if done.error or came != done.md5:
            error = done.error or "no error"
            self.wrong.append(f"{self._way}: dom0 moved {done.bytes} bytes with digest {done.md5} ({error}), the guest {came}")

    def stop(self) -> None:
        """End dom0's side now."""
        if self._peer is not None:
            self._peer.stop()
            self._peer = None
