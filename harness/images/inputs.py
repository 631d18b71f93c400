"""What an image is made from: every input with its hash and where its value came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError


@dataclass(frozen=True)
class Input:
    """``hash`` stands for the content (sha256, or the value itself where it is short); ``origin`` says who gave it."""

    what: str
    hash: str
    origin: str


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}", mend="give the path of a file that can be read") from exc


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(*inputs: Input) -> str:
    """A key that depends on every input's name and hash, and not on where they came from."""
    return combine({item.what: item.hash for item in inputs})


def combine(values: Any) -> str:
    """A short key for any JSON value."""
    return text_hash(json.dumps(values, sort_keys=True))[:16]
