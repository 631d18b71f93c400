# SPDX-License-Identifier: BSD-2-Clause
"""Repeat the suites' cases on one host with one controller, and check that no resource grows. Run by hand.

    python tests/faults/soak.py

The host is a lab that is reached like a real host. About once a minute, between two cases, a line shows the resources of controller,
host and QEMU. At the end, the floor of each (its minimum over a quarter of the run) in the last quarter is compared with that in the
second. The exit code is 1 if one has grown, 4 if the run itself failed.

--minutes N   duration (60)
--keyword K   selects cases, as pytest's -k
--suites S    suites, separated by commas
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soak_rounds
from remote_host import Holds, Remote

from harness.lab import registry


@dataclass(frozen=True)
class Measure:
    """A resource. It may grow by the fraction ``share`` plus ``slack`` (in ``unit``) without counting as a leak."""

    name: str
    unit: str
    share: float = 0.0
    slack: float = 0.0


MEASURES = (
    Measure("controller-rss", "KiB", 0.03, 2048),
    Measure("controller-fds", ""),
    Measure("controller-threads", ""),
    Measure("controller-temp", "files"),
    Measure("qemu-own", "KiB", 0.02, 4096),
    Measure("qemu-fds", ""),
    Measure("dom0-used", "KiB", 0.03, 4096),
    Measure("xenstored", "KiB", 0.03, 256),
    Measure("xenstored-fds", ""),
    Measure("xenconsoled", "KiB", 0.03, 256),
    Measure("xenconsoled-fds", ""),
    Measure("processes", ""),
    Measure("loops", ""),
    Measure("xenstore", "nodes"),
    Measure("files", "in dom0"),
    Measure("disk", "KiB", 0.0, 2048),
    Measure("xen-used", "MiB", 0.0, 2),
)


def grown(measure: Measure, values: Sequence[float]) -> str:
    """How much the floor of ``values`` (at equal intervals) has grown from the second quarter to the last, or ""."""
    quarter = len(values) // 4
    if quarter < 1:
        return ""
    before, after = min(values[quarter : 2 * quarter]), min(values[-quarter:])
    allowed = before * measure.share + measure.slack
    if after - before <= allowed:
        return ""
    return f"{measure.name} grew from {before:.0f} to {after:.0f} {measure.unit}".rstrip() + f", {allowed:.0f} more are allowed"


def _kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def qemu(smaps: str) -> dict[str, float]:
    """Resident KiB of a QEMU, from its /proc/PID/smaps: guest memory, translated code, and the rest.

    The first two grow up to their configured sizes. A leak would be in the rest.
    """
    found = {"qemu-ram": 0.0, "qemu-code": 0.0, "qemu-own": 0.0}
    kind = ""
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            anonymous = len(words) == 5
            kind = "ram" if words[-1].endswith("/ram") else "code" if anonymous and words[1].startswith("rwx") else "own"
        elif words[0] == "Rss:":
            found[f"qemu-{kind}"] += int(words[1])
    return found


def _count(path: str) -> int:
    return sum(1 for _ in Path(path).iterdir())


def sample(remote: Remote, controller: int, temporary: Path) -> Holds:
    """The resources at this moment. Raises OSError if the controller or QEMU has ended."""
    record = registry.read(remote.name)
    assert record is not None
    found = {
        "controller-rss": float(_kib(controller)),
        "controller-fds": float(_count(f"/proc/{controller}/fd")),
        "controller-threads": float(_count(f"/proc/{controller}/task")),
        "controller-temp": float(sum(len(files) for _, _, files in os.walk(temporary))),
        "qemu-fds": float(_count(f"/proc/{record.qemu_pid}/fd")),
    }
    there = remote.holds()
    return Holds(found | qemu(Path(f"/proc/{record.qemu_pid}/smaps").read_text()) | there.counts, there.named)


def _line(minute: float, found: dict[str, float], rounds: str) -> str:
    return f"{minute:5.1f} min  {rounds}  " + " ".join(f"{name}={value:.0f}" for name, value in found.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="minimum seconds between two samples")
    parser.add_argument("--keyword", default="not survives")
    parser.add_argument("--suites", default="boot,root_mount,pygrub,balloon,reboot")
    parser.add_argument("--scale", default="4")
    arguments = parser.parse_args()
    # Also remove the lab after a kill.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    with tempfile.TemporaryDirectory(prefix="fxh-soak-") as directory:
        remote = Remote(Path(directory), f"soak-{os.getpid()}")
        try:
            remote.reset()
            return _soak(arguments, remote, Path(directory))
        finally:
            remote.remove()


def _soak(arguments: argparse.Namespace, remote: Remote, directory: Path) -> int:
    temporary = directory / "tmp"
    temporary.mkdir()
    tally, rest = directory / "rounds.json", directory / "at-rest"
    argv = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", soak_rounds.__name__,
        *(f"suites/{suite}" for suite in arguments.suites.split(",")),
        "-k", arguments.keyword, "--type", "pv", "--xen-host", "one", "--scale", arguments.scale, "--reports", str(directory / "reports"),
    ]  # fmt: skip
    environment = remote.environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])),
        "TMPDIR": str(temporary),
        soak_rounds.UNTIL: str(time.time() + arguments.minutes * 60),
        soak_rounds.TALLY: str(tally),
        soak_rounds.REST: str(rest),
    }
    with Path("soak.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    begun = time.monotonic()
    samples: list[Holds] = []
    due = begun
    try:
        while process.poll() is None:
            if not rest.exists():
                time.sleep(0.1)
                continue
            if time.monotonic() >= due:
                with contextlib.suppress(OSError):  # the controller has just ended
                    samples.append(sample(remote, process.pid, temporary))
                    print(_line((time.monotonic() - begun) / 60, samples[-1].counts, _tally(tally)), flush=True)
                due = time.monotonic() + arguments.every
            rest.unlink(missing_ok=True)
    finally:
        process.terminate()
        process.wait()
    print(
        f"after {(time.monotonic() - begun) / 60:.1f} min: {_tally(tally)}, pytest exited with {process.returncode}, see soak.log"
    )
    left = remote.leftovers()
    complaints = [grown(measure, [s.counts[measure.name] for s in samples if measure.name in s.counts]) for measure in MEASURES]
    complaints += [f"left in dom0: {line}" for line in left]
    for complaint in filter(None, complaints):
        print(complaint)
    if any(complaints):
        if samples:
            print("items by name, in the first and in the last sample:", samples[0].named, samples[-1].named, sep="\n")
        return 1
    print(f"nothing grew over {len(samples)} samples, nothing remained")
    return 0 if samples and tally.exists() else 4


def _tally(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return "no case yet"
    return f"round {found['round']}, {found['cases']} cases: " + ", ".join(f"{n} {o}" for o, n in sorted(found["outcomes"].items()))


if __name__ == "__main__":
    sys.exit(main())
