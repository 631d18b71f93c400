# SPDX-License-Identifier: BSD-2-Clause
"""``--shard i/n``: parts of a run for several machines. Each machine computes the same parts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.errors import UsageError


def parse(text: str) -> tuple[int, int] | None:
    """(2, 3) for ``2/3``, None for an empty text. Raises UsageError for anything invalid."""
    if not text:
        return None
    # 2/3
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}: invalid value", hint="use I/N, with I from 1 to N")
    return int(match[1]), int(match[2])


def part(nodeids: Sequence[str], shard: tuple[int, int]) -> frozenset[str]:
    """The cases of a shard: every n-th in the order of their node ids, so that the sizes of shards differ by at most one."""
    index, count = shard
    return frozenset(sorted(nodeids)[index - 1 :: count])
