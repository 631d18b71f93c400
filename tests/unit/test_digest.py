# SPDX-License-Identifier: BSD-2-Clause
"""The hash of what Python files do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.digest import code_sha256

TEXT = '''"""A module."""
import time

WORDS = {"one", "two", "three"}

def wait(seconds: float = 1.5, *names: str) -> bool:
    """Wait."""
    for name in names:
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            return name in {"a", "b", "c"}
    return (lambda x: x + 1)(0) == 1
'''


@pytest.fixture
def hashed(tmp_path: Path) -> Callable[[str], str]:
    def take(text: str) -> str:
        (tmp_path / "m.py").write_text(text)
        return code_sha256([tmp_path / "m.py"])

    return take


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import time", "# a comment\n\nimport time"),
        ('"""Wait."""', '"""Wait for all."""\n'),
        ("        try:", "        assert name\n        try:  # twice"),
    ],
)
def test_prose_does_not_change_it(hashed: Callable[[str], str], old: str, new: str) -> None:
    assert hashed(TEXT) == hashed(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.5", "1.6"), ('"two"', '"2"'), ("sleep", "monotonic"), ("x + 1", "x - 1"), ("KeyboardInterrupt", "OSError"),
        ("*names", "**names"), ('"b"', '"d"'), ("seconds", "delay"),
    ],
)  # fmt: skip
def test_code_changes_it(hashed: Callable[[str], str], old: str, new: str) -> None:
    assert hashed(TEXT) != hashed(TEXT.replace(old, new))


def test_it_is_the_same_in_each_process(tmp_path: Path) -> None:
    """The order of a set depends on the process."""
    (tmp_path / "m.py").write_text(TEXT)
    program = "import pathlib, sys; from harness.digest import code_sha256; print(code_sha256([pathlib.Path(sys.argv[1])]))"
    hashes = {
        subprocess.check_output(
            [sys.executable, "-c", program, str(tmp_path / "m.py")], env={**os.environ, "PYTHONHASHSEED": str(seed)}
        )
        for seed in range(4)
    }
    assert len(hashes) == 1
