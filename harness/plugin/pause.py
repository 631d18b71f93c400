# SPDX-License-Identifier: BSD-2-Clause
"""``fxh run --pause CASE``: stop at a case, before its call or after its failure, and hand its guests to a person."""

from __future__ import annotations

import difflib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness import trace
from harness.config.runoptions import PAUSES, RunOptions
from harness.errors import HarnessError, UsageError
from harness.plugin import pause_prompt
from harness.plugin.cells import cell_of
from harness.plugin.progress import TERMINAL
from harness.plugin.state import ATTEMPT, CASE, PAUSE
from harness.safetext import plain

log = logging.getLogger("fxh.pause")

BEFORE_CALL, ON_FAILURE = PAUSES


def parse(text: str) -> tuple[str, str]:
    """The case and the place of ``CASE[:before-call|on-failure]``. Raises UsageError."""
    case, colon, place = text.rpartition(":")
    if not colon or case.endswith(":") or "]" in place:  # the colons of suite/file::case and of case[a:b]
        case, place = text, BEFORE_CALL
    if place not in PAUSES or not case:
        raise UsageError(f"--pause {text}: cannot stop at {place!r}", hint=f"use CASE, CASE:{BEFORE_CALL} or CASE:{ON_FAILURE}")
    return case, place


def check(options: RunOptions) -> None:
    """Raises UsageError if a run with these options cannot pause: it needs a terminal, and a single worker."""
    parse(options.pause)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--pause needs a terminal", hint="run fxh in a terminal, without a pipe; or use --keep failed")
    if options.workers != 1:
        raise UsageError(f"--pause with {options.workers or 'several'} workers: they have no terminal", hint="add -n 1")


def mark(items: list[pytest.Item], wanted: str) -> None:
    """Mark the items at which ``--pause wanted`` stops. Raises pytest.UsageError if no selected case has this name."""
    case, place = parse(wanted)
    names = {item: _names(item) for item in items if cell_of(item) is not None}
    found = [item for item, own in names.items() if case in own]
    found = found or [item for item, own in names.items() if any(case in name for name in own)]
    if not found:
        functions = {name: own[0] for own in names.values() for name in own}
        near = dict.fromkeys(functions[name] for name in difflib.get_close_matches(case, functions, 6, 0.5))
        hint = (
            f"the nearest are {', '.join([*near][:3])}" if near else "`fxh list --cases` shows the cases; check -k and the suites"
        )
        raise pytest.UsageError(f"--pause {case}: no selected case has this name\n  hint: {hint}")
    for item in found:
        item.stash[PAUSE] = place


def _names(item: pytest.Item) -> tuple[str, ...]:
    """The names of a case: its function, with and without ``test_``, its key ``suite/file::function``, and pytest's names."""
    function = item.name.partition("[")[0]
    key = f"{item.path.parent.name}/{item.path.stem}::{function}"
    return function, function.removeprefix("test_"), key, item.name, item.nodeid


def before_call(item: pytest.Item) -> None:
    """Pause if the case must stop here."""
    if item.stash.get(PAUSE, None) == BEFORE_CALL:
        _pause(item, BEFORE_CALL, f"before the call of {item.nodeid}")


def on_failure(item: pytest.Item, reason: str) -> None:
    """Pause if the case must stop at its failure. Only the first failure of a case counts."""
    if item.stash.get(PAUSE, None) == ON_FAILURE and not item.stash[ATTEMPT].paused:
        _pause(item, ON_FAILURE, f"after the failure of {item.nodeid}:\n  {reason}")


def _pause(item: pytest.Item, place: str, where: str) -> None:
    """Run the prompt. A pause that ends with an error, for example because the lab or the terminal is gone, only leaves a warning."""
    attempt = item.stash[ATTEMPT]
    attempt.paused = place
    begun = time.monotonic()
    try:
        with trace.step(trace.PAUSE, place), _terminal(item.config):
            pause_prompt.serve(where, item.stash.get(CASE, None))
    except (HarnessError, OSError) as exc:
        log.warning("the pause ended: %s", plain(str(exc)))
    finally:
        attempt.pause_seconds += time.monotonic() - begun


@contextmanager
def _terminal(config: pytest.Config) -> Iterator[None]:
    """Give stdin and stdout to the caller alone. pytest captures them again when the next phase begins."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    with TERMINAL:
        yield
