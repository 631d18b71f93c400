# SPDX-License-Identifier: BSD-2-Clause
"""The pytest plugin. Plain ``pytest suites/`` works; ``fxh run`` adds exit codes and reports."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from harness.plugin import options, selection

# Every pytest in this environment loads this module, so hooks import the rest only if a case of the harness needs it.
pytest_plugins = ("harness.plugin.fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    result = yield
    # Now the options of all plugins and conftest.py files are known.
    options.accept_old_names(early_config, parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(os, types, capability, freebsd, once): the requirements of a case: os 'freebsd' or 'linux', guest types, "
        "host capabilities (pygrub, pygrub-restrict, hvm, checkpoint, console-log, emulated), "
        "FreeBSD versions ('>=12.0,<14.1', '>=1400507'; they do not apply to the control guest); once: the case tests the host "
        "alone and runs in one cell per host",
    )
    config.addinivalue_line(
        "markers",
        "any_kernel: the result does not depend on the kernel of the control guest, so the case may run with dom0's kernel "
        "while the control guest's own kernel is built",
    )
    config.addinivalue_line("markers", "formerly(key, ...): keys (see `fxh history`) of this case before it was renamed")
    if not config.getoption("help"):
        from harness.plugin import ending, pep657_workaround, progress, session

        session.begin(config)
        ending.install(config)
        progress.log_builds(config)
        pep657_workaround.apply()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        from harness.plugin import session

        session.open_run(metafunc.config)
        found = session.cells_of(metafunc.config)
        metafunc.parametrize("cell", found, ids=[str(cell) for cell in found], scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from harness.plugin import session
    from harness.plugin.state import OPTIONS

    asked = config.stash[OPTIONS]
    selection.keep_once(config, items)
    selection.narrow(config, items, asked.shard, session.finished(config) if asked.resume else frozenset())
    selection.skip_unmet(items)
    if session.kernel_is_missing(config):
        selection.begin_with_any_kernel(items)
    if asked.pause:
        from harness.plugin import pause

        pause.mark(items, asked.pause)


def _ours(item: pytest.Item) -> bool:
    return "cell" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a case as pytest does, and repeat it on another host if its host is lost."""
    if not _ours(item):
        return None
    from harness.plugin import phases

    phases.run(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Pause before pytest's wrappers: they begin to capture the output."""
    if _ours(item):
        from harness.plugin import pause

        pause.before_call(item)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if not _ours(item):
        return (yield)
    from harness.plugin import phases, report_text

    if call.excinfo is not None:
        report_text.escape_error(call.excinfo.value)
    report = yield
    phases.end_phase(item, call, report)
    report_text.escape(report)
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give an xdist worker the options, the command line and the run directory of its controller."""
    from harness.plugin import session
    from harness.plugin.state import OPTIONS

    node.workerinput["fxh_options"] = options.for_worker(node.config.stash[OPTIONS])
    node.workerinput["fxh_run"] = str(session.run_path(node.config))
    node.workerinput["fxh_command"] = session.command()
    node.workerinput["fxh_kernel_is_missing"] = session.kernel_is_missing(node.config)
