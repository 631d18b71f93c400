# SPDX-License-Identifier: BSD-2-Clause
"""The pytest plugin: ``pytest suites/`` works as people expect, ``fxh run`` adds its exit codes and its page."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from harness.plugin import cells, options, selection

# Everything heavy is imported when a case of ours is there: the plugin is loaded by every pytest around.
pytest_plugins = ("harness.plugin.fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(os, types, capability, freebsd, once): what a case cannot do without: os 'freebsd' or 'linux', guest types, "
        "host capabilities (pygrub, pygrub-restrict, hvm, checkpoint, console-log, emulated), "
        "FreeBSD versions ('>=12.0,<14.1', '>=1400507'; the control guest has none); once: the case is about the host alone, and "
        "runs in one cell of each",
    )
    config.addinivalue_line(
        "markers", "formerly(key, ...): keys (as `fxh history` shows them) that this case had before it was renamed"
    )
    if not config.getoption("help"):
        from harness.plugin import build_progress, ending, pep657_workaround, session

        session.check_options(config)
        ending.install(config)
        build_progress.install(config)
        pep657_workaround.off()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        from harness.plugin import session

        found = session.cells_of(metafunc.config)
        metafunc.parametrize("cell", found, ids=[str(cell) for cell in found], scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason and the command that would run it, what cannot run in its cell.

    Left out are what a host needs no more than once, and other shards' cases.
    """
    _once(config, items)
    finished: frozenset[str] = frozenset()
    if config.getoption("resume"):
        from harness.plugin import session

        finished = session.finished(config)
    selection.narrow(config, items, finished)
    for item in items:
        callspec = getattr(item, "callspec", None)
        cell = callspec.params.get("cell") if callspec is not None else None
        if isinstance(cell, cells.Cell):
            marks = list(item.iter_markers("needs"))
            why = cells.unmet(marks, cell)
            if why:
                reason = f"{why}; elsewhere: {cells.elsewhere(marks, item.nodeid)}"
                item.add_marker(pytest.mark.skip(reason=reason))


def _once(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    seen: dict[tuple[str, str], str] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        cell = callspec.params.get("cell") if callspec is not None else None
        once = any(mark.kwargs.get("once") for mark in item.iter_markers("needs"))
        if isinstance(cell, cells.Cell) and once and seen.setdefault((_caseless(item), cell.host), str(cell)) != str(cell):
            dropped.append(item)
        else:
            kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _caseless(item: pytest.Item) -> str:
    """The case without the cell: its function."""
    return item.nodeid.partition("[")[0]


def _ours(item: pytest.Item) -> bool:
    return "cell" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """As pytest's own, but a case whose host was lost under it is run once more, on another."""
    if not _ours(item):
        return None
    from harness.plugin import session

    session.run(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _ours(item):
        from harness.plugin import session

        session.phase(item, call, report)
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: all workers write into one run."""
    from harness.plugin import session

    node.workerinput["fxh_run"] = str(session.run_path(node.config))
    node.workerinput["fxh_command"] = session.command()
