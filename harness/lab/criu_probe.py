# SPDX-License-Identifier: BSD-2-Clause
"""Find a CRIU that works on this machine: an installed one, or Debian's in the store. Each is tried on a small process."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness import debian, paths, store
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError
from harness.lab import probed, tools
from harness.lab.criu import CriuSnapshotter, pid_in_namespace

# This Debian release has a CRIU for current kernels. 3.17 of Debian 12 does not know the vDSO of Linux 6.13 and later.
_SUITE, _PACKAGE = "trixie", "criu"
# Seconds that restoring a small process may take.
_TRIAL = 10.0


@dataclass(frozen=True)
class ProbeResult:
    """``criu`` is empty if labs cannot have hot checkpoints; ``why`` is one line for the user."""

    criu: tuple[str, ...]
    label: str
    why: str


@cache
def find() -> tuple[CriuSnapshotter | None, str]:
    """A CRIU that saves and restores a process here, or None, with one line for the user.

    The result is cached in the store per kernel release; a failure is cached for a day. The environment variable ``FXH_CRIU``
    holds the path of a CRIU, or ``off``.
    """
    setting = os.environ.get("FXH_CRIU", "")
    if setting == "off":
        return None, "switched off by FXH_CRIU=off"
    if sys.platform != "linux":
        return None, "CRIU needs Linux"
    if os.geteuid() != 0:
        return None, "CRIU needs root"
    key = f"{setting} on {platform.node()} {platform.release()}"
    found = probed.cached("CRIU", key, ProbeResult, lambda found: bool(found.criu), lambda: _search(setting))
    exists = bool(found.criu) and Path(found.criu[0]).exists()
    return (CriuSnapshotter(tuple(found.criu), found.label), found.why) if exists else (None, found.why)


def _search(setting: str) -> ProbeResult:
    missing = [name for name in ("unshare", "nsenter", "setsid", "mount") if not shutil.which(name, path=debian.path())]
    if missing:
        return ProbeResult((), "", f"no {', '.join(missing)} on this machine")
    installed = setting or shutil.which("criu", path=debian.path())
    why = "no CRIU on this machine"
    if installed:
        criu: tuple[str, ...] = (installed,)
        why = _try(criu)
        if not why:
            return ProbeResult(criu, _version(criu), f"{_version(criu)}, {installed}")
    if setting:
        return ProbeResult((), "", f"{setting}: {why}")
    try:
        criu = _from_debian()
    except (InfrastructureError, OSError) as exc:
        return ProbeResult((), "", f"{why}; Debian's CRIU is not available: {str(exc).splitlines()[0]}")
    problem = _try(criu)
    label = _version(criu)
    source = f"{label} of Debian {_SUITE}"
    return ProbeResult((), "", f"{source}: {problem}") if problem else ProbeResult(criu, label, source)


def _version(criu: Sequence[str]) -> str:
    words = subprocess.run([*criu, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return f"CRIU {words[1]}" if len(words) > 1 else "CRIU"


def _from_debian() -> tuple[str, ...]:
    """The command of Debian's CRIU in the store, downloaded at first use with its C library. Raises BuildError."""

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


def _try(criu: tuple[str, ...]) -> str:
    """Save and restore a small process in the same way as a lab's QEMU. Returns the reason of a failure, or ""."""
    with tempfile.TemporaryDirectory(dir=paths.runtime()) as scratch:
        directory, sockets, images = (Path(scratch) / name for name in ("directory", "sockets", "images"))
        for path in (directory, sockets, images):
            path.mkdir()
        snapshotter = CriuSnapshotter(criu, "")
        try:
            with _sleep(snapshotter.namespace_command(directory, sockets, ["sleep", "600"])) as pid:
                snapshotter.dump(pid, images)
            with _sleep(snapshotter.restore_command(images, directory, sockets)):
                return ""
        except InfrastructureError as exc:
            log = directory / "criu.log"
            return exc.message + (f": {log.read_text(errors='replace')[-300:]}" if log.exists() else "")


@contextmanager
def _sleep(argv: Sequence[str]) -> Iterator[int]:
    """The pid of the ``sleep`` in the namespace that ``argv`` makes. Raises InfrastructureError."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

        def started() -> int:
            if process.poll() is not None:
                text = process.stderr.read() if process.stderr else ""
                raise InfrastructureError(f"{argv[0]} ended with {process.returncode}: {text.strip()[-300:]}")
            pid = pid_in_namespace(process.pid)
            status = Path(f"/proc/{pid}/status").read_text()
            if not status.startswith("Name:\tsleep\n") or "TracerPid:\t0\n" not in status:
                raise ConditionNotMet("the process does not run yet")
            return pid

        try:
            yield Deadline(_TRIAL).wait("a process in a namespace", started, 0.01)
        finally:
            process.kill()
