# SPDX-License-Identifier: BSD-2-Clause
"""How a run ends, whatever ends it: its last case, ``-x``, Ctrl-C, a worker that is killed, or an error in pytest."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest

from harness.errors import ExitCode
from harness.plugin import session
from harness.plugin.outcome import exit_code
from harness.results.model import INFRASTRUCTURE, CaseResult

log = logging.getLogger("fxh.run")


class Ending:
    """A pytest plugin of one session, of the controller or of a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker = hasattr(config, "workerinput")
        self._failures = 0
        self._running: set[str] = set()
        self._interrupted = self._broken = self._lost = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        # A resumed run has the mark of its first part. Not where a worker is configured: xdist makes another one after a crash.
        if not self._worker and self._config.getoption("fxh_run"):
            session.run_path(self._config)
            session.forget_stop(self._config)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # Of KeyboardInterrupt are pytest's and xdist's ways to stop, too: at errors of collection, and at -x. A worker that was
        # interrupted is told as such alone (xdist.dsession, worker_workerfinished()).
        told = str(excinfo.value).endswith("received keyboard-interrupt")
        self._interrupted = self._interrupted or type(excinfo.value) is KeyboardInterrupt or told

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._broken = self._broken or report.failed

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # Where several workers end at once, xdist gives the cases of one to the next, which is gone, too: "cannot send".
        if isinstance(excinfo.value, OSError) and self._config.pluginmanager.hasplugin("dsession"):
            self._lost = True
        else:
            self._broken = True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.discard(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Have all workers stop after their case: xdist itself lets each run all that it was given."""
        self._failures += report.failed
        most = self._config.getoption("maxfail")
        if most and self._failures >= most and not self._worker and (mark := session.stop_mark(self._config)) is not None:
            mark.touch()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        mark = session.stop_mark(self._config)
        if not self._worker or mark is None or not mark.exists():
            return None
        item.session.shouldstop = "another worker has a failure"
        return True

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """xdist: a worker ended in the middle of a case."""
        self._running.discard(crashitem)
        if reason := session.crashed(self._config, crashitem, str(report.longrepr)):
            report.user_properties.append(("outcome", INFRASTRUCTURE))
            report.longrepr = f"[{INFRASTRUCTURE}] {reason}"
        else:
            self._broken = True

    # Around all others: pytest's own files (JUnit's, allure's) are written when verdicts are put into them, and what fails in
    # another plugin, as when xdist's workers are gone already, does not cost the run its result.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        try:
            yield
        except (OSError, EOFError) as exc:
            log.warning("pytest did not end well: %s: %s", type(exc).__name__, exc)
            # Without workers it is a file that could not be written, such as junit.xml on a full disk.
            self._broken = self._broken or not self._config.pluginmanager.hasplugin("dsession")
        finally:
            for nodeid in sorted(self._running) if self._lost else ():
                session.crashed(self._config, nodeid, "the workers ended, this one's among them")
            session.end(self._config, self._code)

    def _code(self, cases: tuple[CaseResult, ...]) -> int:
        if self._interrupted:
            return ExitCode.INTERRUPTED
        code = exit_code(cases)
        if code in (ExitCode.PRODUCT, ExitCode.HARNESS) or not (self._broken or self._lost):
            return code
        return ExitCode.HARNESS if self._broken else ExitCode.INFRASTRUCTURE


def install(config: pytest.Config) -> None:
    """For this session."""
    config.pluginmanager.register(Ending(config), "fxh-ending")
