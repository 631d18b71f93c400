"""The one way in which the content of a file gets its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.errors import UsageError


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", mend="give the path of a file that can be read") from exc
