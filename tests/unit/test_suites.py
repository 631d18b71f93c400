# SPDX-License-Identifier: BSD-2-Clause
"""The sources of the suites: titles, messages of assertions, imports, fixtures, and docs/test-plan.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from harness.cli import testplan
from harness.cli.testplan import PlannedCase
from tests.conftest import ROOT

SUITES = ROOT / "suites"
FILES = sorted(SUITES.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def fixtures(path: Path) -> set[str]:
    """The names of the fixtures that a file defines."""
    return {
        node.name
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(mark) for mark in node.decorator_list)
    }


def test_the_test_plan_is_up_to_date() -> None:
    assert testplan.stale() == ()


def test_a_docstring_has_a_title_a_source_and_a_bug() -> None:
    text = """Title with ``code``.

    More text, which mentions a Source: that is no field.

    Source: a.c, first();
        b.c
    Catches: bug 1
    The end.
    """
    assert testplan.parse("boot", "test_x", text) == PlannedCase("boot", "test_x", "Title with code.", "a.c, first(); b.c", "bug 1")
    assert testplan.parse("boot", "test_x", None) == PlannedCase("boot", "test_x", "test_x")


def test_a_page_with_a_missing_case_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "suites/boot"
    suite.mkdir(parents=True)
    (suite / "test_a.py").write_text('def test_one():\n    """One | two.\n\n    Source: a.c\n    """\n')
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(testplan.paths, "project", lambda: tmp_path)
    assert testplan.stale() == ("docs/test-plan.md: No such file or directory",)
    testplan.write(tmp_path / testplan.PAGE)
    assert "| `test_one` | One \\| two | a.c |  |" in (tmp_path / testplan.PAGE).read_text()
    assert testplan.stale() == ()
    (suite / "test_b.py").write_text('def test_two():\n    """Two."""\n')
    (line,) = testplan.stale()
    assert line.endswith("run `fxh check --test-plan docs/test-plan.md`")


@pytest.mark.parametrize("case", testplan.cases(SUITES), ids=lambda case: f"{case.suite}/{case.case}")
def test_a_title_is_one_sentence_without_codes(case: PlannedCase) -> None:
    assert re.fullmatch(r"[A-Za-z0-9`].{10,130}\.", case.title), case.title
    assert not re.match(r"[A-H]\d", case.title), case.title


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SUITES)))
def test_each_assertion_has_a_message(path: Path) -> None:
    bare = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Assert) and node.msg is None]
    assert not bare, f"{path}: assertions without a message in lines {bare}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SUITES)))
def test_helpers_come_from_support_modules(path: Path) -> None:
    modules = [node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]
    wrong = [name for name in modules if name == "conftest" or name.startswith("test_")]
    assert not wrong, f"{path} imports from {wrong}; move what it needs to support.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SUITES)))
def test_no_suite_overrides_a_fixture_of_the_plugin(path: Path) -> None:
    shadowed = fixtures(path) & fixtures(ROOT / "harness/plugin/fixtures.py")
    assert not shadowed, f"{path} overrides {shadowed}"
