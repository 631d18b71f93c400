# SPDX-License-Identifier: BSD-2-Clause
"""fxh matrix: recorded runs as a table in docs/suites.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import paths
from harness.cli import run_lookup
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.results.matrix import Record

_group = typer.Typer(
    no_args_is_help=True, help="Maintain the matrix of docs/suites.md: tested FreeBSD releases, guest types and Xen versions."
)


def register(app: typer.Typer) -> None:
    app.add_typer(_group, name="matrix")


@_group.command()
def record(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: names, directories, or latest. First join the shards of a run: fxh merge.")
    ],
    freebsd: Annotated[str, typer.Option("--freebsd", help="Record this FreeBSD release for runs that do not name theirs.")] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept a run without all cases of its suites; the table shows how many are missing.")
    ] = False,
    reports: run_lookup.Reports = None,
) -> None:
    """Record runs in docs/matrix.json and rewrite the table. A later run replaces an earlier one, by suite and cell."""
    from harness.cli import matrix as collecting
    from harness.results import matrix
    from harness.results.model import read_run, write_text

    _require_checkout()
    entries, _ = collecting.collect({}, every_cell=True)
    expected: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        if entry.cell.under_test:
            expected.setdefault((entry.suite, entry.cell.type), set()).add(entry.case)
    new: list[Record] = []
    for name in runs:
        path = run_lookup.run_directory(run_lookup.reports(reports), name)
        try:
            run = read_run(path)
        except (OSError, ValueError) as exc:
            raise UsageError(f"{path}: {exc}", hint="choose a run with a complete run.json") from exc
        new += matrix.records(run, expected, freebsd=freebsd)
    for item in new:
        if item.absent and not partial:
            raise UsageError(
                f"run {item.run} lacks {item.absent} cases of {item.suite} in {item.place}",
                hint="run the rest and join both with `fxh merge`, or add --partial",
            )
    data = matrix.merge(_read(), new)
    text = _current(data)
    write_text(_data(), matrix.dump(data))
    write_text(_document(), text)
    for item in new:
        taken = "recorded" if item in data else f"{item.run} is older than the recorded run"
        typer.echo(f"{item.place} {item.suite}: {taken}")


@_group.command()
def write() -> None:
    """Rewrite the table of docs/suites.md from docs/matrix.json."""
    from harness.results.model import write_text

    _require_checkout()
    write_text(_document(), _current(_read()))


@_group.command()
def show() -> None:
    """Print the table."""
    from harness.results import matrix

    typer.echo(matrix.render(_read(), tuple(paths.suite_names())), nl=False)


def stale() -> tuple[str, ...]:
    """The errors of the table for ``fxh check``; () if it agrees with docs/matrix.json."""
    try:
        same = _current(_read()) == _document().read_text()
    except UsageError as exc:
        return (exc.message,)
    except OSError as exc:
        return (f"docs/suites.md: {exc.strerror}",)
    return () if same else ("docs/suites.md: its matrix differs from docs/matrix.json; run `fxh matrix write`",)


def _require_checkout() -> None:
    """Raises UsageError in an installed copy, which has no source tree to change."""
    if paths.project() == paths.PACKAGE / "_data":
        raise UsageError("an installed copy has no matrix to change", hint="run fxh from a git checkout")


def _data() -> Path:
    return paths.project() / "docs/matrix.json"


def _document() -> Path:
    return paths.project() / "docs/suites.md"


def _read() -> tuple[Record, ...]:
    from harness.results import matrix

    path = _data()
    return matrix.parse(path.read_text()) if path.is_file() else ()


def _current(data: tuple[Record, ...]) -> str:
    """docs/suites.md with the table of ``data``."""
    from harness.results import matrix

    return matrix.insert(_document().read_text(), matrix.render(data, tuple(paths.suite_names())))
