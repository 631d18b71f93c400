# SPDX-License-Identifier: BSD-2-Clause
"""The name by which JUnit and allure files identify a case."""

from __future__ import annotations

from pathlib import Path

from harness.results.model import CaseResult


def address(module: str, name: str) -> tuple[str, str]:
    """Suite and file of the module, and the test's name: ``suites.boot.test_boot`` gives ``boot.test_boot``."""
    return ".".join(module.split(".")[-2:]), name


def address_of(case: CaseResult) -> tuple[str, str]:
    """The address of a case of the run."""
    path, _, name = case.nodeid.rpartition("::")
    # A file outside the project that was named on the command line has no path in its node id, and no module in their files.
    return address(f"{case.suite}.{Path(path).stem}" if path else "", name)
