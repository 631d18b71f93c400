"""fxh setup: the Debian packages a lab needs, installed where that is possible, else named in one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import typer

from harness import debian
from harness.errors import InfrastructureError

# Tool -> Debian package. What builds a lab is in harness.lab.tools; this is what runs one, reaches one (`fxh lab ssh` is ssh),
# makes the suites' file systems, and reads disk images.
RUNS = {"qemu-system-x86_64": "qemu-system-x86", "makefs": "makefs", "ssh": "openssh-client", **debian.READERS}


def register(app: typer.Typer) -> None:
    app.command()(setup)


def setup() -> None:
    """Install the packages that a lab needs and this machine lacks (Debian, Ubuntu)."""
    from harness.lab.tools import missing_packages

    missing = sorted({*missing_packages(), *debian.lacking(RUNS)})
    if not missing:
        print("all packages are there")
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    by_hand = f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
    if not shutil.which("apt-get"):
        raise InfrastructureError(
            f"this machine lacks {' '.join(missing)} (Debian's names), and has no apt-get",
            mend="install them by your system's own means; or import a lab built elsewhere: fxh lab import",
        )
    if os.geteuid() != 0:
        if not shutil.which("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
            raise InfrastructureError(f"this machine lacks {' '.join(missing)}", mend=f"type: {by_hand}")
        command = ["sudo", "-n", *command]
    prefix = command[: command.index("apt-get")]
    print("installing", " ".join(missing), flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in ([*prefix, "apt-get", "-qq", "update"], command):
        done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.stderr.buffer.write(done.stdout[-4000:])
            raise InfrastructureError(f"{' '.join(argv)} ended with {done.returncode}", mend=f"type: {by_hand}")
