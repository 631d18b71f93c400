# SPDX-License-Identifier: BSD-2-Clause
"""On a signal, every command ends as by Ctrl-C and ends the processes that it started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import ExitCode

# A command that builds: the compiler has its own session, like make in harness.images.buildworld.
VERB = """
import subprocess, sys, types
from harness.cli import main
from harness.images.buildsession import end_session

def compile():
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        print(child.pid, flush=True)
        child.wait()
    finally:
        end_session(child.pid)
        child.wait()

sys.modules["harness.cli.compiler"] = types.SimpleNamespace(register=lambda app: app.command()(compile))
main.COMMANDS["compiler"] = ("compile",)
sys.argv = ["fxh", "compile"]
main.main()
"""


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1), (signal.SIGINT, 1)],
    ids=["SIGTERM", "SIGTERM twice", "SIGHUP", "SIGINT"],
)
def test_a_command_that_gets_a_signal_leaves_no_process(number: signal.Signals, times: int) -> None:
    argv = [sys.executable, "-c", f"import signal; signal.signal({number.value}, signal.SIG_DFL)\n{VERB}"]
    if number == signal.SIGINT:
        argv[-1] = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{VERB}"
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (ExitCode.INTERRUPTED, False)
    assert not Path(f"/proc/{child}").exists()
