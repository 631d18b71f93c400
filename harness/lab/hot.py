# SPDX-License-Identifier: BSD-2-Clause
"""Keeps a lab's QEMU as the process it is, with all that it has translated, by CRIU (criu.org).

A QEMU that loads a machine's state drops its translations, and a program of dom0's takes two to three times as long where it
has to be translated. What CRIU restores goes on where it was: the first ``xl list`` takes as long as the tenth.

Each such QEMU runs in a chamber: a pid namespace, where it has the same number each time, and a mount namespace, where the
lab's directory and that of its sockets are at the same place each time. So many can be restored from one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from harness import debian, paths, preparing, store
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import BuildError, InfrastructureError
from harness.lab import tools

log = logging.getLogger("fxh.lab")

# Where Debian has a CRIU that knows today's kernels: 3.17 of Debian 12 does not know the vDSO of Linux 6.13 and later.
_SUITE, _PACKAGE = "trixie", "criu"
_HERE = ".here"
# The number of QEMU in its chamber: CRIU and what it starts there get lower ones.
_PID = 1000
# $1 is seen at $2 and $3 at $4; $5 is the number after which the next process is numbered.
_CHAMBER = (
    'mount --bind "$1" "$2" && mount --bind "$3" "$4" || exit 1; log="$2/qemu.log"; echo "$5" > /proc/sys/kernel/ns_last_pid; '
    'shift 5; "$@" </dev/null >>"$log" 2>&1 & wait $!'
)
# Nothing that a lab's QEMU has, but a stranger's might: cgroups are the caller's business.
_COMMON = ("--file-locks", "--manage-cgroups=ignore", "-v1")
# So long may a small process take to be restored.
_PATIENCE = 10.0
_DAY = 86400.0


@dataclass(frozen=True)
class View:
    """Where a QEMU sees the lab's ``directory`` and its ``sockets``."""

    directory: Path
    sockets: Path


@dataclass(frozen=True)
class Hot:
    """CRIU as it is run here; ``label`` names it and all that its images depend on."""

    criu: tuple[str, ...]
    label: str

    @property
    def view(self) -> View:
        """The same for all labs."""
        return View(paths.store() / "run" / _HERE, paths.runtime() / _HERE)

    @property
    def key(self) -> str:
        """What must agree for an image to be usable: translated code is this processor's, and paths are as they were."""
        processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        lines = [line for line in processor.splitlines() if line.startswith(("model name", "flags"))]
        return hashlib.sha256("\n".join([self.label, platform.release(), str(self.view), *lines]).encode()).hexdigest()

    def chamber(self, directory: Path, sockets: Path, argv: Sequence[str]) -> list[str]:
        """The command line that starts a QEMU, to be kept, in a chamber of its own; that ends with it, and it with its parent."""
        return self._chamber(directory, sockets, _PID - 1, ["setsid", *argv])

    def restore_process(self, images: Path, directory: Path, sockets: Path) -> list[str]:
        """The command line that restores a QEMU from ``images`` into a chamber of its own."""
        argv = [*self.criu, "restore", "-D", str(images), "-W", str(self.view.directory), *_COMMON, "-o", "criu.log"]
        return self._chamber(directory, sockets, 1, argv)

    def keep(self, pid: int, images: Path) -> None:
        """Stop the QEMU with number ``pid`` (as seen from here) and write it to ``images``, an empty directory.

        It must have no connections. Raises InfrastructureError with CRIU's words; then it lives on.
        """
        # CRIU would end it, too, but then the chamber ends, and CRIU in it before it has said that all went well.
        dump = [*self.criu, "dump", "--leave-stopped", "-t", str(_PID), "-D", str(images), *_COMMON, "-o", "criu.log"]
        argv = ["nsenter", "-t", str(pid), "--mount", "--pid", "--", *dump]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        words = images / "criu.log"
        if done.returncode:
            said = words.read_text(errors="replace") if words.exists() else done.stderr
            raise InfrastructureError(
                f"CRIU could not keep QEMU: {' / '.join(said.strip().splitlines()[-4:]) or done.stderr.strip()}"
            )
        for leftover in (words, images / "stats-dump"):
            leftover.unlink(missing_ok=True)

    def _chamber(self, directory: Path, sockets: Path, last: int, argv: Sequence[str]) -> list[str]:
        there = self.view
        for path in (there.directory, there.sockets):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        places = [str(directory), str(there.directory), str(sockets), str(there.sockets)]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*apart, "/bin/sh", "-c", _CHAMBER, "fxh-lab-chamber", *places, str(last), *argv]


def resident(pid: int) -> int:
    """The number, as seen from here, of the QEMU in the chamber that process ``pid`` is or holds; ``pid`` where there is none."""
    waiting = [pid]
    while waiting:
        at = waiting.pop()
        try:
            status = Path(f"/proc/{at}/status").read_text()
            numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            if len(numbers) > 1 and numbers[-1] == str(_PID):
                return at
            waiting += map(int, Path(f"/proc/{at}/task/{at}/children").read_text().split())
        except OSError:
            continue
    return pid


@dataclass(frozen=True)
class Finding:
    """``criu`` is empty where labs are not kept hot; ``why`` is one line for people."""

    criu: tuple[str, ...]
    label: str
    why: str


@cache
def find() -> tuple[Hot | None, str]:
    """CRIU, where it keeps and restores a process here, and one line for people; found out once for a kernel, and remembered.

    That there is none is remembered for a day.

    ``FXH_CRIU`` is the path of one, or ``off``.
    """
    wish = os.environ.get("FXH_CRIU", "")
    if wish == "off":
        return None, "off, as asked (FXH_CRIU)"
    if sys.platform != "linux":
        return None, "CRIU is Linux's"
    if os.geteuid() != 0:
        return None, "CRIU needs root"
    memory = paths.store() / "criu.json"
    key = f"{wish} on {platform.node()} {platform.release()}"
    with preparing.step("CRIU"), FileLock(f"{memory}.lock"):
        try:
            known = json.loads(memory.read_text())
            # None today may be one tomorrow: Debian could not be reached, or somebody installs one.
            if known["key"] == key and (known["criu"] or time.time() - memory.stat().st_mtime < _DAY):
                return _judge(Finding(tuple(known["criu"]), known["label"], known["why"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = _search(wish)
        memory.write_text(json.dumps({"key": key, **asdict(found)}))
    return _judge(found)


def _judge(found: Finding) -> tuple[Hot | None, str]:
    there = bool(found.criu) and Path(found.criu[0]).exists()
    return (Hot(found.criu, found.label), found.why) if there else (None, found.why)


def _search(wish: str) -> Finding:
    missing = [name for name in ("unshare", "nsenter", "setsid", "mount") if not shutil.which(name, path=debian.path())]
    if missing:
        return Finding((), "", f"no {', '.join(missing)} on this machine")
    installed = wish or shutil.which("criu", path=debian.path())
    why = "no CRIU on this machine"
    if installed:
        criu: tuple[str, ...] = (installed,)
        why = _trial(criu)
        if not why:
            return Finding(criu, _version(criu), f"{_version(criu)}, {installed}")
    if wish:
        return Finding((), "", f"{wish}: {why}")
    try:
        criu = _from_debian()
    except (BuildError, OSError) as exc:
        return Finding((), "", f"{why}; and Debian's could not be had: {str(exc).splitlines()[0]}")
    own = _trial(criu)
    label = _version(criu)
    return Finding((), "", f"{label} of Debian {_SUITE}: {own}") if own else Finding(criu, label, f"{label} of Debian {_SUITE}")


def _version(criu: Sequence[str]) -> str:
    said = subprocess.run([*criu, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return f"CRIU {said[1]}" if len(said) > 1 else "CRIU"


def _from_debian() -> tuple[str, ...]:
    """CRIU out of a newer Debian than this machine may be, with that one's C library, in the store. Raises BuildError."""

    def create(work: Path) -> Path:
        root = work / "root"
        tools.run(
            [
                "mmdebstrap", "--mode=auto", "--variant=extract", "--architectures=amd64", f"--include={_PACKAGE}", _SUITE,
                str(root),
            ],
            work,
        )  # fmt: skip
        root.chmod(0o755)
        return root

    usr = store.get_or_create("criu", f"{_PACKAGE}-{_SUITE}", create, step="CRIU", free_mib=100) / "usr"
    loader, libraries = usr / "lib64/ld-linux-x86-64.so.2", usr / "lib/x86_64-linux-gnu"
    return (str(loader), "--library-path", str(libraries), str(usr / "sbin/criu"))


def _trial(criu: tuple[str, ...]) -> str:
    """Keep a small process and restore it, as a lab's QEMU is; why that does not work, or ""."""
    with tempfile.TemporaryDirectory(dir=paths.runtime()) as scratch:
        directory, sockets, images = (Path(scratch) / name for name in ("directory", "sockets", "images"))
        for path in (directory, sockets, images):
            path.mkdir()
        hot = Hot(criu, "")
        try:
            with _resident(hot.chamber(directory, sockets, ["sleep", "600"])) as pid:
                hot.keep(pid, images)
            with _resident(hot.restore_process(images, directory, sockets)):
                return ""
        except InfrastructureError as exc:
            said = directory / "criu.log"
            return exc.message + (f": {said.read_text(errors='replace')[-300:]}" if said.exists() else "")


@contextmanager
def _resident(argv: Sequence[str]) -> Iterator[int]:
    """The number of the sleep in the chamber that ``argv`` makes. Raises InfrastructureError."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

        def there() -> int:
            if process.poll() is not None:
                words = process.stderr.read() if process.stderr else ""
                raise InfrastructureError(f"{argv[0]} ended with {process.returncode}: {words.strip()[-300:]}")
            status = Path(f"/proc/{resident(process.pid)}/status").read_text()
            if not status.startswith("Name:\tsleep\n") or "TracerPid:\t0\n" not in status:
                raise ConditionNotMet("it is not there")
            return resident(process.pid)

        try:
            yield Deadline(_PATIENCE).wait("a process in a chamber", there, 0.01)
        finally:
            process.kill()
