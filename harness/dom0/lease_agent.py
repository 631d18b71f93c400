# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: hold a lease while its holder lives, and remove the run's resources afterwards.

    lease_agent REQUEST

REQUEST is a JSON object. Its ``mode`` is ``hold``, ``survey`` or ``clean``; :mod:`harness.hosts.lease` writes the other keys. The
program prints one JSON object a line. In ``hold`` mode it reads these lines from stdin:

* ``.`` is a heartbeat. Without any input for ``silence`` seconds, or at the end of stdin, the lease ends.
* ``keep NAME SECONDS`` keeps that domain, with everything that it needs, for SECONDS after the end of the lease.
* ``end`` ends the lease.
"""

from __future__ import annotations

import glob
import json
import os
import select
import signal
import sys
import time
from typing import Any

from harness.dom0.cleanup import NAME, domains, output, remove, resources
from harness.dom0.lease_table import LeaseTable, stats, unlink

KINDS = ("memory", "vcpus", "disk")
"""The resources that a lease reserves: MiB, number, MiB."""


class XenSilent(Exception):
    """``xl info`` does not answer, so the capacity of the host is unknown."""


class LeaseEnded(Exception):
    """The holder ended the lease or its connection, or a signal ended this process."""


def send(**message: Any) -> None:
    """Send a message to the holder, if the connection still exists."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def remove_dead(table: LeaseTable, dead: list[dict[str, Any]]) -> None:
    for entry in dead:
        remove(table.base, entry["run"])
        unlink(entry["path"])


def capacity(request: dict[str, Any]) -> dict[str, int]:
    """What all leases together may use: MiB of memory, number of vCPUs, MiB of disk.

    Raises XenSilent if that cannot be told.
    """
    info = {}
    for line in output("xl", "info").splitlines():
        key, _, value = line.partition(":")
        info[key.strip()] = value.strip()
    if not info and not (request.get("memory_limit") and request.get("vcpus_limit")):
        raise XenSilent("xl info prints nothing: xl is missing, fails, or takes more than 120 s")
    leased = sum(row[2] for row in domains() if NAME.match(row[0]))
    space = os.statvfs(request["base"])
    used = sum(found.st_blocks * 512 for _, found in stats(request["base"] + "/run-*/*"))
    return {
        "memory": request.get("memory_limit") or int(info.get("free_memory", 0)) + leased,
        "vcpus": request.get("vcpus_limit") or 4 * int(info.get("nr_cpus", 1)),
        "disk": (space.f_bavail * space.f_frsize + used) >> 20,
    }


class LeaseAgent:
    """One lease, from its place in the queue to its end."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.table = request, LeaseTable(request["base"])
        self.entry = {key: request[key] for key in ("run", "who", "what", *KINDS)}
        self.entry.update(state="waiting", pid=os.getpid(), since=time.time())
        self.kept: dict[str, float] = {}
        self._last_input, self._partial_line = time.monotonic(), b""
        self._last_message = ""
        self._capacity: dict[str, int] | None = None
        self._capacity_for: list[str] = []
        self._capacity_time = 0.0

    def run(self) -> None:
        self._supersede()
        with self.table:
            self.path, self.descriptor = self.table.add(self.entry)
        try:
            if self._acquire():
                self._hold()
        except LeaseEnded:
            pass
        except XenSilent as exc:  # before the cleanup, which waits for xl again
            send(state="silent", why=str(exc))
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            self._end()

    def _supersede(self) -> None:
        """End the earlier lease of a holder that lost its connection, so that it need not wait for the end of the silence."""
        old = self.request.get("supersede")
        with self.table:
            living, _ = self.table.entries()
            for entry in living:
                if old and entry["run"] == old:
                    send(state="ending", run=old)
                    os.kill(entry["pid"], signal.SIGTERM)
        end = time.monotonic() + 30
        while old and time.monotonic() < end:
            with self.table:
                living, dead = self.table.entries()
                remove_dead(self.table, [entry for entry in dead if entry["run"] == old])
            if not any(entry["run"] == old for entry in living):
                return
            time.sleep(0.2)

    def _acquire(self) -> bool:
        while True:
            with self.table:
                state = self._try()
            if state == "held":
                return True
            if state:
                return False
            self._receive(self.request["poll"])

    def _try(self) -> str:
        """``held``; ``refused`` or ``busy`` if the lease is denied; "" if the agent has to wait."""
        living, dead = self.table.entries(self.path)
        remove_dead(self.table, dead)
        held = [entry for entry in living if entry["state"] == "held"]
        limit = self._current_capacity([entry["path"] for entry in held])
        ahead = [entry for entry in living if entry["state"] == "waiting" and entry["path"] < self.path]
        short = [kind for kind in KINDS if self.request[kind] > limit[kind]]
        if short:
            send(state="refused", capacity=limit, short=short)
            return "refused"
        free = {kind: limit[kind] - sum(entry[kind] for entry in held) for kind in KINDS}
        short = [kind for kind in KINDS if self.request[kind] > free[kind]]
        slots = {entry["slot"] for entry in held}
        if not ahead and not short and len(slots) < 256:
            self.entry.update(state="held", slot=min(set(range(256)) - slots), since=time.time())
            self.table.write(self.descriptor, self.entry)
            for path in self.table.unused_files():
                unlink(path)
            send(state="held", slot=self.entry["slot"], capacity=limit, pid=os.getpid())
            return "held"
        if self.request.get("nowait"):
            send(state="busy", ahead=len(ahead), short=short)
            return "busy"
        message = json.dumps([len(ahead), short])
        if message != self._last_message:
            self._last_message = message
            send(state="waiting", ahead=len(ahead), short=short)
        return ""

    def _current_capacity(self, held: list[str]) -> dict[str, int]:
        """The capacity. xl is slow, so ask it only if other leases changed, or after 30 s, because other domains may have changed."""
        if self._capacity is None or held != self._capacity_for or time.monotonic() > self._capacity_time + 30:
            self._capacity, self._capacity_for, self._capacity_time = capacity(self.request), held, time.monotonic()
        return self._capacity

    def _hold(self) -> None:
        contended = False
        while True:
            self._receive(10 * self.request["poll"])
            if not contended:
                with self.table:
                    living, _ = self.table.entries(self.path)
                if any(entry.get("state") == "waiting" for entry in living):
                    contended = True
                    send(state="contended")

    def _receive(self, seconds: float) -> None:
        """Read what the holder sends within ``seconds``. Raises LeaseEnded if it ends the lease, is gone or has been silent."""
        ready, _, _ = select.select([0], [], [], seconds)
        if ready:
            data = os.read(0, 4096)
            if not data:
                raise LeaseEnded
            self._last_input = time.monotonic()
            lines = (self._partial_line + data).split(b"\n")
            self._partial_line = lines.pop()
            for line in lines:
                words = line.decode("utf-8", "replace").split()
                if words[:1] == ["end"]:
                    raise LeaseEnded
                if words[:1] == ["keep"] and len(words) == 3 and words[1].startswith("fxh-%s-" % self.request["run"]):
                    self.kept[words[1]] = float(words[2])
                    send(state="kept", domain=words[1])
        elif time.monotonic() - self._last_input > self.request["silence"]:
            raise LeaseEnded

    def _end(self) -> None:
        end = time.monotonic() + max(self.kept.values(), default=0.0)
        if self.kept:
            self.entry.update(what="keeps %s" % ", ".join(sorted(self.kept)))
            with self.table:
                self.table.write(self.descriptor, self.entry)
            remove(self.request["base"], self.request["run"], tuple(self.kept))
        while time.monotonic() < end and any(row[0] in self.kept for row in domains()):
            time.sleep(min(5.0, max(0.1, end - time.monotonic())))
        left = remove(self.request["base"], self.request["run"])
        with self.table:
            os.unlink(self.path)
        send(state="ended", left=left)


def survey(request: dict[str, Any]) -> dict[str, Any]:
    """The leases, the capacity and the orphans of this host: resources of runs without a living agent.

    In ``clean`` mode, remove the orphans and report under ``left`` what could not be removed.
    """
    base = request["base"]
    with LeaseTable(base) as table:
        living, dead = table.entries()
        unused = table.unused_files()
        try:
            surveyed = capacity(request)
        except XenSilent:  # nothing can be leased
            surveyed = dict.fromkeys(KINDS, 0)
        runs = {match.group(1) for match in (NAME.match(row[0]) for row in domains()) if match}
        runs |= {os.path.basename(path)[4:] for path in glob.glob(base + "/run-*")}
        orphans = sorted((runs | {entry["run"] for entry in dead}) - {entry["run"] for entry in living})
        found = {
            "capacity": surveyed,
            "now": time.time(),
            "leases": living,
            "orphans": {run: resources(base, run) for run in orphans},
            "files": unused,
        }
        if request["mode"] == "clean":
            remove_dead(table, dead)
            found["left"] = {run: left for run, left in ((run, remove(base, run)) for run in orphans) if left}
            for path in unused:
                unlink(path)
    return found


def _terminated(number: int, frame: object) -> None:
    raise LeaseEnded


def main() -> None:
    request = json.loads(sys.argv[1])
    os.makedirs(request["base"], mode=0o700, exist_ok=True)
    if request["mode"] != "hold":
        send(**survey(request))
        return
    # The agent leaves the process group of its ssh session: it must survive a signal to that group, to clean up after the session.
    child = os.fork()
    if child:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.waitpid(child, 0)
        return
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        LeaseAgent(request).run()
    except Exception as exc:
        send(state="error", why="%s: %s" % (type(exc).__name__, exc))
    os._exit(0)


if __name__ == "__main__":
    main()
