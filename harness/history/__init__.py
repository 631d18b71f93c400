# SPDX-License-Identifier: BSD-2-Clause
"""The history of runs: one SQLite file next to the run directories. Each run adds itself at its end; verdicts and reports read it."""

from harness.history.rows import Row, Run
from harness.history.store import FILE, History

__all__ = ["FILE", "History", "Row", "Run"]
