# SPDX-License-Identifier: BSD-2-Clause
"""fxh setup: install the Debian packages that a lab needs, or print the command that installs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from typing import Annotated

import typer

from harness import debian
from harness.errors import InfrastructureError
from harness.safetext import plain

# Program -> Debian package. harness.lab.tools lists what a lab build needs. These programs run a lab, reach it (`fxh lab ssh`),
# make the suites' file systems and read disk images.
RUNS = {"qemu-system-x86_64": "qemu-system-x86", "makefs": "makefs", "ssh": "openssh-client", **debian.READERS}

# The harness's own tests compare it with these programs. A test whose program is missing is skipped.
TESTS = {
    "mkfs.vfat": "dosfstools", "mcopy": "mtools", "sfdisk": "fdisk", "bsdcpio": "libarchive-tools", "csh": "tcsh", "lzop": "lzop",
    "busybox": "busybox-static", "zstd": "zstd", "ps": "procps", "pidof": "sysvinit-utils", "gdb": "gdb", "llvm-symbolizer": "llvm",
    "pg_ctlcluster": "postgresql",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command()(setup)


def setup(
    tests: Annotated[bool, typer.Option("--tests", help="Also install the packages for the harness's own tests.")] = False,
) -> None:
    """Install the missing packages of a lab (Debian, Ubuntu)."""
    from harness.lab.tools import missing_packages, require_ids

    missing = sorted({*missing_packages(), *debian.lacking({**RUNS, **(TESTS if tests else {})})})
    if not missing:
        require_ids()
        print("all packages are installed")
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    by_hand = f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
    if not shutil.which("apt-get"):
        raise _without_apt(tests)
    if os.geteuid() != 0:
        if not shutil.which("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
            raise InfrastructureError(f"this machine lacks {' '.join(missing)}", hint=f"run: {by_hand}")
        command = ["sudo", "-n", *command]
    prefix = command[: command.index("apt-get")]
    print("installing", " ".join(missing), flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in ([*prefix, "apt-get", "-qq", "update"], [*command, "-o", "APT::Status-Fd=1"]):
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        text = _shown(process)
        if process.returncode:
            sys.stderr.write(text[-4000:])
            raise InfrastructureError(f"{' '.join(argv)} exited with {process.returncode}", hint=f"run: {by_hand}")
    require_ids()


def _without_apt(tests: bool) -> InfrastructureError:
    """Other systems name packages differently, so the error lists programs, by what needs them, with the package in Debian."""
    from harness.lab.tools import missing_tools

    needs = {"run a lab": debian.missing(RUNS), "build a lab": missing_tools()}
    if tests:
        needs["run the harness's own tests"] = debian.missing(TESTS)
    lines = ["fxh setup installs Debian packages, and this system has no apt-get. It lacks (with Debian's package):"]
    for what, lacking in needs.items():
        if lacking:
            lines.append(f"  to {what}: {', '.join(f'{program} ({package})' for program, package in lacking.items())}")
    hint = (
        "install the programs that run a lab with this system's package manager, and import a lab that a Debian machine exported "
        "(fxh lab export, fxh lab import); or use a host with Xen (fxh.toml, docs/hosts.md), or a virtual machine with Debian"
    )
    return InfrastructureError("\n".join(lines), hint=hint)


# dlstatus:3:42.5:Retrieving file 3 of 7      pmstatus:qemu-utils:62.5:Unpacking qemu-utils (amd64)
_STATUS = re.compile(r"^(?:dl|pm)status:[^:]*:([\d.]+):(.*)")
# Seconds between two lines.
_EVERY = 5.0


def _shown(process: subprocess.Popen[str]) -> str:
    """Show apt's own progress until it ends. Returns its other output."""
    other, shown = [], time.monotonic()
    with process:
        for line in process.stdout or ():
            match = _STATUS.match(line)
            if match is None:
                other.append(line)
            elif time.monotonic() - shown > _EVERY:
                shown = time.monotonic()
                print(f"{float(match[1]):.0f} % done, {plain(match[2])}", flush=True)
    return "".join(other)
