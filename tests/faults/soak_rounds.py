# SPDX-License-Identifier: BSD-2-Clause
"""A plugin of pytest: the collected cases round and round in one process until a given time. Loaded by soak.py."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

UNTIL, TALLY, REST = "FXH_SOAK_UNTIL", "FXH_SOAK_TALLY", "FXH_SOAK_REST"

# Who measures has ended when he has not done so in this many seconds.
_MEASURED = 60


class Rounds:
    """Counts what came of the cases, and forgets the reports: pytest itself would keep each for its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._tally = config, Path(os.environ[TALLY])
        self._rest = Path(os.environ[REST])
        self._libc = ctypes.CDLL(None)
        self._outcomes: Counter[str] = Counter()
        self.round = self._cases = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcomes = [str(value) for name, value in report.user_properties if name == "outcome"]
        self._outcomes.update(outcomes)
        if report.when == "teardown":
            self._cases += 1
            passed = self._cases - sum(self._outcomes.values())
            found = {"round": self.round, "cases": self._cases, "outcomes": {**self._outcomes, "passed": passed}}
            self._tally.write_text(json.dumps(found))
            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.stats.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        until = float(os.environ[UNTIL])
        items = session.items
        while items and time.time() < until:
            self.round += 1
            for n, item in enumerate(items):
                last = time.time() >= until
                # pytest takes an item once, and its fixtures with it: each round asks for them anew.
                item._initrequest()  # type: ignore[attr-defined]
                nextitem = None if last else items[(n + 1) % len(items)]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
                # What pytest gathers for an item's only run.
                item._report_sections.clear()
                item.user_properties.clear()
                self._be_measured()
                if last or session.shouldstop:
                    return True
        return True

    def _be_measured(self) -> None:
        """Between two cases nothing goes on. While the file is there, soak.py measures; it takes it away.

        What is free but still malloc's is no leak: it goes back before (glibc's malloc_trim(3)).
        """
        gc.collect()
        self._libc.malloc_trim(0)
        self._rest.touch()
        end = time.monotonic() + _MEASURED
        while self._rest.exists() and time.monotonic() < end:
            time.sleep(0.05)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Rounds(config), "soak-rounds")
