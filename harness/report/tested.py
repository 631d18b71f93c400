# SPDX-License-Identifier: BSD-2-Clause
"""The inputs of a run, and their changes since the results before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.results.model import RunResult
from harness.verdicts.run_verdicts import Key
from harness.verdicts.values import Observation


def inputs(run: RunResult) -> tuple[tuple[str, str], ...]:
    """(name, value) of the inputs of the run and its cases. If cells differ, each value is named with its cells."""
    found: dict[str, dict[str, set[str]]] = {name: {value: set()} for name, value in run.inputs.items()}
    for case in run.cases:
        for name, value in case.inputs.items():
            found.setdefault(name, {}).setdefault(value, set()).add(case.cell)
    return tuple(
        (name if len(values) == 1 else f"{name} ({', '.join(sorted(cells))})", value)
        for name, values in found.items()
        for value, cells in values.items()
    )


def changes(now: Iterable[Observation], past: Mapping[Key, Sequence[Observation]]) -> tuple[tuple[str, str, str], ...]:
    """(input, before, now) for inputs that differ from the last judged result of each case."""
    found: dict[tuple[str, str, str], None] = {}
    for seen in now:
        before = [old for old in past.get((seen.case, seen.cell), ()) if old.judged]
        if before and seen.judged:
            for name in before[-1].inputs.changes(seen.inputs):
                found[(name, before[-1].inputs.words(name), seen.inputs.words(name))] = None
    return tuple(found)
