# SPDX-License-Identifier: BSD-2-Clause
"""The formats of a point in time: UTC, to the second."""

from __future__ import annotations

import time

ISO = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    """The current time for users and files: ``2026-11-25T03:13:47Z``."""
    return time.strftime(ISO, time.gmtime())


def compact() -> str:
    """The current time for names that sort by time: ``20261125T031347Z``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
