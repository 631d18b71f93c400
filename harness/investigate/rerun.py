# SPDX-License-Identifier: BSD-2-Clause
"""One case again, in a process of its own, with inputs of our choice."""

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
    """How the case ended; ``refused`` says that the inputs themselves were turned down (a kernel that is none)."""

    outcome: str
    identity: str = ""
    reason: str = ""
    refused: bool = False
    run: Path | None = None


def rerun(case: CaseResult, options: Mapping[str, str], *, cell: str, reports: Path, tree: Path | None = None) -> Answer:
    """Run ``case`` in ``cell`` with ``options`` of ``fxh run``. ``tree`` is another checkout of the harness to run it with.

    Raises UsageError when the case's file is not there.
    """
    project = tree or paths.project()
    argv = [sys.executable, "-c", _MAIN, "run", _target(case, project), "-k", selector(case, cell)]
    for name, value in sorted(options.items()):
        argv += [f"--{name}", value]
    argv += ["--reports", str(reports)]
    environment = os.environ | ({"PYTHONPATH": str(tree), "FXH_PROJECT": str(tree)} if tree else {})
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
    return Answer(INFRASTRUCTURE, reason=f"fxh run ended with {done.returncode}: {' / '.join(tail)}")


def selector(case: CaseResult, cell: str) -> str:
    """For pytest's ``-k``: this case, in ``cell`` rather than in its own."""
    name = case.nodeid.rpartition("::")[2]
    return name.replace(case.cell, cell, 1) if case.cell else name


def _target(case: CaseResult, project: Path) -> str:
    """The suite by name where the project has the case's file, else that file."""
    relative = Path(case.nodeid.partition("::")[0])
    if relative.parts[:1] == ("suites",) and (project / relative).is_file():
        return case.suite
    file = (project / relative).resolve()
    if not file.is_file():
        raise UsageError(f"{case.key}: {relative} is not in this harness", hint="use the harness that has this case")
    return str(file)


def _runs(reports: Path) -> list[Path]:
    return [path for path in (reports / "runs").glob("*") if (path / "run.json").is_file()]


@contextmanager
def checkout(project: Path, commit: str) -> Iterator[Path]:
    """The harness as it was at ``commit``, for as long as the block lasts. Raises InfrastructureError."""
    # git would look for a repository in all directories above, and could take one that has nothing to do with the harness.
    if not (project / ".git").exists():
        raise InfrastructureError(f"no harness at {commit}: {project} is no git checkout", hint="run it in a checkout")
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
