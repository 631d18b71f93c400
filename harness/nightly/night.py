# SPDX-License-Identifier: BSD-2-Clause
"""A night from start to end: its steps one after the other, a JSON line for each, and a mail when the night itself failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness import stamp
from harness.errors import ExitCode, InfrastructureError
from harness.nightly.plan import Step

OK, VERDICT, FAILED, SKIPPED = "ok", "product", "failed", "skipped"
_TAIL = 4000


@dataclass(frozen=True)
class Line:
    """What monitors read of a step. ``status`` is ok, product (a verdict, not a failure of the night), failed or skipped."""

    night: str
    step: str
    status: str
    exit_code: int | None
    seconds: float
    started: str
    why: str = ""
    log: str = ""


@dataclass(frozen=True)
class Night:
    """A night that is over."""

    name: str
    directory: Path
    lines: tuple[Line, ...]

    @property
    def failed(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.status == FAILED)

    @property
    def exit_code(self) -> int:
        """A verdict on the product outweighs what went wrong besides it, as in a run."""
        if any(line.status == VERDICT for line in self.lines):
            return ExitCode.PRODUCT
        return ExitCode.INFRASTRUCTURE if self.failed else ExitCode.OK


def go(steps: Sequence[Step], reports: Path, hours: float, tell: Callable[[str], None]) -> Night:
    """Do the steps. Each may take ``hours``; ``tell`` gets its JSON line, which is kept in nightly.jsonl, too.

    Raises InfrastructureError while another night is at work.
    """
    root = reports / "nightly"
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InfrastructureError(
            f"another night is at work ({root / 'lock'} is locked)",
            hint="start nights further apart, or make them shorter: more hosts, --shard",
        ) from None
    with lock:
        name = stamp.compact()
        directory = root / name
        directory.mkdir(exist_ok=True)
        lines: list[Line] = []
        broken = ""
        for step in steps:
            if broken and not step.always:
                line = Line(name, step.name, SKIPPED, None, 0.0, stamp.now(), f"{broken} failed before it")
            else:
                echo = next((line.exit_code for line in lines if line.step == step.echoes), None)
                line = _do(name, step, directory, hours, echo)
            if line.status == FAILED and step.needed:
                broken = step.name
            lines.append(line)
            text = json.dumps(asdict(line))
            with (root / "nightly.jsonl").open("a") as file:
                file.write(text + "\n")
            tell(text)
        return Night(name, directory, tuple(lines))


def _do(night: str, step: Step, directory: Path, hours: float, echo: int | None) -> Line:
    begun, started = time.monotonic(), stamp.now()
    log = directory / f"{step.name}.log"
    why, code = "", None
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                step.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as exc:
            why = f"cannot start {step.argv[0]}: {exc.strerror}"
        else:
            try:
                code = process.wait(hours * 3600)
            except subprocess.TimeoutExpired:
                why = f"no end within {hours:g} hours"
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    if why:
        status = FAILED
    elif code == 0 or (code is not None and code == echo):
        status = OK
    elif code in step.verdicts:
        status = VERDICT
    else:
        status = FAILED
        why = reason(tail(log), code)
    return Line(night, step.name, status, code, round(time.monotonic() - begun, 1), started, why, str(log))


def reason(text: str, code: int | None) -> str:
    """Why a step failed, in a line: what its exit code means, and the last line of its log that says something."""
    meanings: dict[int, str] = {
        ExitCode.USAGE: "usage",
        ExitCode.HARNESS: "a bug of the harness",
        ExitCode.INFRASTRUCTURE: "infrastructure",
        ExitCode.NOTHING_SELECTED: "nothing selected",
        ExitCode.INTERRUPTED: "interrupted",
    }
    means = meanings.get(code if code is not None else 0, f"exit code {code}")
    said = [line.strip() for line in text.splitlines() if re.search(r"\w", line) and not line.startswith("report: ")]
    return f"{means}: {said[-1][:300]}" if said else means


def tail(path: Path, size: int = _TAIL) -> str:
    """The end of a step's log."""
    try:
        return path.read_bytes()[-size:].decode("utf-8", "replace")
    except OSError:
        return ""


def prune(reports: Path, keep: int) -> None:
    """Remove the logs of all nights but the last ``keep``."""
    import shutil

    nights = sorted(path for path in (reports / "nightly").iterdir() if path.is_dir())
    for path in nights[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
