# SPDX-License-Identifier: BSD-2-Clause
"""A lab as a plain remote host: reached by ssh with an ordinary configuration, over links that the test can cut."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import paths
from harness.deadline import ConditionNotMet, Deadline
from harness.lab import registry

FXH = [sys.executable, "-m", "harness.cli"]

# Everything below /var/lib/fxh except the lease table and the images that are kept for the next run.
_LEFT = """
xl list; ls -d /var/lib/fxh/* | grep -vxE '/var/lib/fxh/(files|leases|lock|ticket)'; ls -d /var/lib/fxh/leases/*
ls -d /tmp/fxh* /run/fxh-* /var/log/xen/*fxh-* /var/log/xen/console/*fxh-* /dev/mapper/*fxh-* 2>/dev/null
cat /sys/block/loop*/loop/backing_file; true
"""
_HOLDS = """
echo dom0-used $(awk '/^MemTotal/{t=$2} /^MemAvailable/{a=$2} END{print t-a}' /proc/meminfo)
for p in xenstored xenconsoled; do
    echo $p $(awk '/^VmRSS/{print $2}' /proc/$(pidof $p)/status)
    for d in /proc/$(pidof $p)/fd/*; do echo "- $p-fds $(readlink $d)"; done
done
# Kernel threads have no command line; leave them out, because they come and go. Do not use a pipe: its processes might be listed.
all=$(grep -lsa . /proc/[0-9]*/cmdline); for c in $all; do echo "- processes $(tr '\\0' ' ' 2>/dev/null <$c)"; done
echo loops $(ls -d /sys/block/loop*/loop 2>/dev/null | wc -l)
echo domains $(xl list | wc -l)
echo xenstore $(xenstore-ls -f / | wc -l)
echo files $(find /tmp /var/lib/fxh /var/lib/xen /var/log /run -type f | wc -l)
echo disk $(df -Pk /var/lib | awk 'NR==2{print $3}')
echo xen-used $(xl info | awk '/^total_memory/{t=$3} /^free_memory/{f=$3} END{print t-f}')
"""


@dataclass(frozen=True)
class Holds:
    """The resources in use in dom0: KiB of memory in total (without caches) and of daemons, and counts of other things."""

    counts: dict[str, float]
    # For counted things that have names: how many of each name.
    named: dict[str, Counter[str]]

    def more_than(self, before: Holds, names: Sequence[str]) -> str:
        """A description of those ``names`` whose count is higher than before, or ""."""
        complaints = []
        for name in names:
            if self.counts[name] > before.counts[name]:
                new = self.named.get(name, Counter()) - before.named.get(name, Counter())
                complaints.append(f"{name}: {before.counts[name]:.0f} before, {self.counts[name]:.0f} after {dict(new) or ''}")
        return "; ".join(complaints)


def read_holds(listing: str) -> Holds:
    """Parse the output of ``_HOLDS``: lines ``NAME COUNT``, or ``- NAME ITEM`` for each counted item."""
    counts: dict[str, float] = {}
    named: dict[str, Counter[str]] = {}
    for line in listing.splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[0] == "-":
            # socket:[12] and pipe:[34] have unique numbers; remove them.
            named.setdefault(words[1], Counter())[re.sub(r"\[\d+\]", "", words[2]).strip()] += 1
        elif len(words) == 2 and words[1].isdigit():
            counts[words[0]] = float(words[1])
    return Holds(counts | {name: float(sum(ones.values())) for name, ones in named.items()}, named)


class Link:
    """A TCP proxy on loopback. While it is cut, it closes every connection."""

    def __init__(self, port: int = 0) -> None:
        self.target = port
        self._cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._pairs: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.target), timeout=5)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._cut:
                    raise OSError
                self._flows.wait()
                far = self._connect()
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                self._flows.wait()
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Stop all data without closing anything: connections stay open, and new ones are accepted but get no answer."""
        self._flows.clear()

    def cut(self) -> None:
        self._cut = True
        for link in self._pairs:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def restore(self) -> None:
        self._cut = False
        self._flows.set()

    def close(self) -> None:
        self.cut()
        self._flows.set()
        self._server.close()


@contextlib.contextmanager
def remote_host(name: str) -> Iterator[Remote]:
    """A lab of this process as a remote host, with its files in a temporary directory. Both are removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f"fxh-{name}-") as directory:
        remote = Remote(Path(directory), f"{name}-{os.getpid()}")
        yield remote
        remote.remove()


class Run:
    """A running fxh run."""

    def __init__(self, process: subprocess.Popen[str], reports: Path) -> None:
        self.process, self.reports = process, reports

    def end(self, seconds: float = 600) -> int:
        self.out, _ = self.process.communicate(timeout=seconds)
        print(self.out)
        return self.process.returncode

    @property
    def latest(self) -> Path:
        return self.reports / "latest"

    @property
    def all_cases(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.latest.glob("cases/*/case.json")]

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return {case["case"]: case for case in self.all_cases}

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: case["outcome"] for name, case in self.cases.items()}

    def wait_for(self, path: Path, seconds: float = 300) -> None:
        def check() -> None:
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended early:\n{self.process.communicate()[0]}")
            if not path.exists():
                raise ConditionNotMet(f"no {path.name} yet")

        Deadline(seconds).wait(path.name, check, 0.2)


class Remote:
    """A kept lab, and a home directory whose ssh configuration knows it as the hosts ``one`` and ``two``."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name, self.directory = name, directory
        self.one, self.two = Link(), Link()
        self.environment = {
            **os.environ,
            "HOME": str(directory),
            # The home directory differs, but the labs are the same.
            "FXH_STORE": str(paths.store()),
            "FXH_RUNTIME": str(paths.runtime()),
            "FXH_CONFIG": str(directory / "fxh.toml"),
            "FXH_TEST": str(directory / "marks"),
            "FXH_RUN_LEASE_WAIT": "240",
        }
        try:
            self.fxh("lab", "up", name, "--keep")
            self.configure()
        except BaseException:
            self.remove()  # a kept lab is not removed with its owner
            raise

    def configure(self) -> None:
        record, where = registry.read(self.name), registry.directory(self.name)
        assert record is not None
        self.one.target = self.two.target = record.ssh_port
        ssh = self.directory / ".ssh"
        ssh.mkdir(exist_ok=True)
        key = ssh / "id_lab"
        key.touch(mode=0o600)
        key.write_text((where / "id_ed25519").read_text())
        links = (("one", self.one), ("two", self.two))
        (ssh / "known_hosts").write_text("".join(f"[127.0.0.1]:{link.port} {record.host_key}\n" for _, link in links))
        (ssh / "config").write_text(
            "".join(f"Host {name}\n  HostName 127.0.0.1\n  Port {link.port}\n  IdentityFile {key}\n" for name, link in links)
        )
        (self.directory / "fxh.toml").write_text('[hosts.one]\ntags = ["all"]\n[hosts.two]\ntags = ["all"]\n')

    def reset(self) -> None:
        """Restore dom0 to its initial state."""
        for mark in (self.directory / "marks").glob("*"):
            mark.unlink()
        (self.directory / "marks").mkdir(exist_ok=True)
        self.one.cut()
        self.two.cut()
        if registry.state(self.name) == "up":
            self.fxh("lab", "restore", self.name)
        else:
            self.fxh("lab", "up", self.name, "--keep")
        self.configure()
        self.one.restore()
        self.two.restore()

    def kill(self) -> None:
        """Cut the power: kill QEMU."""
        record = registry.read(self.name)
        assert record is not None
        os.kill(record.qemu_pid, 9)

    def remove(self) -> None:
        self.one.close()
        self.two.close()
        self.fxh("lab", "rm", self.name)

    def fxh(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([*FXH, *words], env=self.environment, capture_output=True, text=True, timeout=400)
        if check and done.returncode:
            raise AssertionError(f"fxh {' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def dom0(self, *argv: str) -> str:
        """Run a command in dom0, not over the links."""
        return self.fxh("lab", "ssh", self.name, *argv)

    def start(self, suite: Path, *words: str, name: str = "reports", **environment: str) -> Run:
        reports = self.directory / name
        argv = [*FXH, "run", str(suite), "--type", "pv", "--reports", str(reports), *words]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
            env=self.environment | environment,
        )  # fmt: skip
        return Run(process, reports)

    def mark(self, name: str) -> Path:
        return self.directory / "marks" / name

    def leftovers(self) -> list[str]:
        """Resources of runs in dom0, except those that are kept for later runs. Empty after a complete cleanup."""
        listing = self.dom0(_LEFT)
        return [line for line in listing.splitlines() if "fxh" in line]

    def holds(self) -> Holds:
        return read_holds(self.dom0(_HOLDS))

    def wait_for_no_more(self, before: Holds, names: Sequence[str], seconds: float = 30) -> Holds:
        """Wait until no count of ``names`` is higher than before, and return the counts. Processes that are about to end are no leak.

        Raises DeadlineExpired with the counts that are still higher.
        """

        def check() -> Holds:
            after = self.holds()
            if more := after.more_than(before, names):
                raise ConditionNotMet(more)
            return after

        return Deadline(seconds).wait("dom0 to hold no more than before", check, 1.0)

    def wait_clean(self, seconds: float = 90) -> None:
        def check() -> None:
            left = self.leftovers()
            if left:
                raise ConditionNotMet("; ".join(left))

        Deadline(seconds).wait("dom0 to be as before", check, 1.0)
