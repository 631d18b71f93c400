# SPDX-License-Identifier: BSD-2-Clause
"""What takes minutes is told when it begins: pytest would show it after the case that had to wait for it, if at all."""

from __future__ import annotations

import functools
import logging
import sys
from contextlib import nullcontext

import pytest

# Building a lab, and the control guest's kernel.
_LONG = ("fxh.lab.build", "fxh.lab.kernel")


class _Told(logging.Handler):
    def __init__(self, config: pytest.Config) -> None:
        super().__init__(logging.INFO)
        self._config = config

    def emit(self, record: logging.LogRecord) -> None:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            # Over the line that says what runs (progress.py).
            print(("\r\x1b[K" if sys.stderr.isatty() else "") + record.getMessage(), file=sys.stderr, flush=True)


def install(config: pytest.Config) -> None:
    """For this session, in whatever process of it."""
    handler = _Told(config)
    for logger in map(logging.getLogger, _LONG):
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        config.add_cleanup(functools.partial(logger.removeHandler, handler))
