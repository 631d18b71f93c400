# SPDX-License-Identifier: BSD-2-Clause
"""Writes docs/test-plan.md from the docstrings of the cases, and tells whether the page is up to date."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import paths

PAGE = "docs/test-plan.md"
_HEAD = """\
# Test plan

`fxh check --test-plan docs/test-plan.md` writes this page from the docstrings of the cases: do not edit it. A row is one test
function, which runs in each cell and with each of its parameters. [Writing a case](writing-cases.md) explains the docstrings.

*Source* is the file that defines the right behaviour; without a prefix it is a file of FreeBSD. *Would have caught* lists real
bugs and [planted regressions](suites.md#planted-regressions). A known issue is an entry of `suites/known_issues.toml`. An empty
field means that no source or no bug is recorded.
"""


@dataclass(frozen=True)
class PlannedCase:
    """A case with the parts of its docstring. ``source`` and ``catches`` may be empty."""

    suite: str
    case: str
    title: str
    source: str = ""
    catches: str = ""


def cases(suites: Path) -> tuple[PlannedCase, ...]:
    """Return the cases below ``suites`` by suite, file and place in the file. Nothing is imported."""
    found = []
    for path in sorted(suites.glob("*/test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.append(parse(path.parent.name, node.name, ast.get_docstring(node, clean=False)))
    return tuple(found)


def parse(suite: str, case: str, docstring: str | None) -> PlannedCase:
    """Read the title and the fields ``Source:`` and ``Catches:`` of a docstring. Further lines of a field are indented."""
    fields: dict[str, str] = {}
    name = ""
    title, *lines = inspect.cleandoc(docstring or case).splitlines()
    for line in lines:
        # Catches: pages that are not zeroed (FreeBSD 9)
        word, colon, rest = line.partition(":")
        if colon and word in ("Source", "Catches"):
            name = word
            fields[name] = rest.strip()
        elif name and line.startswith(" "):
            fields[name] += f" {line.strip()}"
        else:
            name = ""
    return PlannedCase(suite, case, title.replace("``", ""), fields.get("Source", ""), fields.get("Catches", ""))


def render(planned: Iterable[PlannedCase]) -> str:
    """Return the page: one table for each suite."""
    suites: dict[str, list[PlannedCase]] = {}
    for case in planned:
        suites.setdefault(case.suite, []).append(case)
    lines = [_HEAD]
    for suite, rows in suites.items():
        lines += [f"## {suite}", "", "| case | checks | source | would have caught |", "|---|---|---|---|"]
        lines += [f"| `{row.case}` | {_cell(row.title)} | {_cell(row.source)} | {_cell(row.catches)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.removesuffix(".").replace("|", "\\|")


def write(page: Path) -> None:
    """Write the page for the cases of this project."""
    page.write_text(render(cases(paths.project() / "suites")))


def stale() -> tuple[str, ...]:
    """Return a line if docs/test-plan.md does not match the docstrings of the cases. For ``fxh check``."""
    try:
        same = (paths.project() / PAGE).read_text() == render(cases(paths.project() / "suites"))
    except OSError as exc:
        return (f"{PAGE}: {exc.strerror}",)
    return () if same else (f"{PAGE}: it does not match the docstrings of the cases; run `fxh check --test-plan {PAGE}`",)
