# SPDX-License-Identifier: BSD-2-Clause
"""Where runs are, and which of them, of their cases and of their cells is meant; and which disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UsageError
from harness.results.model import FAILED, CaseResult, RunResult

Reports = Annotated[Path | None, typer.Option("--reports", help="Where results are (default: reports/).")]


def reports(given: Path | None) -> Path:
    from harness import paths

    return (given or paths.workspace() / "reports").absolute()


# pyproject.toml has the same for plain pytest. The warning is about an installed copy: pytest wants to rewrite the assertions of
# the whole distribution that a plugin comes from, and fxh itself has imported it already.
_SETTINGS = (
    "-c", os.devnull, "-o", "xfail_strict=true", "--strict-markers", "--strict-config", "-ra",
    "-W", "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning",
)  # fmt: skip


def pytest_root(project: Path, root: Path) -> list[str]:
    """pytest's words for the directory that cases are named relative to.

    The suites of the project take no settings and no conftest.py from above it. pytest would look for these in all directories
    above an installed copy, and find those of the user's own project.
    """
    settings = [*_SETTINGS, "--confcutdir", str(root)] if root == project else []
    return [*settings, "--rootdir", str(root)]


def disk(path: Path, root: str) -> None:
    """Read a disk image before pytest starts, which then finds it known, and say what it is. Raises HarnessError."""
    from harness.images import diskread

    diskread.print_summary(diskread.read_image(path, root))


def run_directory(where: Path, name: str) -> Path:
    """A run by its name, the beginning of it, its directory, or ``latest``. Raises UsageError."""
    if "/" in name and (Path(name) / "run.json").is_file():
        return Path(name).resolve()
    if name == "latest":
        found = [(where / "latest").resolve()] if (where / "latest" / "run.json").is_file() else []
    else:
        found = sorted(path for path in (where / "runs").glob(f"{_literal(name)}*") if (path / "run.json").is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} may be any of {', '.join(path.name for path in found[:5])}", hint="say more of its name")
    raise UsageError(f"no run {name!r} in {where}", hint="`fxh history` lists the runs")


def _literal(text: str) -> str:
    import glob

    return glob.escape(text)


def pick_case(run: RunResult, wanted: str, cell: str = "") -> CaseResult:
    """The one case of ``run`` that is meant; of several the one that failed. Raises UsageError."""
    found = [case for case in run.cases if wanted in case.key and cell in case.cell]
    exact = [case for case in found if wanted in (case.key, case.key.rpartition("::")[2], case.case)]
    failed = [case for case in exact or found if case.outcome == FAILED]
    choice = failed or exact or found
    if not choice:
        raise UsageError(f"no case like {wanted!r} in run {run.run}", hint="`fxh history` lists cases")
    if len(choice) > 1:
        names = "; ".join(f"{case.key} in {case.cell}" for case in choice[:6])
        raise UsageError(f"{wanted!r} may be any of {names}", hint="say the whole case, and --cell")
    return choice[0]


def pick_key(keys: tuple[str, ...], wanted: str) -> tuple[str, ...]:
    """The case keys that are meant: the one that is so called, else all that hold ``wanted``. Raises UsageError."""
    exact = tuple(key for key in keys if wanted in (key, key.rpartition("::")[2]))
    found = exact or tuple(key for key in keys if wanted in key)
    if not found:
        raise UsageError(f"no case like {wanted!r} was ever recorded", hint="`fxh history` without a case lists the runs")
    return found
