# SPDX-License-Identifier: BSD-2-Clause
"""Caches in the store what a probe of this machine found: a success for good, a failure for a day."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar, cast

from filelock import FileLock

from harness import paths, preparing

Found = TypeVar("Found")

_DAY = 86400.0  # seconds


def cached(name: str, key: str, kind: type[Found], works: Callable[[Found], bool], probe: Callable[[], Found]) -> Found:
    """The result of ``probe``, a dataclass of JSON values, from the file ``name``.json if it was found with the same ``key``.

    A failure (``works`` is false) expires: the machine may have been busy, or its user may have installed or allowed something.
    """
    file = paths.store() / f"{name}.json"

    def known() -> Found | None:
        try:
            content = json.loads(file.read_text())
            found = kind(**content["found"])
            lasts = works(found) or time.time() - file.stat().st_mtime < _DAY
            return found if content["key"] == key and lasts else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    if (found := known()) is not None:
        return found
    with preparing.step(f"a trial of {name}"), FileLock(f"{file}.lock"):
        # Another process may have tried meanwhile.
        if (found := known()) is None:
            found = probe()
            file.write_text(json.dumps({"key": key, "found": asdict(cast(Any, found))}))
    return found
