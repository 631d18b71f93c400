# SPDX-License-Identifier: BSD-2-Clause
"""Runs a suite that exists only for a measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
# Defines `note(value)` for the suite.
_NOTE = """
import json, os

def note(value):
    with open(os.environ["FXH_BENCH_NOTES"], "a") as file:
        file.write(json.dumps(value) + "\\n")
"""


def run(text: str, options: list[str], function: str = "") -> tuple[list[Any], str]:
    """Run the suite ``text``, or one ``function`` of it, with ``options`` of pytest.

    Returns the values that it gave to ``note()``, and the end of pytest's output if a case failed, else "".
    """
    with tempfile.TemporaryDirectory() as scratch:
        suite, notes = Path(scratch) / "suites/bench/test_bench.py", Path(scratch) / "notes"
        suite.parent.mkdir(parents=True)
        suite.write_text(_NOTE + text)
        (Path(scratch) / "conftest.py").write_text((PROJECT / "conftest.py").read_text())
        common = ["-q", "--no-header", "-p", "no:cacheprovider", "--rootdir", scratch, "--fxh-reports", f"{scratch}/r"]
        chosen = f"{suite}::{function}" if function else str(suite)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *common, *options, chosen], cwd=scratch, capture_output=True, text=True, check=False,
            env={**os.environ, "FXH_BENCH_NOTES": str(notes)},
        )  # fmt: skip
        noted = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return noted, f"{done.stdout[-2000:]}{done.stderr[-1000:]}" if done.returncode else ""
