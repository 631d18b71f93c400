# SPDX-License-Identifier: BSD-2-Clause
"""The command that runs one case again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from harness.results.model import CaseResult, RunResult
from harness.results.where import Where


def rerun_command(run: RunResult, case: CaseResult) -> str:
    """The command that runs this case alone, with the same inputs."""
    options = options_for_cell(run.options_of(case), case.where)
    words = [word for name, value in sorted(options.items()) for word in (f"--{name}", shlex.quote(value))]
    return " ".join(["fxh run", case.suite, "-k", shlex.quote(selector(case)), *words])


def selector(case: CaseResult) -> str:
    """The argument of pytest's ``-k`` that selects this case in this cell only."""
    return case.nodeid.rpartition("::")[2]


def options_for_cell(options: Mapping[str, str], where: Where) -> dict[str, str]:
    """A run's options, with guest, type, firmware and Xen limited to one cell."""
    found = dict(options)
    for name, value in (("guest", where.guest), ("type", where.type), ("xen", where.xen)):
        if value in options.get(name, "").split(","):
            found[name] = value
    if "firmware" in found:
        # The default firmware needs no option.
        found["firmware"] = where.firmware
    return {name: value for name, value in found.items() if value}
