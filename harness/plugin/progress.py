# SPDX-License-Identifier: BSD-2-Clause
"""Show the progress of a run: one line per case when it ends, the running cases on a terminal, and long builds when they begin."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from contextlib import nullcontext, suppress

import pytest

from harness.safetext import plain

# The builds of a lab and of the control guest's kernel take minutes.
_BUILD_LOGGERS = ("fxh.lab.build", "fxh.lab.kernel")
_CLEAR_LINE = "\r\x1b[K"
TERMINAL = threading.Lock()
"""Held by the thread that writes to the terminal."""


class Progress:
    """A pytest plugin of ``fxh run``."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._running: dict[str, float] = {}
        self._done = 0
        self._total = 0
        self._outcomes: dict[str, tuple[str, float, str]] = {}
        self._setups: dict[str, str] = {}
        self._stop = threading.Event()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)
        if self._terminal:
            threading.Thread(target=self._show_running, daemon=True).start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._total = len(ids)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Suppress pytest's letters: each case gets a line."""
        category: str = "error" if report.when != "call" and report.failed else report.outcome
        if report.passed and report.when != "call":
            category = ""
        if report.skipped and hasattr(report, "wasxfail"):  # a known issue; as "skipped" pytest's summary would need a reason
            category = "xfailed"
        return category, "", category.upper()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        with TERMINAL:
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
        if report.when not in ("setup", "call", "teardown"):  # xdist's report of a worker that ended, the last of its case
            self.pytest_runtest_logfinish(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        word, seconds, why = self._outcomes.pop(nodeid, ("?", 0.0, ""))
        setup = self._setups.pop(nodeid, "")
        with TERMINAL:
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
            sys.stdout.write(_CLEAR_LINE)

    def _show_running(self) -> None:
        """Keep the last line of the terminal up to date, four times a second."""
        while not self._stop.wait(0.25):
            with TERMINAL:
                now = time.monotonic()
                running = [f"{nodeid.rpartition('::')[2]} {now - begun:.0f} s" for nodeid, begun in self._running.items()]
                sys.stdout.write(_CLEAR_LINE + "  |  ".join(running)[:110])
                sys.stdout.flush()


def _first_line(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return _one_line(report.wasxfail)
    if report.skipped and isinstance(report.longrepr, tuple):
        return _one_line(report.longrepr[2])
    lines = str(report.longrepr or "").strip().splitlines()
    wanted = next((line for line in lines if line.startswith("E ") or "] " in line), lines[0] if lines else "")
    return _one_line(wanted)


def _one_line(text: str) -> str:
    return " ".join(plain(text[:2000]).split())[:200]


class _BuildHandler(logging.Handler):
    """Prints messages past pytest's capture, which would show them only after the case that waits for the build.

    It may be called in any thread, and the capture may not. So it keeps the standard error from before the capture.
    """

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(logging.INFO)
        capture = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            self._stderr = os.dup(2)
        # Overwrite the line of the running cases.
        self._before = _CLEAR_LINE if os.isatty(self._stderr) else ""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            os.write(self._stderr, f"{self._before}{record.getMessage()}\n".encode())

    def close(self) -> None:
        super().close()
        os.close(self._stderr)
        self._stderr = -1


def log_builds(config: pytest.Config) -> None:
    """Print the start of long builds in this process, controller or worker, until the session ends."""
    handler = _BuildHandler(config)
    config.add_cleanup(handler.close)  # cleanups run in reverse order
    for logger in map(logging.getLogger, _BUILD_LOGGERS):
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        config.add_cleanup(functools.partial(logger.removeHandler, handler))
        # fxh's own handler would print each message a second time.
        config.add_cleanup(functools.partial(setattr, logger, "propagate", logger.propagate))
        logger.propagate = False
