# SPDX-License-Identifier: BSD-2-Clause
"""Every command ends as by Ctrl-C when it is told to end, and takes what it started with it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import ExitCode

# A verb that builds: a compiler in a session of its own, as harness.images.buildworld starts make.
VERB = """
import subprocess, sys
from harness.cli import main
from harness.images.buildworld import end_session

@main.app.command()
def compile():
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        print(child.pid, flush=True)
        child.wait()
    finally:
        end_session(child.pid)
        child.wait()

sys.argv = ["fxh", "compile"]
main.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_told_to_end_leaves_nothing_running(number: signal.Signals) -> None:
    argv = [sys.executable, "-c", f"import signal; signal.signal({number.value}, signal.SIG_DFL)\n{VERB}"]
    if number == signal.SIGINT:
        argv[-1] = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{VERB}"
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (ExitCode.INTERRUPTED, False)
    assert not Path(f"/proc/{child}").exists()
