# SPDX-License-Identifier: BSD-2-Clause
"""The installed wheel in an empty directory, with a lab: the first steps of a user."""

from __future__ import annotations

import json

from harness.results.model import read_run
from tests.conftest import Installed


def test_a_lab_starts_stops_and_is_removed(installed: Installed) -> None:
    name = f"installed-{installed.directory.parent.name}"[-40:]
    try:
        said = installed.fxh("lab", "up", name, "--keep")
        assert f"lab {name} is up" in said
        assert name in {row["name"] for row in json.loads(installed.fxh("lab", "list", "--json"))}
        assert "Domain-0" in installed.fxh("lab", "ssh", name, "xl", "list")
        installed.fxh("lab", "down", name)
        assert {row["name"]: row["state"] for row in json.loads(installed.fxh("lab", "list", "--json"))}[name] == "stopped"
    finally:
        installed.run("fxh", "lab", "rm", name)
    assert name not in {row["name"] for row in json.loads(installed.fxh("lab", "list", "--json"))}


def test_a_case_passes_and_its_report_is_in_the_current_directory(installed: Installed) -> None:
    said = installed.run("fxh", "run", "boot", "-k", "boots_to_login and pvh")
    assert said.returncode == 0, f"{said.stdout[-3000:]}{said.stderr[-3000:]}"
    latest = installed.directory / "reports/latest"
    (case,) = read_run(latest.resolve()).cases
    assert case.outcome == "passed"
    # The same as in a checkout, so that both share one history.
    assert case.nodeid.startswith("suites/boot/test_boot.py::test_boots_to_login[control-pvh-")
    assert (latest / "index.html").is_file()
    assert "passed" in installed.fxh("report")
