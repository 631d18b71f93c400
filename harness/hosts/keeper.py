"""Runs in dom0: keeps a lease there for as long as its holder lives, and removes what the run made when it does not.

Sent to the host as text, so it uses nothing but the standard library of Python 3.7 (pygrub needs Python, so each dom0 has
it). One argument in JSON, one JSON line a message on stdout, lines from the holder on stdin:

* ``.`` is a sign of life; without one for ``silence`` seconds, or at the end of stdin, all of the run's goes
* ``keep NAME SECONDS`` leaves that domain, and what it needs, for so long after the end
* ``end`` is an end on purpose

A lease is a file in ``<base>/leases`` that its keeper has locked (flock): the kernel gives the lock back when the process
dies, however it dies, and no number is taken for a living process that is not. The numbers in front are tickets: who came
first is served first.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

NAME = re.compile(r"fxh-([a-z0-9]{1,16})-\d+-")
# For so long an image put here for several runs is kept after its last use.
FILES_DAYS = 14


class Ended(Exception):
    """Somebody asked the keeper to end."""


def say(**message: Any) -> None:
    """To the holder, if he is there still."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def output(*argv: str) -> str:
    """What a tool prints, or "" where it fails or is not there."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def domains() -> list[tuple[str, int, int, int]]:
    """(name, domid, MiB, vCPUs) of all domains."""
    found = []
    for line in output("xl", "list").splitlines():
        match = re.match(r"(\S*)\s+(\d+)\s+(\d+)\s+(\d+)\s+[-rbpscdwS?]{6}\s", line)
        if match:
            found.append((match.group(1), int(match.group(2)), int(match.group(3)), int(match.group(4))))
    return found


def loops(directory: str) -> list[str]:
    """Loop devices whose file lies in ``directory``."""
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(path) as file:
                if file.read().startswith(directory + "/"):
                    found.append("/dev/" + path.split("/")[3])
        except OSError:
            continue
    return found


def watchers(directory: str, kept: tuple[str, ...]) -> list[int]:
    """xl's processes that wait for the end of domains configured in ``directory``, but for those called ``kept``.

    They build a domain anew where its on_* says so, two seconds after its end: until then none is listed (xl_vmcontrol.c).
    """
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        theirs = {os.path.basename(word)[: -len(".cfg")] for word in words if word.startswith(directory + "/")}
        if os.path.basename(words[0]) == "xl" and theirs - set(kept):
            found.append(int(path.split("/")[2]))
    return found


def volumes(run: str) -> list[tuple[str, ...]]:
    """Commands that remove the run's logical volumes and zvols."""
    found: list[tuple[str, ...]] = []
    for line in output("lvs", "--noheadings", "-o", "vg_name,lv_name").splitlines():
        words = line.split()
        if len(words) == 2 and words[1].startswith("fxh-%s-" % run):
            found.append(("lvremove", "-f", words[0] + "/" + words[1]))
    for name in output("zfs", "list", "-H", "-t", "volume", "-o", "name").split("\n"):
        if name.rpartition("/")[2].startswith("fxh-%s-" % run):
            found.append(("zfs", "destroy", name))
    return found


class Book:
    """The leases of this host. Use it within ``with``: that takes the lock of all."""

    def __init__(self, base: str) -> None:
        self.base, self.directory = base, base + "/leases"
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self._lock = os.open(base + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Book:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *exc: object) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def paths(self) -> list[str]:
        return sorted(glob.glob(self.directory + "/[0-9]*.json"))

    def make(self, entry: dict[str, Any]) -> tuple[str, int]:
        """A new entry at the end of the queue; returns its path and the descriptor that holds it."""
        counter = self.base + "/ticket"
        try:
            with open(counter) as file:
                ticket = int(file.read() or 0) + 1
        except (OSError, ValueError):
            ticket = 1
        ticket = max([ticket, *(int(os.path.basename(p).split("-")[0]) + 1 for p in self.paths())])
        with open(counter, "w") as file:
            file.write(str(ticket))
        path = "%s/%08d-%s.json" % (self.directory, ticket, entry["run"])
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.write(descriptor, entry)
        return path, descriptor

    @staticmethod
    def write(descriptor: int, entry: dict[str, Any]) -> None:
        """In place: another file of that name would not be the one that is locked."""
        data = json.dumps(entry).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)

    def entries(self, mine: str = "") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The living, in the order of their tickets, and the dead. Each has its ``path``."""
        living, dead = [], []
        for path in self.paths():
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                try:
                    entry = json.loads(os.read(descriptor, 1 << 16) or b"{}")
                except ValueError:
                    entry = {}
                entry["path"] = path
                entry.setdefault("run", os.path.basename(path)[9:-5])
                if path == mine:
                    living.append(entry)
                    continue
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    dead.append(entry)
                except OSError:
                    living.append(entry)
            finally:
                os.close(descriptor)
        return living, dead

    def files(self) -> list[str]:
        """Images that no run has used for long."""
        old = time.time() - FILES_DAYS * 86400
        return [path for path in glob.glob(self.base + "/files/*") if os.stat(path).st_mtime < old]


def belongings(base: str, run: str) -> list[str]:
    """What there is of a run, in words: what :func:`remove` would remove."""
    directory = "%s/run-%s" % (base, run)
    found = ["domain %s" % row[0] for row in domains() if row[0].startswith("fxh-%s-" % run)]
    found += ["loop %s" % device for device in loops(directory)]
    found += ["volume %s" % argv[-1] for argv in volumes(run)]
    found += ["directory %s" % directory] if os.path.isdir(directory) else []
    return found


def logs(name: str) -> list[str]:
    """What Xen's tools wrote of the domains called ``name`` (a glob). The bootloader's log is named after the domid alone."""
    found = []
    for path in glob.glob("/var/log/xen/xl-%s.log*" % name):
        found.append(path)
        # Waiting for domain fxh-1a2b3c-1-control (domid 12) to die [pid 345]
        with open(path, "rb") as file:
            for domid in re.findall(rb"^Waiting for domain .* \(domid (\d+)\)", file.read(), re.MULTILINE):
                found += glob.glob("/var/log/xen/bootloader.%d.log*" % int(domid))
    for pattern in ("console/guest-%s.log*", "qemu-dm-%s.log*"):
        found += glob.glob("/var/log/xen/" + pattern % name)
    return sorted(set(found))


def remove(base: str, run: str, kept: tuple[str, ...] = ()) -> list[str]:
    """Remove all of a run's but the domains ``kept``; returns what could not be removed."""
    directory = "%s/run-%s" % (base, run)
    for _ in range(3):
        # First: a domain that is destroyed while its watcher builds it leaves what the watcher writes to xenstore afterwards.
        for number in watchers(directory, kept):
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        left = [row for row in domains() if row[0].startswith("fxh-%s-" % run) and row[0] not in kept]
        for row in left:
            output("xl", "destroy", str(row[1]))
        if not left:
            break
    if kept:
        return []
    for device in loops(directory):
        output("losetup", "-d", device)
    for argv in volumes(run):
        output(*argv)
    shutil.rmtree(directory, ignore_errors=True)
    for path in logs("fxh-%s-*" % run):
        os.unlink(path)
    return belongings(base, run)


def reap(book: Book, dead: list[dict[str, Any]]) -> None:
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
        self.wish, self.book = wish, Book(wish["base"])
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
    with Book(base) as book:
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


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))
