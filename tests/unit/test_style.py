# SPDX-License-Identifier: BSD-2-Clause
"""tests/style.py: which texts it checks, and where a sentence ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import style

LONG = " ".join(["word"] * 26)
SHORT = " ".join(["word"] * 13)


def found(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [complaint for _, complaint in style.complaints(path)]


@pytest.mark.parametrize(
    ("text", "long"),
    [
        (f"{LONG}.", 1),
        (f"{SHORT}. {SHORT}.", 0),
        (f"{SHORT}: {SHORT}.", 1),
        (f"{SHORT}; {SHORT}.", 1),
        (f"**{SHORT}.** {SHORT}.", 0),
        (f"{SHORT}:\n\n- {SHORT}\n- {SHORT}\n", 0),
        (f"{SHORT} ({SHORT}).", 0),
        (f"{SHORT} ({LONG}).", 1),
        (f"{SHORT} `{LONG}`.", 0),
        (f"| a | b |\n|---|---|\n| {SHORT} | {SHORT} |", 0),
        (f"| a | b |\n|---|---|\n| {SHORT}: {SHORT} | b |", 1),
        (f"```\n{LONG}\n```\n", 0),
        (f"    {LONG}\n", 0),
        (f"# {LONG}\n", 0),
    ],
)
def test_sentences_of_a_page(tmp_path: Path, text: str, long: int) -> None:
    assert len(found(tmp_path / "page.md", text)) == long


@pytest.mark.parametrize(
    ("text", "long"),
    [
        (f'"""{LONG}."""', 1),
        (f'"""{SHORT}.\n\n{SHORT}.\n"""', 0),
        (f'"""{SHORT}:\n\n    {LONG}\n\n{SHORT}.\n"""', 0),
        (f'"""{SHORT}.\n\n- {SHORT}\n- {SHORT}\n"""', 0),
        (f"# {SHORT}\n# {SHORT}\nx = 1\n", 1),
        (f'# {SHORT}\n# {SHORT}\nX = re.compile(r"x")\n', 0),
        (f'raise Error(f"{{x}}: {LONG}")', 1),
        (f'raise Error("x", hint="{LONG}")', 1),
        (f'option(help="{LONG}")', 1),
        (f'x = "{LONG}"', 0),
    ],
)
def test_sentences_of_a_program(tmp_path: Path, text: str, long: int) -> None:
    assert len(found(tmp_path / "program.py", text)) == long


@pytest.mark.parametrize(
    "text", ["It is no file.", "Each takes what was found.", "What is missing is added.", "A process of its own."]
)
def test_phrases(tmp_path: Path, text: str) -> None:
    assert found(tmp_path / "page.md", text)
    assert found(tmp_path / "program.py", f'"""{text}"""')
    assert found(tmp_path / "program.py", f'raise Error("{text}")')
