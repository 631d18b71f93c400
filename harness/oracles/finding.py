"""The text of a failed case, so that it can be pasted into a mail as it is."""

from __future__ import annotations

from collections.abc import Iterable


def finding(*, asked: str, did: str | Iterable[str], good: str, source: str) -> str:
    """What was asked of the kernel, what it did (one line or several), what a good one does, and where that is written."""
    lines = [did] if isinstance(did, str) else list(did)
    return "\n".join([f"asked:  {asked}", *(f"did:    {line}" for line in lines), f"a good one: {good}", f"source: {source}"])
