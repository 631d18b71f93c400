# SPDX-License-Identifier: BSD-2-Clause
"""The memory of runs: one SQLite file beside them, written at the end of each, read for verdicts and reports."""

from harness.history.rows import Row, Run
from harness.history.store import FILE, History

__all__ = ["FILE", "History", "Row", "Run"]
