# SPDX-License-Identifier: BSD-2-Clause
"""A run in pytest: its options, its directory and its cells, the cases lost with a worker, and the results at its end."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import paths, preparing, stamp
from harness.errors import ExitCode, HarnessError, UsageError
from harness.hosts import power
from harness.lab import recipe
from harness.plugin import case_result, cells, guest_sources, options
from harness.plugin.setuplog import SetupLog
from harness.plugin.state import KERNEL_IS_MISSING, OPTIONS, RUN, SETUP, WORKER_ENV
from harness.plugin.worker_env import WorkerEnvironment
from harness.results import model, revision, run_dir
from harness.results.model import HARNESS, INFRASTRUCTURE, CaseResult, RunResult

log = logging.getLogger("fxh.run")


def begin(config: pytest.Config) -> None:
    """Read and check the options, create the worker's environment, and start missing builds, before the cases are collected.

    Raises pytest.UsageError.
    """
    config.stash[SETUP] = SetupLog()
    config.add_cleanup(preparing.listen(config.stash[SETUP]))
    try:
        config.stash[OPTIONS] = chosen = options.read(config)
        config.stash[WORKER_ENV] = WorkerEnvironment(chosen)
        source = config.stash[WORKER_ENV].tested
        if source is not None:
            options.check_firmwares(chosen, source)
        config.stash[WORKER_ENV].check_symbols()
        only_collects = chosen.every_cell or config.option.collectonly
        if chosen.run_directory is not None and not only_collects and not hasattr(config, "workerinput"):
            # The controller of `fxh run`, not `fxh list`: build while the cases are collected and the workers start.
            guest_sources.begin_builds(chosen)
    except UsageError as exc:
        raise pytest.UsageError(str(exc)) from exc


def cells_of(config: pytest.Config) -> tuple[cells.Cell, ...]:
    """The cells of this run."""
    if config.stash[OPTIONS].every_cell:
        return cells.everywhere(recipe.available())
    source = config.stash[WORKER_ENV].tested
    return cells.cells(config.stash[OPTIONS], source.os if source is not None else None)


def open_run(config: pytest.Config) -> None:
    """Create the run's directory and ``run.json``, unless this or another worker has done it; delete the oldest runs."""
    path = run_path(config)
    if (path / "cases").is_dir() and config.stash[SETUP].run == path:
        return
    (path / "cases").mkdir(parents=True, exist_ok=True)
    config.stash[SETUP].write_to(path)
    try:
        (path / "run.json").touch(exist_ok=False)
    except FileExistsError:
        return
    asked = config.stash[OPTIONS]
    inputs = _inputs() | ({"shard": asked.shard} if asked.shard else {})
    run = RunResult(path.name, stamp.now(), "", _command(config), inputs, options=asked.rerun_options, branch=asked.branch)
    model.write_run(path, run)
    run_dir.latest(path)
    run_dir.prune(path.parent, asked.keep_runs)


def kernel_is_missing(config: pytest.Config) -> bool:
    """Whether this run must build the control guest's kernel. All workers get the controller's answer."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        return bool(worker["fxh_kernel_is_missing"])
    asked = config.stash[OPTIONS]
    if asked.every_cell:
        return False
    if KERNEL_IS_MISSING not in config.stash:
        config.stash[KERNEL_IS_MISSING] = guest_sources.waits(asked)
    return config.stash[KERNEL_IS_MISSING]


def run_path(config: pytest.Config) -> Path:
    """The directory of this run. It may not exist yet."""
    if RUN not in config.stash:
        worker = getattr(config, "workerinput", None)
        given = Path(worker["fxh_run"]) if worker is not None else config.stash[OPTIONS].run_directory
        config.stash[RUN] = given or run_dir.new(config.stash[OPTIONS].results)
    return config.stash[RUN]


def _command(config: pytest.Config) -> str:
    worker = getattr(config, "workerinput", None)
    return str(worker["fxh_command"]) if worker is not None else command()


def command() -> str:
    """The command line of this process."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _inputs() -> dict[str, str]:
    machine = f"{os.uname().sysname} {os.uname().release}"
    return {"harness": revision.of(paths.project()), "python": sys.version.split()[0], "machine": machine}


def finished(config: pytest.Config) -> frozenset[str]:
    """The node ids of the cases with a verdict in this run directory, that is, without an infrastructure or harness error."""
    try:
        cases = model.read_run(run_path(config)).cases
    except (OSError, ValueError):
        return frozenset()
    return frozenset(case.nodeid for case in cases if case.outcome not in (INFRASTRUCTURE, HARNESS) and not case.paused)


# -- a worker that ends -----------------------------------------------------------------------------------------------


def stop_mark(config: pytest.Config) -> Path | None:
    """The file that makes all workers of the run stop after their case; None before the run has a directory."""
    path = config.stash.get(RUN, None)
    return path / ".stop" if path is not None and path.is_dir() else None


def forget_stop(config: pytest.Config) -> None:
    """Delete the stop mark, which ``-x`` may have left in a run that is resumed."""
    if (mark := stop_mark(config)) is not None:
        mark.unlink(missing_ok=True)


def crashed(config: pytest.Config, nodeid: str, why: str) -> str:
    """Record an infrastructure failure for the case whose worker ended. Returns the reason, or "" if the case is not ours.

    A verdict that the worker wrote before it ended stays.
    """
    parameters = nodeid.rpartition("::")[2].partition("[")[2].removesuffix("]")
    named = [cell for cell in cells_of(config) if f"-{cell}-" in f"-{parameters}-"]
    if not named:
        return ""
    reason = f"{why}: killed, or out of memory?"
    if nodeid not in finished(config):
        case_result.write_crashed(config, nodeid, max(named, key=lambda cell: len(str(cell))), reason)
    return reason


# -- the end ----------------------------------------------------------------------------------------------------------


def release(config: pytest.Config) -> None:
    """Release the hosts of this process."""
    try:
        if WORKER_ENV in config.stash:
            config.stash[WORKER_ENV].close()
    except HarnessError as exc:
        log.error("cannot release a host: %s", exc)


def end(config: pytest.Config, code: Callable[[tuple[CaseResult, ...]], int]) -> None:
    """Release the hosts; in the controller also write ``run.json`` and the reports. ``code`` gives the exit code for the cases."""
    try:
        release(config)
        if not hasattr(config, "workerinput") and OPTIONS in config.stash and config.stash[OPTIONS].host:
            power.wait_for_cycles(lambda line: print(f"fxh: {line}", file=sys.stderr, flush=True))
    finally:
        path = config.stash.get(RUN, None)
        if not hasattr(config, "workerinput") and path is not None and (path / "run.json").exists():
            forget_stop(config)
            config.stash[SETUP].write_to(path)
            _publish(path, code, config.stash[OPTIONS].fail_on)


def _publish(path: Path, code: Callable[[tuple[CaseResult, ...]], int], fail_on: tuple[str, ...]) -> None:
    from harness.history.delivery import record
    from harness.report import build_report, write_reports

    run = model.read_run(path)
    run = replace(run, ended=stamp.now(), exit_code=code(run.cases))
    record(path, run)
    report = build_report(path, run)
    if "complaint" in fail_on and report.complaints and run.exit_code == ExitCode.OK:
        run = replace(run, exit_code=int(ExitCode.PRODUCT))
        record(path, run)
        count = len(report.complaints)
        text = f"{report.sentence} The run fails: {count} new {'complaint' if count == 1 else 'complaints'} (--fail-on)."
        report = replace(report, run=run, sentence=text)
    model.write_run(path, run)
    write_reports(path, report)
