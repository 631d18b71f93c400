# SPDX-License-Identifier: BSD-2-Clause
"""The end of a run by any cause: its last case, ``-x``, Ctrl-C, a killed worker, or an error in pytest."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest

from harness.errors import ExitCode
from harness.plugin import session
from harness.plugin.outcome import exit_code
from harness.plugin.state import OPTIONS
from harness.results.model import INFRASTRUCTURE, CaseResult

log = logging.getLogger("fxh.run")


class Ending:
    """A pytest plugin of one session, in the controller or in a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker = hasattr(config, "workerinput")
        self._failures = 0
        self._running: set[str] = set()
        self._interrupted = self._broken = self._lost = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        # The first part of a resumed run may have left a stop mark. Workers keep it: xdist starts a new one after a crash.
        if not self._worker and self._config.stash[OPTIONS].run_directory is not None:
            session.run_path(self._config)
            session.forget_stop(self._config)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest and xdist also stop by subclasses of KeyboardInterrupt: after collection errors and at -x. xdist reports an
        # interrupted worker only by this message (xdist.dsession, worker_workerfinished()).
        in_worker = str(excinfo.value).endswith("received keyboard-interrupt")
        self._interrupted = self._interrupted or type(excinfo.value) is KeyboardInterrupt or in_worker

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._broken = self._broken or report.failed

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # If several workers end at once, xdist sends the cases of one to the next, which has ended too: OSError("cannot send").
        if isinstance(excinfo.value, OSError) and self._config.pluginmanager.hasplugin("dsession"):
            self._lost = True
        else:
            self._broken = True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.discard(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Make all workers stop after their case at --maxfail: xdist alone lets each of them finish its queue."""
        self._failures += report.failed
        limit = self._config.getoption("maxfail")
        if limit and self._failures >= limit and not self._worker and (mark := session.stop_mark(self._config)) is not None:
            mark.touch()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        mark = session.stop_mark(self._config)
        if not self._worker or mark is None or not mark.exists():
            return None
        item.session.shouldstop = "another worker reached --maxfail"
        return True

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """A worker ended during a case."""
        self._running.discard(crashitem)
        if reason := session.crashed(self._config, crashitem, str(report.longrepr)):
            report.user_properties.append(("outcome", INFRASTRUCTURE))
            report.longrepr = f"[{INFRASTRUCTURE}] {reason}"
        else:
            self._broken = True

    # The outermost wrapper: it adds the verdicts after JUnit and allure have written their files. It also keeps the result of the
    # run if another plugin fails here (as xdist does if its workers have ended already).
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        try:
            yield
        except (OSError, EOFError) as exc:
            log.warning("pytest failed at the end of the session: %s: %s", type(exc).__name__, exc)
            # Without workers the cause is a file, such as junit.xml on a full disk.
            self._broken = self._broken or not self._config.pluginmanager.hasplugin("dsession")
        finally:
            for nodeid in sorted(self._running) if self._lost else ():
                session.crashed(self._config, nodeid, "all workers ended")
            session.end(self._config, self._code)

    def _code(self, cases: tuple[CaseResult, ...]) -> int:
        if self._interrupted:
            return ExitCode.INTERRUPTED
        code = exit_code(cases)
        if code in (ExitCode.PRODUCT, ExitCode.HARNESS) or not (self._broken or self._lost):
            return code
        return ExitCode.HARNESS if self._broken else ExitCode.INFRASTRUCTURE


class Releasing:
    """Releases the hosts of a worker before xdist reports its end: xdist kills a worker seconds after that report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    # The innermost wrapper: after the fixtures are torn down, and before the wrapper of xdist sends `workerfinished`.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        try:
            yield
        finally:
            session.release(self._config)


def install(config: pytest.Config) -> None:
    """Register :class:`Ending` for this session, and :class:`Releasing` in a worker."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Releasing(config), "fxh-releasing")
    config.pluginmanager.register(Ending(config), "fxh-ending")
