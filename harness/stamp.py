# SPDX-License-Identifier: BSD-2-Clause
"""How a moment is written: UTC, to the second."""

from __future__ import annotations

import time

ISO = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    """For people and files: ``2026-11-25T03:13:47Z``."""
    return time.strftime(ISO, time.gmtime())


def compact() -> str:
    """For names, which sort by it: ``20261125T031347Z``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
