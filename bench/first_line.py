# SPDX-License-Identifier: BSD-2-Clause
"""Time `fxh boot` until the guest's first line. bench/disk.py and bench/image.py use this module."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 300.0


def first_line(*words: str, cwd: Path | None = None, environment: Mapping[str, str] = os.environ) -> float:
    """Seconds from the command to the kernel's first line. Raises SystemExit if the guest shows no line."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", "boot", *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdout is not None
        try:
            while (left := begun + PATIENCE - time.monotonic()) > 0 and select.select([process.stdout], [], [], left)[0]:
                data = os.read(process.stdout.fileno(), 1 << 16)
                if data.strip():
                    return time.monotonic() - begun
                if not data:
                    break
        finally:
            process.terminate()
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        errors.seek(0)
        raise SystemExit(f"no line from fxh boot {' '.join(words)}: {errors.read()[-2000:]}")
