# SPDX-License-Identifier: BSD-2-Clause
"""A pytest plugin: repeat the collected cases in one process until a given time. soak.py loads it."""

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

# If soak.py does not measure within this many seconds, it has ended.
_MEASURED = 60


class Rounds:
    """Counts the outcomes and discards the reports, which pytest would keep for its summary."""

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
                # pytest runs an item once. Reset its fixture requests for the next round.
                item._initrequest()  # type: ignore[attr-defined]
                nextitem = None if last else items[(n + 1) % len(items)]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
                # pytest collects these for a single run.
                item._report_sections.clear()
                item.user_properties.clear()
                self._wait_for_measurement()
                if last or session.shouldstop:
                    return True
        return True

    def _wait_for_measurement(self) -> None:
        """Wait between two cases until soak.py has measured and removed the file.

        Free memory that malloc holds is not a leak, so return it to the kernel first (malloc_trim(3) of glibc).
        """
        gc.collect()
        self._libc.malloc_trim(0)
        self._rest.touch()
        end = time.monotonic() + _MEASURED
        while self._rest.exists() and time.monotonic() < end:
            time.sleep(0.05)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Rounds(config), "soak-rounds")
