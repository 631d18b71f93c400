# SPDX-License-Identifier: BSD-2-Clause
"""``--shard i/n``: parts of a run for several machines, the same wherever it is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.errors import UsageError


def parse(text: str) -> tuple[int, int] | None:
    """``2/3`` as (2, 3), or None for an empty text. Raises UsageError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}", hint="i/n, with i from 1 to n")
    return int(match[1]), int(match[2])


def part(nodeids: Sequence[str], shard: tuple[int, int]) -> frozenset[str]:
    """The cases of a shard: every n-th of all in order of their names, so that shards differ by one case at most."""
    index, count = shard
    return frozenset(sorted(nodeids)[index - 1 :: count])
