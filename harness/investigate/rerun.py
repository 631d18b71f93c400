# SPDX-License-Identifier: BSD-2-Clause
"""Run one case again with other inputs, in a new process of ``fxh run``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.errors import ExitCode, InfrastructureError, UsageError
from harness.results.model import FAILED, INFRASTRUCTURE, KNOWN, CaseResult, read_run

_MAIN = "from harness.cli.main import main; main()"


@dataclass(frozen=True)
class Answer:
    """The result. ``refused``: ``fxh run`` rejected the inputs, for example a file that is not a kernel."""

    outcome: str
    identity: str = ""
    reason: str = ""
    refused: bool = False
    run: Path | None = None


def rerun(case: CaseResult, options: Mapping[str, str], *, cell: str, reports: Path, tree: Path | None = None) -> Answer:
    """Run ``case`` in ``cell`` with ``options`` of ``fxh run``. ``tree`` is another checkout of the harness to use.

    Raises UsageError if the harness does not have the case's file.
    """
    project = tree or paths.project()
    argv = [sys.executable, "-c", _MAIN, "run", _target(case, project), "-k", selector(case, cell)]
    for name, value in sorted(options.items()):
        argv += [f"--{name}", value]
    argv += ["--reports", str(reports)]
    environment = os.environ | ({"PYTHONPATH": str(tree), "FXH_PROJECT": str(tree)} if tree else {})
    # A trial is no run of the shared history. An older harness does not know the setting.
    environment.pop("FXH_RUN_HISTORY", None)
    if (project / "harness/history/postgres.py").is_file():
        environment["FXH_RUN_HISTORY"] = ""
    before = set(_runs(reports))
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, errors="replace")
    tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
    if done.returncode == ExitCode.USAGE:
        return Answer(INFRASTRUCTURE, reason=" / ".join(tail), refused=True)
    if done.returncode == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    for path in sorted(set(_runs(reports)) - before):
        for seen in read_run(path).cases:
            if seen.key == case.key and seen.cell == cell:
                return Answer(FAILED if seen.outcome == KNOWN else seen.outcome, seen.identity, seen.reason, run=path)
    return Answer(INFRASTRUCTURE, reason=f"fxh run exited with {done.returncode}: {' / '.join(tail)}")


def selector(case: CaseResult, cell: str) -> str:
    """The argument of pytest's ``-k`` for this case in ``cell``."""
    name = case.nodeid.rpartition("::")[2]
    return name.replace(case.cell, cell, 1) if case.cell else name


def _target(case: CaseResult, project: Path) -> str:
    """The name of the suite if the project has it, else the path of the case's file."""
    relative = Path(case.nodeid.partition("::")[0])
    if relative.parts[:1] == ("suites",) and (project / relative).is_file():
        return case.suite
    file = (project / relative).resolve()
    if not file.is_file():
        raise UsageError(f"{case.key}: {relative} is not in this harness", hint="use a version of the harness that has this case")
    return str(file)


def _runs(reports: Path) -> list[Path]:
    return [path for path in (reports / "runs").glob("*") if (path / "run.json").is_file()]


@contextmanager
def checkout(project: Path, commit: str) -> Iterator[Path]:
    """A temporary checkout of the harness at ``commit``. Raises InfrastructureError if git cannot create it."""
    # git would also search the parent directories, and might find an unrelated repository.
    if not (project / ".git").exists():
        raise InfrastructureError(f"no harness at {commit}: {project} is not a git checkout", hint="run fxh from a git checkout")
    with tempfile.TemporaryDirectory(prefix="fxh-harness-") as directory:
        tree = Path(directory) / "tree"
        done = subprocess.run(
            ["git", "-C", str(project), "worktree", "add", "--detach", str(tree), commit], capture_output=True, text=True
        )
        if done.returncode:
            raise InfrastructureError(f"no harness at {commit}: {done.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(project), "worktree", "remove", "--force", str(tree)], capture_output=True)
