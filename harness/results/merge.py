# SPDX-License-Identifier: BSD-2-Clause
"""Merge the shards of a run, which ran on several machines, into one run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness.errors import ExitCode, UsageError
from harness.results import model
from harness.results.model import HARNESS, INFRASTRUCTURE, CaseResult, RunResult

# Options whose value is a list of things to test. The merged run tested all of them.
_LISTS = ("guest", "type", "firmware", "xen")
# Options that name a file or host of one machine. The inputs tell whether their content is the same.
_PLACES = ("kernel", "disk", "image", "control", "hypervisor", "dom0-kernel", "xen-host")


@dataclass(frozen=True)
class Merged:
    """The merged run and its directory."""

    path: Path
    run: RunResult
    missing: tuple[str, ...]
    """Shards that were not among the runs."""
    differing: tuple[str, ...]
    """Inputs and options with more than one value."""


def merge(paths: Sequence[Path], target: Path, exit_code: Callable[[tuple[CaseResult, ...]], int]) -> Merged:
    """Merge run directories into the new directory ``target``, and copy the cases' directories.

    If several runs have a case, a result with a judgement counts, then the latest one. ``exit_code`` gives the exit code for a
    run's cases. Raises UsageError for a directory without a run, and for runs that do not fit together, such as different branches.
    """
    runs = []
    for path in paths:
        try:
            runs.append((path, model.read_run(path)))
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise UsageError(
                f"{path / 'run.json'}: {reason}",
                hint="give the directories of runs: reports/runs/NAME; without any, run the jobs of the shards again",
            ) from exc
    best: dict[str, tuple[Path, RunResult, CaseResult]] = {}
    for path, run in runs:
        for case in run.cases:
            other = best.get(case.nodeid)
            if other is None or _rank(case) > _rank(other[2]):
                best[case.nodeid] = (path, run, case)
    parts = [run for _, run in runs]
    joined = _joined(parts, target.name)
    cases = sorted(((run, case) for _, run, case in best.values()), key=lambda pair: (pair[1].suite, pair[1].case, pair[1].cell))
    joined = replace(joined, cases=tuple(_with_own_options(joined, run, case) for run, case in cases))
    missing = missing_shards([text for run in parts for text in run.inputs.get("shard", "").split(" | ")])
    joined = replace(joined, exit_code=_exit_code(exit_code(joined.cases), parts, exit_code, missing))
    (target / "cases").mkdir(parents=True)
    for path, _, case in best.values():
        shutil.copytree(path / "cases" / case.directory, target / "cases" / case.directory, dirs_exist_ok=True)
    for path, _ in runs:
        if (path / "allure").is_dir():
            shutil.copytree(path / "allure", target / "allure", dirs_exist_ok=True)
    for case in joined.cases:
        if case.options:
            model.write_case(target / "cases" / case.directory, case)
    model.write_run(target, joined)
    model.add_setup(target, *joined.setup)
    return Merged(target, joined, missing, _differing(parts))


def missing_shards(shards: Sequence[str]) -> tuple[str, ...]:
    """The shards that are not in the list: ``2/3`` for ``1/3`` and ``3/3``."""
    given = {(int(match[1]), int(match[2])) for match in (re.fullmatch(r"(\d+)/(\d+)", text) for text in shards) if match}
    counts = {count for _, count in given}
    return tuple(f"{n}/{count}" for count in sorted(counts) for n in range(1, count + 1) if (n, count) not in given)


def _rank(case: CaseResult) -> tuple[bool, str]:
    return case.outcome not in (INFRASTRUCTURE, HARNESS) and not case.paused, case.started


def _joined(runs: Sequence[RunResult], name: str) -> RunResult:
    """The merged run, without cases and exit code. Raises UsageError if a field without a rule differs between the runs."""
    rules: Mapping[str, Callable[[list[Any]], Any]] = {
        "run": lambda _: name,
        "started": min,
        "ended": lambda ends: max(ends) if all(ends) else "",
        "command": lambda _: "fxh merge " + " ".join(run.run for run in runs),
        "inputs": _inputs,
        "options": _options,
        "exit_code": lambda _: None,
        "cases": lambda _: (),
        "setup": lambda parts: tuple(step for steps in parts for step in steps),
        "parts": lambda _: tuple(dict.fromkeys(part for run in runs for part in run.parts or (run.run,))),
    }
    joined = {}
    for item in fields(RunResult):
        values = [getattr(run, item.name) for run in runs]
        rule = rules.get(item.name)
        if rule is None and any(value != values[0] for value in values):
            differing = ", ".join(f"{value!r} in {run.run}" for run, value in zip(runs, values, strict=True))
            raise UsageError(
                f"the runs differ in their {item.name}: {differing}", hint=f"merge the runs of each {item.name} separately"
            )
        joined[item.name] = rule(values) if rule else values[0]
    return RunResult(**joined)


def _inputs(given: list[dict[str, str]]) -> dict[str, str]:
    return {name: " | ".join(values) for name, values in _values(given).items()}


def _options(given: list[dict[str, str]]) -> dict[str, str]:
    """The options of the merged run.

    A list option has the words of all runs; it is dropped if a run used the default. Any other option has its first value.
    """
    found = {name: values[0] for name, values in _values(given).items()}
    for name in _LISTS:
        if name in found:
            words = dict.fromkeys(word for options in given for word in options.get(name, "").split(","))
            found[name] = "" if "" in words else ",".join(words)
    return {name: value for name, value in found.items() if value}


def _with_own_options(joined: RunResult, run: RunResult, case: CaseResult) -> CaseResult:
    """The case with the options of its own run, so that it can be rerun with them."""
    own, shared = run.options_of(case), joined.options
    names = sorted(name for name in own.keys() | shared.keys() if own.get(name, "") != shared.get(name, ""))
    return replace(case, options={name: own.get(name, "") for name in names})


def _differing(runs: Sequence[RunResult]) -> tuple[str, ...]:
    """Inputs and options that differ, although the runs are parts of one run."""
    inputs = _values([run.inputs for run in runs])
    found = [name for name, values in inputs.items() if len(values) > 1 and name not in ("shard", "machine")]
    names = dict.fromkeys(name for run in runs for name in run.options if name not in (*_LISTS, *_PLACES))
    return (*found, *(f"--{name}" for name in names if len({run.options.get(name, "") for run in runs}) > 1))


def _values(given: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The distinct values of each name, in the order of the runs."""
    names = dict.fromkeys(name for values in given for name in values)
    return {name: list(dict.fromkeys(values[name] for values in given if name in values)) for name in names}


def _exit_code(
    code: int, runs: Sequence[RunResult], exit_code: Callable[[tuple[CaseResult, ...]], int], missing: Sequence[str]
) -> int:
    """The exit code of the merged run: ``code``, which its cases give.

    If that is a success, but a part is missing, did not finish or ended worse than its cases, the result is ExitCode.INFRASTRUCTURE.
    """
    good = (ExitCode.OK, ExitCode.NOTHING_SELECTED)
    unfinished = any(
        run.exit_code in (None, ExitCode.INTERRUPTED) or (run.exit_code not in good and exit_code(run.cases) in good)
        for run in runs
    )
    return ExitCode.INFRASTRUCTURE if code in good and (unfinished or missing) else code
