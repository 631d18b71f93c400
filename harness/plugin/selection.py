# SPDX-License-Identifier: BSD-2-Clause
"""Which of the collected cases this invocation runs: its shard's, and what a resumed run has not finished."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.plugin import shard
from harness.plugin.cells import Cell


def narrow(config: pytest.Config, items: list[pytest.Item], finished: frozenset[str]) -> None:
    """Deselect, as ``-k`` does, what others run, and what is ``finished`` by a run that goes on."""
    wanted = shard.parse(str(config.getoption("shard")))
    if wanted is not None:
        mine = shard.part([item.nodeid for item in items if _ours(item)], wanted)
        _keep(config, items, lambda item: item.nodeid in mine)
    if finished:
        _keep(config, items, lambda item: item.nodeid not in finished)


def _keep(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    gone = [item for item in items if _ours(item) and not wanted(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in set(gone)]


def _ours(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and isinstance(callspec.params.get("cell"), Cell)


def title(item: pytest.Item) -> str:
    """What a case is about, in a line: the first of its docstring, as text, or its name."""
    lines = (getattr(getattr(item, "function", None), "__doc__", None) or "").strip().splitlines()
    # On pages, in mails and at terminals nothing turns ``this`` into anything.
    return lines[0].replace("``", "") if lines else item.name.partition("[")[0]
