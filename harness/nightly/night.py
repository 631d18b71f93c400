# SPDX-License-Identifier: BSD-2-Clause
"""Run the steps of a nightly job one after the other, and write a JSON line for each."""

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

from harness import paths, stamp
from harness.errors import ExitCode, InfrastructureError
from harness.nightly.plan import NightlyStep

OK, VERDICT, FAILED, SKIPPED = "ok", "product", "failed", "skipped"
# Bytes.
_TAIL = 4000
# Seconds from SIGTERM to SIGKILL.
_TERM = 60.0


@dataclass(frozen=True)
class StepResult:
    """The result of a step; a line of nightly.jsonl, which monitoring reads.

    ``status`` is ok, product (a verdict against the product, not a failure of the job), failed or skipped. ``exit_code`` is None for
    a step that did not start or was killed.
    """

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
    """A nightly job that has ended."""

    name: str
    directory: Path
    results: tuple[StepResult, ...]

    @property
    def failed(self) -> tuple[StepResult, ...]:
        return tuple(result for result in self.results if result.status == FAILED)

    @property
    def exit_code(self) -> int:
        """A verdict against the product takes precedence over failed steps, as in a run."""
        if any(result.status == VERDICT for result in self.results):
            return ExitCode.PRODUCT
        return ExitCode.INFRASTRUCTURE if self.failed else ExitCode.OK


def run_steps(steps: Sequence[NightlyStep], reports: Path, hours: float, emit: Callable[[str], None]) -> Night:
    """Run the steps. Each may take ``hours``. Its JSON line goes to ``emit`` and to nightly.jsonl.

    Raises InfrastructureError if another nightly job is running.
    """
    root = reports / "nightly"
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InfrastructureError(
            f"another nightly job is running ({root / 'lock'} is locked)",
            hint="start the jobs further apart, or shorten them with more hosts or --shard",
        ) from None
    with lock:
        name = stamp.compact()
        directory = root / name
        directory.mkdir(exist_ok=True)
        results: list[StepResult] = []
        broken = ""
        for step in steps:
            if broken and not step.always:
                result = StepResult(name, step.name, SKIPPED, None, 0.0, stamp.now(), f"skipped because {broken} failed")
            else:
                accepted = next((result.exit_code for result in results if result.step == step.repeats), None)
                result = _run_step(name, step, directory, hours, accepted)
            if result.status == FAILED and step.needed:
                broken = step.name
            results.append(result)
            text = json.dumps(asdict(result))
            with (root / "nightly.jsonl").open("a") as file:
                file.write(text + "\n")
            emit(text)
        return Night(name, directory, tuple(results))


def _run_step(night: str, step: NightlyStep, directory: Path, hours: float, accepted: int | None) -> StepResult:
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
                why = f"did not end within {hours:g} hours"
                _end(process)
            except KeyboardInterrupt:
                _end(process)
                raise
    if why:
        status = FAILED
    elif code == 0 or (code is not None and code == accepted):
        status = OK
    elif code in step.verdicts:
        status = VERDICT
    else:
        status = FAILED
        why = failure_reason(tail(log), code)
    return StepResult(night, step.name, status, code, round(time.monotonic() - begun, 1), started, why, str(log))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step with the processes of its session."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_TERM)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure_reason(text: str, code: int | None) -> str:
    """One line: the meaning of the exit code, and the last informative line of the log ``text``."""
    meanings: dict[int, str] = {
        ExitCode.USAGE: "usage",
        ExitCode.HARNESS: "a bug in the harness",
        ExitCode.INFRASTRUCTURE: "infrastructure",
        ExitCode.NOTHING_SELECTED: "nothing selected",
        ExitCode.INTERRUPTED: "interrupted",
    }
    meaning = meanings.get(code if code is not None else 0, f"exit code {code}")
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line) and not line.startswith("report: ")]
    return f"{meaning}: {lines[-1][:300]}" if lines else meaning


def tail(path: Path, size: int = _TAIL) -> str:
    """The last ``size`` bytes of a step's log, or "" if it cannot be read."""
    try:
        return paths.tail(path, size).decode("utf-8", "replace")
    except OSError:
        return ""


def prune(reports: Path, keep: int) -> None:
    """Remove the logs of all nightly jobs except the last ``keep``."""
    import shutil

    nights = sorted(path for path in (reports / "nightly").iterdir() if path.is_dir())
    for path in nights[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
