"""Runs of several machines as one: the shards of a night."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import ExitCode, UsageError
from harness.results import model
from harness.results.model import HARNESS, INFRASTRUCTURE, CaseResult, RunResult


@dataclass(frozen=True)
class Merged:
    """``missing`` shards were not among the runs; ``differing`` inputs had more than one value."""

    path: Path
    run: RunResult
    missing: tuple[str, ...]
    differing: tuple[str, ...]


def merge(paths: Sequence[Path], target: Path, exit_code: Callable[[tuple[CaseResult, ...]], int]) -> Merged:
    """Join run directories into the new directory ``target``: the cases' own directories are copied.

    ``exit_code`` says how a run of such cases ends.

    A case that is in several counts where it was judged, else where it ran last. Raises UsageError.
    """
    runs = []
    for path in paths:
        try:
            runs.append((path, model.read_run(path)))
        except (OSError, ValueError) as exc:
            raise UsageError(f"{path} is no run: {exc}", mend="give directories with a run.json") from exc
    best: dict[str, tuple[Path, CaseResult]] = {}
    for path, run in runs:
        for case in run.cases:
            other = best.get(case.nodeid)
            if other is None or _rank(case) > _rank(other[1]):
                best[case.nodeid] = (path, case)
    (target / "cases").mkdir(parents=True)
    for path, case in best.values():
        shutil.copytree(path / "cases" / case.directory, target / "cases" / case.directory, dirs_exist_ok=True)
    for path, _ in runs:
        if (path / "allure").is_dir():
            shutil.copytree(path / "allure", target / "allure", dirs_exist_ok=True)
    inputs, differing = _inputs([run for _, run in runs])
    ended = [run.ended for _, run in runs]
    joined = RunResult(
        run=target.name,
        started=min(run.started for _, run in runs),
        ended=max(ended) if all(ended) else "",
        command="fxh merge " + " ".join(run.run for _, run in runs),
        inputs=inputs,
        cases=tuple(case for _, case in sorted(best.values(), key=lambda pair: (pair[1].suite, pair[1].case, pair[1].cell))),
    )
    joined = replace(joined, exit_code=_whole(exit_code(joined.cases), runs))
    model.write_run(target, joined)
    return Merged(target, joined, missing_shards([run.inputs.get("shard", "") for _, run in runs]), differing)


def missing_shards(shards: Sequence[str]) -> tuple[str, ...]:
    """Of ``1/3``, ``3/3``: ``2/3``."""
    given = {(int(match[1]), int(match[2])) for match in (re.fullmatch(r"(\d+)/(\d+)", text) for text in shards) if match}
    counts = {count for _, count in given}
    return tuple(f"{n}/{count}" for count in sorted(counts) for n in range(1, count + 1) if (n, count) not in given)


def _rank(case: CaseResult) -> tuple[bool, str]:
    return case.outcome not in (INFRASTRUCTURE, HARNESS), case.started


def _inputs(runs: Sequence[RunResult]) -> tuple[dict[str, str], tuple[str, ...]]:
    found: dict[str, str] = {}
    differing = []
    for name in dict.fromkeys(name for run in runs for name in run.inputs):
        values = list(dict.fromkeys(run.inputs[name] for run in runs if name in run.inputs))
        found[name] = " | ".join(values)
        if len(values) > 1 and name not in ("shard", "machine"):
            differing.append(name)
    return found, tuple(differing)


def _whole(code: int, runs: Sequence[tuple[Path, RunResult]]) -> int:
    """The cases decide; but where a part never came to its end, that nothing failed says too little."""
    unfinished = any(run.exit_code in (None, ExitCode.INTERRUPTED) for _, run in runs)
    return ExitCode.INFRASTRUCTURE if code in (ExitCode.OK, ExitCode.NOTHING_SELECTED) and unfinished else code
