# SPDX-License-Identifier: BSD-2-Clause
"""What pytest prints of a case: its texts come from guests, so they are escaped and shortened."""

from __future__ import annotations

import pytest
from _pytest._code.code import ExceptionChainRepr

from harness.console.deaths import speaker
from harness.plugin.outcome import PhaseResult, shortened
from harness.safetext import plain

# Errors in a chain of causes that are looked at.
_CAUSES = 20


def escape_error(error: BaseException | None) -> None:
    """Escape and shorten the texts of an error and of its causes, which come from guests, before pytest and allure read them.

    A surrogate (half a character) in a text would end the run, because no file can have it.
    """
    for _ in range(_CAUSES):
        if error is None:
            return
        error.args = tuple(_shown(word) if isinstance(word, str) else word for word in error.args)
        for name in ("message", "hint", "msg"):
            if isinstance(text := getattr(error, name, None), str):
                setattr(error, name, _shown(text))
        error = error.__cause__ or error.__context__


def escape(report: pytest.TestReport) -> None:
    """Escape and shorten what pytest prints of a case: the lines of its source, and captured output."""
    report.sections = [(name, _shown(text)) for name, text in report.sections]
    found = report.longrepr
    if isinstance(found, str):
        report.longrepr = _shown(found)
    elif isinstance(found, tuple):  # of a skip: file, line, reason
        report.longrepr = (found[0], found[1], _shown(found[2]))
    elif isinstance(found, ExceptionChainRepr):
        for traceback, crash, _ in found.chain:
            for entry in traceback.reprentries:
                entry.lines = _shown("\n".join(entry.lines)).split("\n") if entry.lines else []
            if crash is not None:
                crash.message = _shown(crash.message)


def explanation(call: pytest.CallInfo[None], result: PhaseResult) -> str:
    """The text for pytest's report of a harness error, without a traceback through the harness."""
    traceback = call.excinfo.traceback if call.excinfo is not None else ()
    frames = [entry for entry in traceback if "/suites/" in str(entry.path) or "/tests/" in str(entry.path)]
    where = f"{frames[-1].path}:{frames[-1].lineno + 1}: " if frames else ""
    text = f"{where}[{result.outcome}] {result.reason}"
    if result.death is not None and result.death.excerpt:
        text += f"\n--- {speaker(result.death.kind)} ---\n{plain(result.death.excerpt)}"
    return text


def _shown(text: str) -> str:
    return shortened(plain(f"{text}\n")[:-1])
