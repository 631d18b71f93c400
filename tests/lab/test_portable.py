# SPDX-License-Identifier: BSD-2-Clause
"""Only `lab build` may assume Linux: a lab's start opens and executes only files that FreeBSD also has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.lab.lab import Lab

AUDIT = """
import sys
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].startswith(("/proc", "/sys", "/dev/")):
        print("OPEN", args[0], file=sys.stderr)
    elif event == "subprocess.Popen":
        print("EXEC", *[str(word) for word in args[1]][:4], file=sys.stderr)
    elif event in ("os.posix_spawn", "os.exec"):
        print("EXEC", *[str(word) for word in args[1]][:4], file=sys.stderr)
sys.addaudithook(hook)
from harness.cli.main import main
main()
"""
# sh runs the shells that own QEMU (POSIX sh) and QEMU's "exec:cat"; the rest is QEMU.
PROGRAMS = {"/bin/sh", "qemu-img", "qemu-system-x86_64"}
DEVICES = {"/dev/null", "/dev/urandom", "/dev/kvm"}


def test_starting_a_lab_needs_no_linux(lab: Lab) -> None:
    name = f"portable-{os.getpid()}"
    seen = ""
    # Only Linux has hot checkpoints.
    without = os.environ | {"FXH_CRIU": "off"}
    for words in (["up", name, "--keep"], ["checkpoint", name, "portable"], ["restore", name], ["list"], ["rm", name]):
        argv = [sys.executable, "-c", AUDIT, "lab", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=without)
        assert done.returncode == 0, done.stderr
        seen += done.stderr
    opened = {line.split()[1] for line in seen.splitlines() if line.startswith("OPEN ")}
    executed = {line.split()[1] for line in seen.splitlines() if line.startswith("EXEC ")}
    assert opened <= DEVICES
    assert {Path(word).name if "qemu" in word else word for word in executed} <= PROGRAMS
    assert executed
