# SPDX-License-Identifier: BSD-2-Clause
"""The prerequisites of a lab build on this machine (programs, headers, disk space), and how a build runs a program."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import debian
from harness.errors import BuildError
from harness.xen import symbolizer

# Program to Debian package, and header to Debian package.
TOOLS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "resize2fs": "e2fsprogs", "qemu-img": "qemu-utils", "cc": "gcc",
    "xz": "xz-utils", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "perl": "perl-base", "objcopy": "binutils",
}  # fmt: skip
HEADERS = {"stdlib.h": "libc6-dev"}
# Without root, mmdebstrap works in a user namespace with the subordinate ids of the user (subuid(5)).
_WITHOUT_ROOT = {"newuidmap": "uidmap"}
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))

# Prefixes of environment variables that a surrounding make, or a user who builds kernels, may have set. A build must not see them.
_FOREIGN = ("MAKE", "MFLAGS", "GNUMAKE", "KBUILD", "KCONFIG", "ARCH", "CROSS_COMPILE", "LLVM", "LOCALVERSION", "CFLAGS")


def missing_packages() -> list[str]:
    """The Debian packages that a build needs and this machine lacks."""
    return sorted(set(missing_tools().values()))


def missing_tools() -> dict[str, str]:
    """The programs and headers that a build needs and this machine lacks, with their Debian packages."""
    return debian.missing(TOOLS if os.geteuid() == 0 else {**TOOLS, **_WITHOUT_ROOT}, HEADERS)


def require_ids(files: Sequence[Path] = _SUBORDINATE) -> None:
    """Raises BuildError if this user is not root and has no subordinate ids. ``useradd --system`` creates none."""
    if os.geteuid() == 0:
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    # fxh:100000:65536
    entry = re.compile(rf"^(?:{re.escape(user)}|{os.geteuid()}):\d+:\d+$", re.MULTILINE)
    if not all(path.is_file() and entry.search(path.read_text()) for path in files):
        raise BuildError(
            f"user {user} has no subordinate ids in {' and '.join(map(str, files))}, which a lab build without root needs",
            hint=f"let root add a free range: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )


def require() -> None:
    """Raises BuildError with all packages that this machine lacks, or for missing subordinate ids."""
    missing = missing_packages()
    if missing:
        raise BuildError(
            f"a lab build needs Debian packages this machine lacks: {' '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    require_ids()


LOG = "build.log"
"""The output of a build's programs, in its work directory."""


def run(
    argv: Sequence[str], work: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None, output: str = LOG
) -> None:
    """Run a program with its output in the file ``output`` of ``work``. Raises BuildError with the last lines."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    own["PATH"] = debian.path()
    with (work / output).open("ab") as file:
        file.write(f"$ {argv[0]} ...\n".encode())
        file.flush()
        status = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, env={**own, **(env or {})}
        ).returncode
    if status:
        text = (work / output).read_text(errors="replace")
        kept = work.parent / "last-failed-build.log"
        kept.write_text(text)
        tail = "\n".join(text.splitlines()[-15:])
        raise BuildError(f"{argv[0]} ended with {status}:\n{tail}", hint=f"the whole log is {kept}")


def extract(package: str, suite: str, path: str, target: Path, work: Path, *, output: str = LOG) -> None:
    """Copy the file ``path`` of the Debian ``package`` to ``target``. Raises as :func:`run`.

    It installs nothing: mmdebstrap unpacks the package in a temporary root.
    """
    copy = f"download {shlex.quote(path)} {shlex.quote(str(target))}"
    what = ["--mode=auto", "--format=null", "--variant=extract", "--architectures=amd64", f"--include={package}"]
    run(["mmdebstrap", *what, f"--extract-hook={copy}", suite], work, output=output)


def keep_debug(source: Path, target: Path, work: Path, *, output: str = LOG) -> None:
    """Write the symbols and the debugging information of the ELF file ``source``, compressed, to ``target``, and make its index.

    Raises as :func:`run`.
    """
    run(["objcopy", "--only-keep-debug", "--compress-debug-sections=zlib", str(source), str(target)], work, output=output)
    symbolizer.prepare(target)
