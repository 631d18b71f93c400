# SPDX-License-Identifier: BSD-2-Clause
"""fxh run: run suites on guests through pytest, and derive the exit code from their results."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import completion, run_lookup, run_options
from harness.cli.run_options import Given
from harness.errors import ExitCode


def register(app: typer.Typer) -> None:
    app.command()(run)


@run_options.takes()
def run(
    context: typer.Context,
    *,
    suites: Annotated[
        list[str] | None,
        typer.Argument(help="Suites by name, or paths of test files (default: all suites).", autocompletion=completion.suites),
    ] = None,
    given: Given,
) -> None:
    """Run suites and write reports/latest/. Exit codes: 0 all judged cases passed, 1 product failure, 2 usage error, 3 harness
    error, 4 infrastructure failure (some cases have no verdict), 5 no case selected, 130 interrupted."""
    import pytest

    from harness import paths
    from harness.config import lab_count, load
    from harness.plugin.options import Invocation
    from harness.plugin.progress import Progress
    from harness.results import run_dir

    if given.get("pvshim"):
        given["type"] = "pvshim"
    if given.get("with_release") and not given.keys() & {"guest", "image", "disk"}:
        _add_release(given)
    options = load({f"run.{key}": value for key, value in given.items()}).config.run
    if options.pause:
        from harness.plugin import pause

        pause.check(options)
    if options.disk is not None and options.kernel is None and not options.image:
        run_lookup.disk(options.disk, options.root)
    project = paths.project()
    targets = _targets(project, suites or [])
    results = run_lookup.new_reports(options.reports)
    if options.resume:
        directory = run_lookup.run_directory(results, options.resume)
        words = _resume_words(directory)
        if words is not None:
            sys.argv[1:] = words
            code = context.find_root().command.main(words, standalone_mode=False)
            raise typer.Exit(code if isinstance(code, int) else 0)
    else:
        directory = run_dir.new(results)
    argv = [
        *targets,
        *run_lookup.pytest_root(project, _case_root(project, targets)),
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        # Only the harness's own tests need it, and it takes seconds to load at the end of a run.
        "-p",
        "no:hypothesispytest",
        "--tb=short",
    ]
    if context.find_root().params.get("verbose"):
        argv += ["-o", "log_cli=true", "--log-cli-level=DEBUG"]
    if options.keyword:
        argv += ["-k", options.keyword]
    if options.exitfirst:
        argv += ["-x"]
    if (workers := options.workers or lab_count.automatic()) > 1:
        argv += ["-n", str(workers), "--dist", "worksteal"]
    argv += ["--junitxml", str(directory / "junit.xml"), "--alluredir", str(directory / "allure")]
    status = pytest.main(argv, plugins=[Progress(), Invocation(given, directory)])
    raise typer.Exit(_exit_code(int(status), directory))


def _add_release(given: Given) -> None:
    """Test the current release and the control guest, or print why there is no release."""
    from harness.images import current_release

    found, why = current_release.release()
    if found is not None:
        given |= {"guest": "control,freebsd", "image": found.name}
    else:
        print(why, file=sys.stderr)


def _targets(project: Path, suites: list[str]) -> list[str]:
    """The paths of ``suites``, which are names or paths; all suites by default. Raises UsageError for one that does not exist."""
    from harness import paths

    known = paths.suite_names()
    found = []
    for suite in suites:
        if suite in known:
            found.append(str(project / "suites" / suite))
        elif Path(suite.partition("::")[0]).exists():
            found.append(suite)
        else:
            raise run_lookup.no_suite(suite)
    return found or [str(project / "suites")]


def _case_root(project: Path, targets: list[str]) -> Path:
    """The directory that node ids are relative to: the project, or the parent directory of a suite outside of it."""
    first = Path(targets[0].partition("::")[0]).resolve()
    if first.is_relative_to(project.resolve()):
        return project
    return (first if first.is_dir() else first.parent).parent


def _only_names_run(words: list[str]) -> bool:
    """Whether the arguments of `fxh run` contain only ``--resume`` and ``--reports``."""
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    return options <= {"--resume", "--reports"} and len(words) <= 2 * len(options)


def _resume_words(directory: Path) -> list[str] | None:
    """The original arguments of the run, with ``--resume``; None if this command line or the original has no others to add."""
    from harness.results.model import read_run

    words = shlex.split(read_run(directory).command)
    if not _only_names_run(sys.argv[2:]) or words[1:2] != ["run"] or _only_names_run(words[2:]):
        return None
    return [*words[1:], "--resume", str(directory)]


def _print_summary(directory: Path, status: int) -> None:
    try:
        sentence = json.loads((directory / "report.json").read_text())["sentence"]
    except (OSError, ValueError, KeyError):
        sentence = "no report was written"
    sys.stdout.flush()  # keeps pytest's output before this line if both go into one file
    print(f"{sentence}\nreport: {directory / 'index.html'}", file=sys.stderr)
    if status == ExitCode.NOTHING_SELECTED:
        print("hint: `fxh list --cases` lists the cases, and why each is skipped", file=sys.stderr)


def _exit_code(status: int, directory: Path) -> int:
    """The exit code of the run, from pytest's exit status and the results."""
    from harness.results.model import read_run

    if status == 4:
        return ExitCode.USAGE
    try:
        code = read_run(directory).exit_code
    except (OSError, ValueError):
        return {2: ExitCode.HARNESS, 5: ExitCode.NOTHING_SELECTED}.get(status, ExitCode.HARNESS)
    _print_summary(directory, status)
    # 2 and 3: pytest was interrupted or failed internally, perhaps in code outside of the cases.
    if code is None or (status in (2, 3) and code in (ExitCode.OK, ExitCode.NOTHING_SELECTED)):
        return ExitCode.HARNESS
    return run_lookup.with_delivery(directory, code)
