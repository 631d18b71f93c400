# SPDX-License-Identifier: BSD-2-Clause
"""What a person sees while a run goes on: a line a case as it ends, and on a terminal what runs at the moment."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from harness.console.text import plain


class Progress:
    """A pytest plugin of ``fxh run``."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._running: dict[str, float] = {}
        self._done = 0
        self._total = 0
        self._lock = threading.Lock()
        self._outcomes: dict[str, tuple[str, float, str]] = {}
        self._setups: dict[str, str] = {}
        self._stop = threading.Event()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)
        if self._terminal:
            threading.Thread(target=self._spin, daemon=True).start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._total = len(ids)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letters: we print a line of our own for each case."""
        category: str = "error" if report.when != "call" and report.failed else report.outcome
        if report.passed and report.when != "call":
            category = ""
        if report.skipped and hasattr(report, "wasxfail"):  # a known issue: pytest's summary has no reason for a skip in it
            category = "xfailed"
        return category, "", category.upper()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        with self._lock:
            self._running[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self._outcomes.get(report.nodeid)
        word, seconds = (before[0], before[1]) if before else ("passed", 0.0)
        if report.failed or (report.skipped and word == "passed"):
            ours = dict(report.user_properties).get("outcome")
            word = str(ours or report.outcome).upper() if report.failed else str(ours or "skipped")
        for name, text in report.user_properties:
            if name == "setup":
                self._setups[report.nodeid] = str(text)
        self._outcomes[report.nodeid] = (word, seconds + report.duration, _first_line(report))
        if report.when not in ("setup", "call", "teardown"):  # xdist's word for a worker that ended: nothing more comes of the case
            self.pytest_runtest_logfinish(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        word, seconds, why = self._outcomes.pop(nodeid, ("?", 0.0, ""))
        setup = self._setups.pop(nodeid, "")
        with self._lock:
            self._running.pop(nodeid, None)
            self._done += 1
            self._clear()
            note = f"  {why}" if word != "passed" and why else ""
            note += f"  (and setup: {plain(setup)[:200]})" if setup else ""
            print(f"[{self._done}/{self._total}] {word:<14} {seconds:6.1f} s  {nodeid.removeprefix('suites/')}{note}", flush=True)

    def pytest_sessionfinish(self) -> None:
        self._stop.set()
        self._clear()

    def _clear(self) -> None:
        if self._terminal:
            sys.stdout.write("\r\x1b[K")

    def _spin(self) -> None:
        while not self._stop.wait(0.25):
            with self._lock:
                now = time.monotonic()
                running = [f"{nodeid.rpartition('::')[2]} {now - begun:.0f} s" for nodeid, begun in self._running.items()]
                sys.stdout.write("\r\x1b[K" + "  |  ".join(running)[:110])
                sys.stdout.flush()


def _first_line(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return plain(report.wasxfail)[:200]
    if report.skipped and isinstance(report.longrepr, tuple):
        return plain(report.longrepr[2])[:200]
    lines = str(report.longrepr or "").strip().splitlines()
    wanted = next((line for line in lines if line.startswith("E ") or "] " in line), lines[0] if lines else "")
    return plain(wanted)[:200]
