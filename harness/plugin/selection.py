# SPDX-License-Identifier: BSD-2-Clause
"""Select the collected cases: once per host, this shard, the rest of a resumed run; and skip those that their cell cannot run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.plugin import cells, shard
from harness.plugin.cells import cell_of


def keep_once(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the cases with ``needs(once=True)`` in all cells of a host but the first."""
    first: dict[tuple[str, str], str] = {}

    def wanted(item: pytest.Item) -> bool:
        cell = cell_of(item)
        if cell is None or not any(mark.kwargs.get("once") for mark in item.iter_markers("needs")):
            return True
        function = item.nodeid.partition("[")[0]
        return first.setdefault((function, cell.host), str(cell)) == str(cell)

    _keep(config, items, wanted)


def narrow(config: pytest.Config, items: list[pytest.Item], shard_text: str, finished: frozenset[str]) -> None:
    """Deselect the cases of other shards (``shard_text`` as in ``--shard``) and those of ``finished``, by node id."""
    wanted = shard.parse(shard_text)
    if wanted is not None:
        mine = shard.part([item.nodeid for item in items if cell_of(item) is not None], wanted)
        _keep(config, items, lambda item: item.nodeid in mine)
    if finished:
        _keep(config, items, lambda item: item.nodeid not in finished)


def _keep(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    dropped = [item for item in items if cell_of(item) is not None and not wanted(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def skip_unmet(items: list[pytest.Item]) -> None:
    """Mark the cases as skipped whose cell does not meet their ``needs``, with the reason and a command that runs them."""
    for item in items:
        cell = cell_of(item)
        if cell is not None:
            marks = list(item.iter_markers("needs"))
            why = cells.unmet(marks, cell)
            if why:
                item.add_marker(pytest.mark.skip(reason=f"{why}; elsewhere: {cells.elsewhere(marks, item.nodeid)}"))


def begin_with_any_kernel(items: list[pytest.Item]) -> None:
    """Move the cases to the front that need not wait for the build of the control guest's kernel."""

    def waits(item: pytest.Item) -> bool:
        cell = cell_of(item)
        return cell is None or cell.under_test or item.get_closest_marker("any_kernel") is None

    items.sort(key=waits)


def title(item: pytest.Item) -> str:
    """The first line of the case's docstring without markup, else the name of its function."""
    lines = (getattr(getattr(item, "function", None), "__doc__", None) or "").strip().splitlines()
    return lines[0].replace("``", "") if lines else item.name.partition("[")[0]
