"""Where things lie on the user's machine; one environment variable moves each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs


def store() -> Path:
    """The store of labs and images, shared by all runs of a user: ``FXH_STORE``, else the XDG cache directory."""
    given = os.environ.get("FXH_STORE")
    path = Path(given) if given else Path(platformdirs.user_cache_dir("freebsd-xen-harness"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def runtime() -> Path:
    """Where running labs keep their sockets; short, because a Unix socket's path ends at about 100 bytes."""
    given = os.environ.get("FXH_RUNTIME")
    path = Path(given) if given else Path(tempfile.gettempdir()) / f"fxh-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def project() -> Path:
    """The checkout (or the installed copy) that holds ``images/`` and ``suites/``.

    ``FXH_PROJECT``, else the directory above this package when it holds ``images/``, else the current directory.
    """
    given = os.environ.get("FXH_PROJECT")
    if given:
        return Path(given)
    beside = Path(__file__).resolve().parent.parent
    return beside if (beside / "images").is_dir() else Path.cwd()
