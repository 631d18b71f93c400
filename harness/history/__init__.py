"""The memory of runs: one SQLite file beside them, written at the end of each, read for verdicts and reports."""

from harness.history.store import FILE, History, Row, Run

__all__ = ["FILE", "History", "Row", "Run"]
