# SPDX-License-Identifier: BSD-2-Clause
"""Loads of a random walk: they run in the background of the guest while the next steps happen."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from harness.errors import InfrastructureError, LabDead, TransportError
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
        target = "/tmp/fxh-copy" if name == "file" else f"/dev/{self.guest.os.disk_name(name)}"
        new, out = f"/tmp/fxh-new-{name}", self._out(name)
        blocks = f"bs=64k count={SIZE >> 16}"
        script = (
            f"dd if=/dev/urandom of={new} {blocks}; fxh_digest < {new} > {out}.part; "
            f"for i in 1 2 3; do dd if={new} of={target} {blocks} conv=notrunc; sync; done; {self.guest.os.uncached_command}; "
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
        self._link: Link | None = None
        self._way, self._port = "", 6001
        # Seconds for which one end may stand still.
        self._patience = PATIENCE * guest.scale

    @property
    def running(self) -> bool:
        return self._peer is not None

    def start(self, link: Link, way: str) -> None:
        """Start a stream ``to dom0`` or ``to the guest``."""
        self.wait()
        self._port += 1
        self._way, self._link = way, link
        if way == "to dom0":
            self._peer = link.peer("recv", self._port, SIZE, 3 * self._patience)
            link.send(self._port, DATA, 4 * self._patience)
        else:
            self._peer = link.source(self._port, SIZE // 4, lasting=LASTING, patience=3 * self._patience)
            link.receive(self._port, 4 * self._patience)

    def poll(self) -> None:
        """Take the result of the stream if it has ended."""
        if self._peer is not None and (came := digests(self.guest.sh("cat /tmp/fxh-came 2>/dev/null; true"))):
            self._ended(came[0])

    def wait(self) -> None:
        """Wait for the end of the stream, which needs the vif. A stream that does not end is wrong."""
        limit = 2 * self._patience
        end = time.monotonic() + limit
        while self._peer is not None:
            self.poll()
            if self._peer is not None and time.monotonic() > end:
                self._fail(f"the stream does not end within {limit:.0f} s")
                self.stop()
            time.sleep(0.5 if self._peer is not None else 0)

    def _ended(self, came: str) -> None:
        assert self._peer is not None, "no stream runs"
        assert self._link is not None, "a stream has a link"
        peer, self._peer = self._peer, None
        try:
            done = peer.result(self._patience)
        except (LabDead, TransportError):
            raise
        except InfrastructureError as exc:
            self._fail(f"the guest's end has ended, dom0's has not: {exc.message}")
            peer.stop()
            return
        if self._way == "to the guest":
            lost = self._link.incomplete(done, came)
        else:
            lost = self._link.unsent(done, came)
        if lost:
            self.wrong.append(f"{self._way}: {lost}")

    def _fail(self, what: str) -> None:
        said = self._link.said() if self._link is not None else ""
        self.wrong.append(f"{self._way}: {what}{said}")

    def stop(self) -> None:
        """End dom0's side now."""
        if self._peer is not None:
            self._peer.stop()
            self._peer = None
