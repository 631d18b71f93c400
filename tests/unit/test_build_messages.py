# SPDX-License-Identifier: BSD-2-Clause
"""Long builds print a message at once, also in a worker whose output pytest captures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASE = """
import logging, sys

def test_waits():
    print("printed by the case")
    logging.getLogger("fxh.lab.kernel").info("building %s", "something")
    logging.getLogger("fxh.lab").info("another logger")
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "worker"])
def test_the_start_of_a_build_is_printed(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "test_it.py").write_text(CASE)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, "test_it.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines() == ["building something"]
    assert "1 passed" in done.stdout
    assert "printed by the case" not in done.stdout


def test_the_log_of_fxh_does_not_print_it_again(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import logging\nlogging.basicConfig(level=logging.INFO)\n")
    (tmp_path / "test_it.py").write_text(CASE)
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines() == ["building something", "INFO:fxh.lab:another logger"]
