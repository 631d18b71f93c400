# SPDX-License-Identifier: BSD-2-Clause
"""The complaints (harness.console.complaints) on the consoles of a case, and in the logs of its host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness import paths
from harness.console import complaints
from harness.console.clean import Cleaner
from harness.console.text import decode
from harness.results.model import ComplaintRecord

# Bytes at the end of a console that are searched.
_SEARCHED = 1 << 20


def find(directory: Path, logs: Mapping[str, str]) -> tuple[ComplaintRecord, ...] | None:
    """The complaints on the consoles of a case and in the lines of its host's ``logs``, one per source and identity.

    None if there is neither. Only the end of a long console is searched.
    """
    consoles = sorted(directory.glob("*.console.log"))
    texts = [*((complaints.GUEST, _console(path)) for path in consoles), *logs.items()]
    found: dict[tuple[str, str], ComplaintRecord] = {}
    for source, text in texts:
        for one in complaints.complaints(text, source):
            before = found.get((source, one.identity))
            count = one.count + (before.count if before else 0)
            found[source, one.identity] = ComplaintRecord(one.kind, source, one.message, one.identity, one.detail, count)
    return tuple(found.values()) if texts else None


def _console(path: Path) -> str:
    return decode(Cleaner().text(paths.tail(path, _SEARCHED)))
