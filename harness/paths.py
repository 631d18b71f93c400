# SPDX-License-Identifier: BSD-2-Clause
"""Directories on the user's machine. An environment variable overrides each of them."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import platformdirs

from harness.errors import UsageError

PACKAGE = Path(__file__).resolve().parent
"""The directory of the package's code."""


def store() -> Path:
    """The store of labs and images, shared by all runs of a user: ``FXH_STORE``, else the XDG cache directory."""
    given = os.environ.get("FXH_STORE")
    return _made(Path(given) if given else Path(platformdirs.user_cache_dir("freebsd-xen-harness")), "FXH_STORE")


def runtime() -> Path:
    """The directory for sockets of running labs: ``FXH_RUNTIME``, else one below the temporary directory.

    Its path is short, because the path of a Unix socket is limited to about 100 bytes.
    """
    given = os.environ.get("FXH_RUNTIME")
    return _made(Path(given) if given else Path(tempfile.gettempdir()) / f"fxh-{os.getuid()}", "FXH_RUNTIME", 0o700)


def _made(path: Path, variable: str, mode: int = 0o777) -> Path:
    """Create the directory if it does not exist. Raises UsageError for a file, and for a directory that the user cannot write to."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        why = "" if os.access(path, os.W_OK | os.X_OK) else "no permission to write to this directory"
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = f"cannot create this directory: {exc.strerror}"
    if why:
        raise UsageError(f"{path}: {why}", hint=f"set {variable} to a directory that you can write to")
    return path


def project() -> Path:
    """The directory with ``docs/``, ``images/`` and ``suites/``.

    It is ``FXH_PROJECT``, else the checkout that contains this package, else the copy in the installed package.
    Raises UsageError if that directory has no ``images/``.
    """
    given = os.environ.get("FXH_PROJECT")
    found = Path(given) if given else checkout() or PACKAGE / "_data"
    if not (found / "images").is_dir():
        if given:
            raise UsageError(
                f"FXH_PROJECT={given}: this directory has no images/", hint="set it to a checkout of the harness, or unset it"
            )
        raise UsageError(f"{found}: this directory has no images/", hint="reinstall the harness")
    return found


def checkout() -> Path | None:
    """The source tree that contains this package; None for an installed copy."""
    return PACKAGE.parent if (PACKAGE.parent / "images").is_dir() else None


def workspace() -> Path:
    """Where the user's ``fxh.toml`` and ``reports/`` are: ``FXH_PROJECT``, else the checkout, else the current directory."""
    given = os.environ.get("FXH_PROJECT")
    return Path(given) if given else checkout() or Path.cwd()


def tail(path: Path, size: int) -> bytes:
    """The last ``size`` bytes of a file, without reading the rest: a log may be larger than the memory. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)


def suite_names() -> list[str]:
    """The names of the project's suites."""
    return sorted(path.parent.name for path in (project() / "suites").glob("*/__init__.py"))
