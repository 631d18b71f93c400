# SPDX-License-Identifier: BSD-2-Clause
"""fxh matrix: recorded runs as a table in docs/suites.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import paths
from harness.cli import run_lookup
from harness.errors import UsageError
from harness.results import matrix
from harness.results.model import read_run, write_text

app = typer.Typer(no_args_is_help=True, help="The matrix of docs/suites.md: what was tested, on which FreeBSD, guest type and Xen.")


@app.command()
def record(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: names, directories, or latest. Join parts of one run by `fxh merge` first.")
    ],
    freebsd: Annotated[
        str, typer.Option("--freebsd", help="The release, where a run does not tell it (a disk without a kernel).")
    ] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Take a run that lacks cases of its suites; the table says how many.")
    ] = False,
    reports: run_lookup.Reports = None,
) -> None:
    """Take runs into docs/matrix.json and write the table anew. A later run replaces an earlier one, suite by suite and cell by cell."""
    from harness.cli import matrix as collecting

    _to_change()
    entries, _ = collecting.collect(["--fxh-everywhere"])
    expected: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        if entry.cell.under_test:
            expected.setdefault((entry.suite, entry.cell.type), set()).add(entry.case)
    new: list[matrix.Record] = []
    for name in runs:
        path = run_lookup.run_directory(run_lookup.reports(reports), name)
        try:
            run = read_run(path)
        except (OSError, ValueError) as exc:
            raise UsageError(f"{path}: {exc}", hint="this run left nothing that can be read") from exc
        new += matrix.records(run, expected, freebsd=freebsd)
    for item in new:
        if item.absent and not partial:
            raise UsageError(
                f"run {item.run} has not {item.absent} cases of {item.suite} in {item.place}: it is a part of a run",
                hint="run the rest and join both by `fxh merge`, or take it as it is: --partial",
            )
    data = matrix.merge(_read(), new)
    text = _current(data)
    write_text(_data(), matrix.dump(data))
    write_text(_document(), text)
    for item in new:
        taken = "recorded" if item in data else f"{item.run} is older than what is recorded"
        typer.echo(f"{item.place} {item.suite}: {taken}")


@app.command()
def write() -> None:
    """Write the table of docs/suites.md anew from docs/matrix.json."""
    _to_change()
    write_text(_document(), _current(_read()))


@app.command()
def show() -> None:
    """Print the table."""
    typer.echo(matrix.render(_read(), _suites()), nl=False)


def stale() -> tuple[str, ...]:
    """What is wrong with the table: "" where it is what docs/matrix.json gives. For ``fxh check``."""
    try:
        same = _current(_read()) == _document().read_text()
    except UsageError as exc:
        return (exc.message,)
    except OSError as exc:
        return (f"docs/suites.md: {exc.strerror}",)
    return () if same else ("docs/suites.md: its matrix is not what docs/matrix.json gives; run `fxh matrix write`",)


def _to_change() -> None:
    """Raises UsageError for an installed copy, whose files are not the user's to change."""
    if paths.project() == paths.PACKAGE / "_data":
        raise UsageError("the matrix is a file of the source tree, and this is an installed copy", hint="run it in a checkout")


def _data() -> Path:
    return paths.project() / "docs/matrix.json"


def _document() -> Path:
    return paths.project() / "docs/suites.md"


def _suites() -> tuple[str, ...]:
    return tuple(path.parent.name for path in sorted((paths.project() / "suites").glob("*/__init__.py")))


def _read() -> tuple[matrix.Record, ...]:
    path = _data()
    return matrix.parse(path.read_text()) if path.is_file() else ()


def _current(data: tuple[matrix.Record, ...]) -> str:
    """docs/suites.md with the table of ``data``."""
    return matrix.insert(_document().read_text(), matrix.render(data, _suites()))
