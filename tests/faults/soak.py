"""The suites' cases over and over on one host, by one controller: nothing may grow. By hand: python tests/faults/soak.py

The host is a lab, reached like any real one. Once a minute a line says what controller, host and QEMU hold; at the end the
floor of each (its least value over a stretch of the run: what is there when the least is going on) is compared between the
second and the last quarter. Exit code 1 when one has grown, 4 when the run itself failed.

--minutes N   how long (60)
--keyword K   which cases, as pytest's -k
--suites S    whose, by commas
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soak_rounds
from remote_host import Remote

from harness.lab import records


@dataclass(frozen=True)
class Measure:
    """One thing that is held. It may grow by ``share`` of itself and by ``slack`` (in ``unit``) without being called a leak."""

    name: str
    unit: str
    share: float = 0.0
    slack: float = 0.0


MEASURES = (
    Measure("controller-rss", "KiB", 0.03, 2048),
    Measure("controller-fds", ""),
    Measure("controller-threads", ""),
    Measure("controller-temp", "files"),
    Measure("qemu-rss", "KiB", 0.02, 4096),
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
    """In words how the floor of ``values`` (equal times apart) has grown from its second quarter to its last, or ""."""
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


def _count(path: str) -> int:
    return sum(1 for _ in Path(path).iterdir())


def sample(remote: Remote, controller: int, temporary: Path) -> dict[str, float]:
    """What is held at this moment. Raises OSError when the controller or QEMU is gone."""
    record = records.read(remote.name)
    assert record is not None
    found = {
        "controller-rss": _kib(controller),
        "controller-fds": _count(f"/proc/{controller}/fd"),
        "controller-threads": _count(f"/proc/{controller}/task"),
        "controller-temp": sum(len(files) for _, _, files in os.walk(temporary)),
        "qemu-rss": _kib(record.qemu_pid),
        "qemu-fds": _count(f"/proc/{record.qemu_pid}/fd"),
    }
    return found | remote.holds()


def _line(minute: float, found: dict[str, float], rounds: str) -> str:
    return f"{minute:5.1f} min  {rounds}  " + " ".join(f"{m.name}={found.get(m.name, -1):.0f}" for m in MEASURES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds between two samples")
    parser.add_argument("--keyword", default="not survives")
    parser.add_argument("--suites", default="boot,root_mount,pygrub,balloon,reboot")
    parser.add_argument("--scale", default="4")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fxh-soak-") as directory:
        remote = Remote(Path(directory), f"soak-{os.getpid()}")
        try:
            remote.reset()
            return _soak(given, remote, Path(directory))
        finally:
            remote.remove()


def _soak(given: argparse.Namespace, remote: Remote, directory: Path) -> int:
    temporary = directory / "tmp"
    temporary.mkdir()
    tally = directory / "rounds.json"
    argv = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", soak_rounds.__name__,
        *(f"suites/{suite}" for suite in given.suites.split(",")),
        "-k", given.keyword, "--type", "pv", "--xen-host", "one", "--scale", given.scale, "--reports", str(directory / "reports"),
    ]  # fmt: skip
    environment = remote.environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])),
        "TMPDIR": str(temporary),
        soak_rounds.UNTIL: str(time.time() + given.minutes * 60),
        soak_rounds.TALLY: str(tally),
    }
    with Path("soak.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    begun = time.monotonic()
    samples: list[dict[str, float]] = []
    while True:
        try:
            process.wait(given.every)
            break
        except subprocess.TimeoutExpired:
            pass
        try:
            samples.append(sample(remote, process.pid, temporary))
        except OSError:
            continue  # it has just ended
        print(_line((time.monotonic() - begun) / 60, samples[-1], _tally(tally)), flush=True)
    print(f"after {(time.monotonic() - begun) / 60:.1f} min: {_tally(tally)}, pytest's status {process.returncode}, see soak.log")
    left = remote.leftovers()
    complaints = [grown(measure, [s[measure.name] for s in samples if measure.name in s]) for measure in MEASURES]
    complaints += [f"left in dom0: {line}" for line in left]
    for complaint in filter(None, complaints):
        print(complaint)
    if any(complaints):
        return 1
    print("nothing grew, nothing was left")
    return 0 if tally.exists() else 4


def _tally(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return "no case yet"
    return f"round {found['round']}, {found['cases']} cases: " + ", ".join(f"{n} {o}" for o, n in sorted(found["outcomes"].items()))


if __name__ == "__main__":
    sys.exit(main())
