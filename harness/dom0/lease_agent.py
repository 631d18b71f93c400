# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0: keeps a lease there for as long as its holder lives, and removes what the run made when it does not.

Sent to the host as text with the two modules that it imports, so they use nothing but the standard library of Python 3.7
(pygrub needs Python, so each dom0 has it). One argument in JSON, one JSON line a message on stdout, lines from the holder on stdin:

* ``.`` is a sign of life; without one for ``silence`` seconds, or at the end of stdin, all of the run's goes
* ``keep NAME SECONDS`` leaves that domain, and what it needs, for so long after the end
* ``end`` is an end on purpose
"""

from __future__ import annotations

import glob
import json
import os
import select
import signal
import time
from typing import Any

from harness.dom0.cleanup import NAME, belongings, domains, output, remove
from harness.dom0.lease_table import LeaseTable


class Ended(Exception):
    """Somebody asked the keeper to end."""


def say(**message: Any) -> None:
    """To the holder, if he is there still."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def reap(book: LeaseTable, dead: list[dict[str, Any]]) -> None:
    for entry in dead:
        remove(book.base, entry["run"])
        os.unlink(entry["path"])


def capacity(wish: dict[str, Any]) -> dict[str, int]:
    """What our leases may take in all: MiB of memory, vCPUs, MiB of disk."""
    info = {}
    for line in output("xl", "info").splitlines():
        key, _, value = line.partition(":")
        info[key.strip()] = value.strip()
    ours = sum(row[2] for row in domains() if NAME.match(row[0]))
    space = os.statvfs(wish["base"])
    used = sum(os.stat(p).st_blocks * 512 for p in glob.glob(wish["base"] + "/run-*/*"))
    return {
        "memory": wish.get("capacity_memory") or int(info.get("free_memory", 0)) + ours,
        "vcpus": wish.get("capacity_vcpus") or 4 * int(info.get("nr_cpus", 1)),
        "disk": (space.f_bavail * space.f_frsize + used) >> 20,
    }


class Holder:
    """One lease, from its ticket to its end."""

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish, self.book = wish, LeaseTable(wish["base"])
        self.entry = {key: wish[key] for key in ("run", "who", "what", "memory", "vcpus", "disk")}
        self.entry.update(state="waiting", pid=os.getpid(), since=time.time())
        self.kept: dict[str, float] = {}
        self._heard, self._rest = time.monotonic(), b""
        self._told = ""
        self._known: dict[str, int] | None = None
        self._holders: list[str] = []
        self._asked = 0.0

    def run(self) -> None:
        self._supersede()
        with self.book:
            self.path, self.descriptor = self.book.make(self.entry)
        try:
            if self._acquire():
                self._hold()
        except Ended:
            pass
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            self._end()

    def _supersede(self) -> None:
        """A holder who lost his connection comes again: what he had before is removed now, not after its silence."""
        old = self.wish.get("supersede")
        with self.book:
            living, _ = self.book.entries()
            for entry in living:
                if old and entry["run"] == old:
                    say(state="ending", run=old)
                    os.kill(entry["pid"], signal.SIGTERM)
        end = time.monotonic() + 30
        while old and time.monotonic() < end:
            with self.book:
                living, dead = self.book.entries()
                reap(self.book, [entry for entry in dead if entry["run"] == old])
            if not any(entry["run"] == old for entry in living):
                return
            time.sleep(0.2)

    def _acquire(self) -> bool:
        while True:
            with self.book:
                state = self._try()
            if state == "held":
                return True
            if state:
                return False
            self._listen(self.wish["poll"])

    def _try(self) -> str:
        """``held``, or why it never will be, or "" to try again."""
        living, dead = self.book.entries(self.path)
        reap(self.book, dead)
        held = [entry for entry in living if entry["state"] == "held"]
        limit = self._limit([entry["path"] for entry in held])
        ahead = [entry for entry in living if entry["state"] == "waiting" and entry["path"] < self.path]
        names = ("memory", "vcpus", "disk")
        short = [name for name in names if self.wish[name] > limit[name]]
        if short:
            say(state="refused", capacity=limit, short=short)
            return "refused"
        left = {name: limit[name] - sum(entry[name] for entry in held) for name in names}
        short = [name for name in names if self.wish[name] > left[name]]
        slots = {entry["slot"] for entry in held}
        if not ahead and not short and len(slots) < 256:
            self.entry.update(state="held", slot=min(set(range(256)) - slots), since=time.time())
            self.book.write(self.descriptor, self.entry)
            for path in self.book.files():
                os.unlink(path)
            say(state="held", slot=self.entry["slot"], capacity=limit, pid=os.getpid())
            return "held"
        if self.wish.get("nowait"):
            say(state="busy", ahead=len(ahead), short=short)
            return "busy"
        told = json.dumps([len(ahead), short])
        if told != self._told:
            self._told = told
            say(state="waiting", ahead=len(ahead), short=short)
        return ""

    def _limit(self, held: list[str]) -> dict[str, int]:
        """To ask xl costs: only when others' leases changed, and now and then for what is not ours."""
        if self._known is None or held != self._holders or time.monotonic() > self._asked + 30:
            self._known, self._holders, self._asked = capacity(self.wish), held, time.monotonic()
        return self._known

    def _hold(self) -> None:
        wanted = False
        while True:
            self._listen(10 * self.wish["poll"])
            if not wanted:
                with self.book:
                    living, _ = self.book.entries(self.path)
                if any(entry.get("state") == "waiting" for entry in living):
                    wanted = True
                    say(state="wanted")

    def _listen(self, seconds: float) -> None:
        """Hear the holder for so long. Raises Ended when he is gone, or wants to go."""
        ready, _, _ = select.select([0], [], [], seconds)
        if ready:
            data = os.read(0, 4096)
            if not data:
                raise Ended
            self._heard = time.monotonic()
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()
            for line in lines:
                words = line.decode("utf-8", "replace").split()
                if words[:1] == ["end"]:
                    raise Ended
                if words[:1] == ["keep"] and len(words) == 3 and words[1].startswith("fxh-%s-" % self.wish["run"]):
                    self.kept[words[1]] = float(words[2])
                    say(state="kept", domain=words[1])
        elif time.monotonic() - self._heard > self.wish["silence"]:
            raise Ended

    def _end(self) -> None:
        end = time.monotonic() + max(self.kept.values(), default=0.0)
        if self.kept:
            self.entry.update(what="keeps %s" % ", ".join(sorted(self.kept)))
            with self.book:
                self.book.write(self.descriptor, self.entry)
            remove(self.wish["base"], self.wish["run"], tuple(self.kept))
        while time.monotonic() < end and any(row[0] in self.kept for row in domains()):
            time.sleep(min(5.0, max(0.1, end - time.monotonic())))
        left = remove(self.wish["base"], self.wish["run"])
        with self.book:
            os.unlink(self.path)
        say(state="ended", left=left)


def survey(wish: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The host as `fxh hosts` and `fxh clean` see it, and the runs of ours that nobody owns."""
    base = wish["base"]
    with LeaseTable(base) as book:
        living, dead = book.entries()
        old = book.files()
        runs = {match.group(1) for match in (NAME.match(row[0]) for row in domains()) if match}
        runs |= {os.path.basename(path)[4:] for path in glob.glob(base + "/run-*")}
        orphans = sorted((runs | {entry["run"] for entry in dead}) - {entry["run"] for entry in living})
        found = {
            "capacity": capacity(wish),
            "now": time.time(),
            "leases": living,
            "orphans": {run: belongings(base, run) for run in orphans},
            "files": old,
        }
        if wish["mode"] == "clean":
            reap(book, dead)
            found["left"] = {run: left for run, left in ((run, remove(base, run)) for run in orphans) if left}
            for path in old:
                os.unlink(path)
    return found, orphans


def terminated(number: int, frame: object) -> None:
    raise Ended


def main(wish: dict[str, Any]) -> None:
    os.makedirs(wish["base"], mode=0o700, exist_ok=True)
    if wish["mode"] != "hold":
        say(**survey(wish)[0])
        return
    # A process group of its own: who ends the holder's does not end the keeper, whose work begins then.
    child = os.fork()
    if child:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.waitpid(child, 0)
        return
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminated)
    try:
        Holder(wish).run()
    except Exception as exc:
        say(state="error", why="%s: %s" % (type(exc).__name__, exc))
    os._exit(0)
