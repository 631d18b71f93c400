# SPDX-License-Identifier: BSD-2-Clause
"""How long `fxh boot` takes to show the guest's first line. Not a benchmark of its own: other scripts use it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 300.0


def first_line(*words: str, cwd: Path | None = None, environment: Mapping[str, str] = os.environ) -> float:
    """Seconds from the command to the kernel's first line. Raises SystemExit if there is none."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "boot", *words],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            if line.strip():
                return time.monotonic() - begun
            if time.monotonic() - begun > PATIENCE:
                break
        raise SystemExit(f"no line from fxh boot {' '.join(words)}: {process.stderr.read()[-2000:] if process.stderr else ''}")
    finally:
        process.terminate()
        process.communicate(timeout=60)
