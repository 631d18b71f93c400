# SPDX-License-Identifier: BSD-2-Clause
"""On some Python versions, formatting a traceback in a thread can end a pytest run (harness/plugin/pep657_workaround.py)."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from harness.plugin import pep657_workaround

# One thread formats tracebacks and the main thread parses source, for two seconds.
RACE = """
import ast, gc, sys, threading, time, traceback
from harness.plugin import pep657_workaround
pep657_workaround.apply()
# The garbage collector runs Python code during a parse, so that the other thread can run then.
sys.setswitchinterval(1e-6)
gc.set_threshold(20)
gc.callbacks.append(lambda phase, info: sum(range(20)))
text = "+".join("abcdefgh" * 20)
end = time.monotonic() + 2
failed = parsed = 0
# A busy machine may give this process no time at all meanwhile.
def goes_on():
    return time.monotonic() < end or parsed <= 20
def thread():
    while goes_on():
        try: (1, 2)[0] + [][0] * 2
        except IndexError: traceback.format_exc()
threading.Thread(target=thread).start()
while goes_on():
    parsed += 1
    try: ast.parse(text)
    except SystemError: failed += 1
print(failed, parsed)
"""


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((3, 10, 14), False), ((3, 11, 0), True), ((3, 11, 2), True), ((3, 11, 7), True), ((3, 11, 8), False),
        ((3, 12, 1), True), ((3, 12, 2), False), ((3, 13, 0), False),
    ],
)  # fmt: skip
def test_affected_versions(version: tuple[int, ...], expected: bool) -> None:
    assert pep657_workaround.affected(version) is expected


@pytest.mark.skipif(not pep657_workaround.affected(sys.version_info[:3]), reason="this Python does not have the bug")
def test_formatting_in_a_thread_does_not_break_parsing(tmp_path: Path) -> None:
    """Without the workaround about 150 of 1,000 parses fail."""
    script = tmp_path / "race.py"  # a file: the position markers need the source line
    script.write_text(RACE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    failed, parsed = map(int, done.stdout.split())
    assert parsed > 20
    assert failed == 0


@pytest.mark.skipif(not pep657_workaround.affected(sys.version_info[:3]), reason="this Python does not have the bug")
def test_no_traceback_parses_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin has applied the workaround to this process too."""
    parses: list[object] = []
    monkeypatch.setattr(ast, "parse", lambda *given, **more: parses.append(given))
    tracebacks: list[str] = []

    def fail() -> None:
        nothing: list[int] = []
        try:
            _ = (1, 2)[0] + nothing[0] * 2
        except IndexError:
            tracebacks.append(traceback.format_exc())

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    monkeypatch.undo()
    assert "IndexError" in tracebacks[0]
    assert parses == []
