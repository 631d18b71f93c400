# SPDX-License-Identifier: BSD-2-Clause
"""Planted regressions and known issues name cases that exist, and words that the suites or the harness print."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from harness.cli import testplan
from tests.conftest import ROOT, import_script

# Words of guests and tools, which no file of the harness contains.
FOREIGN = (
    "page fault while in kernel mode in",
    "was killed: failed to reclaim memory",
    "Unable to find partition",
    "Unable to remove vbd",
    "still waiting after",
    "polling error: Interrupted system call",
    "xenbus_set_state failed",
)
# The syntax of a regex, and the names and numbers that a message inserts.
VARIABLE = re.compile(r"\(\?\w*[:)]|\[[^\]]*\]|\\.|[()|.*+?]|\b(?:(?:xvd|xbd|ada|vif)\w+|ipv6|init|image|uid|jid|for)\b|\d+|[:,;]")


PLANTS = import_script("tests/planted", "plants")
ISSUES = tomllib.loads((ROOT / "suites/known_issues.toml").read_text())["issue"]
CASES = {f"{case.suite}/{case.case}" for case in testplan.cases(ROOT / "suites")}


def strings(path: Path) -> list[str]:
    """The constant parts of all strings in a Python file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


CORPUS = "\n".join(text for top in ("suites", "harness") for path in (ROOT / top).rglob("*.py") for text in strings(path))


def missing(words: str) -> list[str]:
    """The phrases of a regex that the code does not contain; [] if all phrases of one alternative are there."""
    for text in FOREIGN:
        words = words.replace(text, "|")
    found = []
    for alternative in re.split(r"\|(?![^()]*\))", words):
        phrases = [phrase.strip(" -") for phrase in VARIABLE.split(alternative) if len(phrase.split()) > 1]
        found.append([phrase for phrase in phrases if phrase not in CORPUS])
    return min(found, key=len)


@pytest.mark.parametrize("name", PLANTS.TABLE)
def test_a_plant_has_a_case_and_words_of_a_failure(name: str) -> None:
    plant = PLANTS.TABLE[name]
    assert plant.case.partition("[")[0] in CASES
    assert missing(plant.words) == [], f"no message of the suites or the harness has the words {plant.words!r}"


@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: f"{issue['case']}-{issue['cells']}")
def test_a_known_issue_has_words_of_a_failure(issue: dict[str, str]) -> None:
    assert missing(issue["says"]) == [], f"no message of the suites or the harness has the words {issue['says']!r}"


@pytest.mark.parametrize("words", ["the balloon stands at .* was due", "lines of \\d+ got lost", "should be xvdz: nowhere at all"])
def test_words_that_no_message_has_are_found(words: str) -> None:
    assert missing(words)
