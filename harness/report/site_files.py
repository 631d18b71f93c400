# SPDX-License-Identifier: BSD-2-Clause
"""The files of the site. A page is replaced as a whole, and only if its content changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.errors import InfrastructureError, UsageError

STATE = ".fxh-site.json"
"""The inputs of the pages; the file also marks a directory as a site."""
FOLDERS = ("runs", "cells", "nights")
# A killed run leaves such a file. It is removed by the next one.
_UNFINISHED = ".unfinished"


class SiteFiles:
    """The directory of a site, new or existing. The caller holds the lock of the site.

    Raises UsageError for a directory that has other files, InfrastructureError if it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.written: list[str] = []
        self._digests: dict[str, str] = {}
        try:
            # The lock is there already.
            others = [entry.name for entry in os.scandir(directory) if not entry.name.startswith(".fxh-site")]
            if others and not (directory / STATE).is_file():
                raise UsageError(
                    f"{directory} has other files, such as {min(others)!r}", hint="choose a new or empty directory for the site"
                )
            (directory / STATE).touch()
            for folder in FOLDERS:
                (directory / folder).mkdir(exist_ok=True)
        except OSError as exc:
            raise _error(directory, exc) from exc

    def state(self) -> dict[str, Any]:
        """The state that the last complete run left; empty if there is no such state."""
        try:
            found = json.loads((self.directory / STATE).read_bytes())
            self._digests = dict(found["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return dict(found)

    def intact(self, name: str) -> bool:
        """Whether the page has the content that the last complete run gave it."""
        try:
            return self._digests.get(name) == _digest((self.directory / name).read_bytes())
        except OSError:
            return False

    def keep(self, name: str) -> str:
        """The digest of an intact page, for the next state."""
        return self._digests[name]

    def write(self, name: str, text: str) -> str:
        """Write a page unless it has this content already. Returns the digest of its content."""
        data = text.encode("utf-8", "replace")
        path = self.directory / name
        try:
            if not path.is_file() or path.read_bytes() != data:
                temporary = path.with_name(f".{path.name}{_UNFINISHED}")
                temporary.write_bytes(data)
                temporary.replace(path)
                self.written.append(name)
        except OSError as exc:
            raise _error(path, exc) from exc
        return _digest(data)

    def finish(self, state: dict[str, Any], pages: Collection[str]) -> None:
        """Write the state, and remove pages of the site that are not among ``pages``."""
        self.write(STATE, json.dumps(state, separators=(",", ":")))
        for folder in FOLDERS:
            for entry in os.scandir(self.directory / folder):
                ours = entry.name.endswith((".html", _UNFINISHED))
                if ours and f"{folder}/{entry.name}" not in pages:
                    Path(entry.path).unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _error(path: Path, exc: OSError) -> InfrastructureError:
    return InfrastructureError(f"{path}: {exc.strerror}", hint="check that the directory is writable and its disk has space")
