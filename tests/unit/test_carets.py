# SPDX-License-Identifier: BSD-2-Clause
"""On some Pythons a traceback formatted in a thread can end pytest's run (harness/plugin/pep657_workaround.py)."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from harness.plugin import pep657_workaround

# A thread that formats tracebacks beside a main thread that makes syntax trees, for two seconds.
RACE = """
import ast, gc, sys, threading, time, traceback
from harness.plugin import pep657_workaround
pep657_workaround.apply()
# Python code runs within the making of a tree when garbage is collected: there the other thread gets its turn.
sys.setswitchinterval(1e-6)
gc.set_threshold(20)
gc.callbacks.append(lambda phase, info: sum(range(20)))
text = "+".join("abcdefgh" * 20)
end = time.monotonic() + 2
def thread():
    while time.monotonic() < end:
        try: (1, 2)[0] + [][0] * 2
        except IndexError: traceback.format_exc()
threading.Thread(target=thread).start()
failed = made = 0
while time.monotonic() < end:
    made += 1
    try: ast.parse(text)
    except SystemError: failed += 1
print(failed, made)
"""


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 10, 14), False), ((3, 11, 0), True), ((3, 11, 2), True), ((3, 11, 7), True), ((3, 11, 8), False),
        ((3, 12, 1), True), ((3, 12, 2), False), ((3, 13, 0), False),
    ],
)  # fmt: skip
def test_which_pythons(version: tuple[int, ...], has_it: bool) -> None:
    assert pep657_workaround.affected(version) is has_it


@pytest.mark.skipif(not pep657_workaround.affected(sys.version_info[:3]), reason="this Python has not got the defect")
def test_a_thread_that_formats_tracebacks_does_not_fail_others(tmp_path: Path) -> None:
    """Without the hint some 150 of 1,000 trees fail."""
    script = tmp_path / "race.py"  # a file: the marks are made of the line's text
    script.write_text(RACE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    failed, made = map(int, done.stdout.split())
    assert made > 20
    assert failed == 0


@pytest.mark.skipif(not pep657_workaround.affected(sys.version_info[:3]), reason="this Python has not got the defect")
def test_no_traceback_makes_a_syntax_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin has seen to it, in this process, too."""
    made: list[object] = []
    monkeypatch.setattr(ast, "parse", lambda *given, **more: made.append(given))
    said: list[str] = []

    def fail() -> None:
        nothing: list[int] = []
        try:
            _ = (1, 2)[0] + nothing[0] * 2
        except IndexError:
            said.append(traceback.format_exc())

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    monkeypatch.undo()
    assert "IndexError" in said[0]
    assert made == []
