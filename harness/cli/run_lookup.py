# SPDX-License-Identifier: BSD-2-Clause
"""Find the run, case or disk that the arguments of a command name, and build pytest's arguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import paths
from harness.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from harness.results.model import CaseResult, RunResult

Reports = Annotated[Path | None, typer.Option("--reports", help="Use the results in this directory (default: reports/).")]


def reports(given: Path | None) -> Path:
    """The directory with the results of all runs. Raises UsageError if ``given`` does not exist."""
    if given is not None and not given.is_dir():
        raise UsageError(f"--reports {given}: no such directory", hint="give the directory that `fxh run --reports` used")
    return (given or paths.workspace() / "reports").absolute()


def new_reports(given: Path | None) -> Path:
    """The directory for the results of all runs, which this function creates. Raises UsageError if it cannot."""
    if given is not None:
        try:
            given.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(f"--reports {given}: {exc.strerror}", hint="give a directory that you can write to") from exc
    return reports(given)


# pyproject.toml has the same settings for plain pytest. The warning concerns an installed copy: pytest tries to rewrite the
# assertions of the plugin's whole distribution, and fxh has already imported parts of it.
_SETTINGS = (
    "-c", os.devnull, "-o", "xfail_strict=true", "--strict-markers", "--strict-config", "-ra",
    "-W", "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning",
)  # fmt: skip


def pytest_root(project: Path, root: Path) -> list[str]:
    """pytest's arguments for ``root``, the directory that node ids are relative to.

    They keep settings and conftest.py files above the project out. Otherwise pytest would search all directories above an
    installed copy, and find those of the user's own project.
    """
    settings = [*_SETTINGS, "--confcutdir", str(root)] if root == project else []
    # labgrid's plugin comes with the package. It would replace pytest's log formatters, and it has fixtures called target and env.
    return [*settings, "-p", "no:labgrid", "--rootdir", str(root)]


def disk(path: Path, root: str) -> None:
    """Read a disk image, so that pytest finds it in the cache, and print a summary of it. Raises HarnessError."""
    from harness.images import diskimage

    diskimage.print_summary(diskimage.read_image(path, root))


def run_directory(where: Path, name: str) -> Path:
    """The directory of a run, given by that directory, its name, a prefix of its name, or ``latest``. Raises UsageError."""
    if "/" in name and (Path(name) / "run.json").is_file():
        return Path(name).resolve()
    if name == "latest":
        found = [(where / "latest").resolve()] if (where / "latest" / "run.json").is_file() else []
    else:
        found = sorted(path for path in (where / "runs").glob(f"{_literal(name)}*") if (path / "run.json").is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"run {name!r} is ambiguous: {', '.join(path.name for path in found[:5])}", hint="use a longer prefix")
    raise UsageError(f"no run {name!r} in {where}", hint="`fxh history` lists the runs")


def with_delivery(run: Path, code: int) -> int:
    """The exit code of a command that reports the run in directory ``run``, whose cases give ``code``.

    A success is an infrastructure failure until the history has the run.
    """
    from harness.results.run_dir import UNDELIVERED

    good = (ExitCode.OK, ExitCode.NOTHING_SELECTED)
    return ExitCode.INFRASTRUCTURE if code in good and (run / UNDELIVERED).exists() else code


def _literal(text: str) -> str:
    import glob

    return glob.escape(text)


def pick_case(run: RunResult, wanted: str, cell: str = "") -> CaseResult:
    """The case of ``run`` whose key contains ``wanted``; of several the failed one. Raises UsageError if none or several match."""
    from harness.results.model import FAILED

    found = [case for case in run.cases if wanted in case.key and cell in case.cell]
    exact = [case for case in found if wanted in (case.key, case.key.rpartition("::")[2], case.case)]
    failed = [case for case in exact or found if case.outcome == FAILED]
    choice = failed or exact or found
    if not choice:
        raise UsageError(f"no case matches {wanted!r} in run {run.run}", hint="`fxh list --cases` lists the cases")
    if len(choice) > 1:
        names = "; ".join(f"{case.key} in {case.cell}" for case in choice[:6])
        raise UsageError(f"case {wanted!r} is ambiguous: {names}", hint="use the full name, and --cell CELL")
    return choice[0]


def pick_key(keys: tuple[str, ...], wanted: str) -> tuple[str, ...]:
    """The keys with the name ``wanted``, else all that contain it. Raises UsageError for no match."""
    exact = tuple(key for key in keys if wanted in (key, key.rpartition("::")[2]))
    found = exact or tuple(key for key in keys if wanted in key)
    if not found:
        raise UsageError(f"no recorded case matches {wanted!r}", hint="`fxh history` without a case lists the runs")
    return found


def no_suite(name: str) -> UsageError:
    """The error for a suite that the project does not have."""
    return UsageError(f"no suite {name!r}", hint=f"valid names: {', '.join(paths.suite_names())}")
