# SPDX-License-Identifier: BSD-2-Clause
"""fxh blame, bisect and repro: rerun a failure with other inputs or on another machine, and report it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.run_lookup import Reports, new_reports, pick_case, reports, run_directory
from harness.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from harness.investigate.bisection import State
    from harness.investigate.blame import Side, Trial
    from harness.results.model import CaseResult, RunResult
    from harness.results.where import Where

# Options of `fxh run` that choose an input by path, and by name.
_FILES, _NAMES = ("kernel", "disk", "control", "hypervisor", "dom0-kernel"), ("image", "xen")

repro = typer.Typer(
    no_args_is_help=True, help="Export a failure as an archive, rerun such an archive, and draft the mail that reports the failure."
)

Case = Annotated[str, typer.Argument(help="The name of a case, or a part of it.")]
CellOption = Annotated[str, typer.Option("--cell", help="The name of the cell, or a part of it.")]
RunOption = Annotated[str, typer.Option("--run", help="The run with the failure.")]


def register(app: typer.Typer) -> None:
    app.command()(blame)
    app.command()(bisect)
    app.add_typer(repro, name="repro")


def blame(
    case: Case,
    cell: CellOption = "",
    run: RunOption = "latest",
    good: Annotated[
        str, typer.Option("--good", help="Compare with this run, in which the case passed (default: the last one).")
    ] = "",
    swap: Annotated[
        list[str] | None, typer.Option("--swap", help="Swap this option for the given value, NAME=VALUE; may be repeated.")
    ] = None,
    other_xen: Annotated[str, typer.Option("--other-xen", help="Also try these Xen versions (comma-separated).")] = "",
    tries: Annotated[int, typer.Option("--tries", min=1, help="Run each trial this many times.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials and run nothing.")] = False,
    where: Reports = None,
) -> None:
    """Find the input that causes a failure: rerun the case with one input at a time swapped for its last good value."""
    from contextlib import ExitStack

    from harness import paths
    from harness.investigate import blame as blaming
    from harness.investigate.rerun import checkout, rerun
    from harness.results.model import PASSED

    home = reports(where)
    failed_run, failed = _failed(home, run, case, cell)
    bad_side = _side(failed_run, failed.where, failed.inputs)
    good_side = _good_side(home, failed_run, failed, good, swap or [], bad_side)
    xens = [word for word in other_xen.split(",") if word]
    plan = blaming.plan(bad_side, good_side, other_xens=xens)
    outcomes: dict[str, list[str]] = {}
    with ExitStack() as stack:
        for trial in plan.trials:
            if dry_run:
                typer.echo(f"{trial.name}: {_changes(trial, bad_side)}")
                continue
            tree = stack.enter_context(checkout(paths.project(), trial.harness)) if trial.harness else None
            for _ in range(tries):
                typer.echo(f"{trial.name}: {_changes(trial, bad_side)} ...", err=True)
                answer = rerun(failed, trial.options, cell=trial.cell, reports=home / "blame", tree=tree)
                outcomes.setdefault(trial.name, []).append(answer.outcome)
                typer.echo(f"{trial.name}: {answer.outcome}" + (f"  {_first(answer.reason)}" if answer.reason else ""))
            if trial.name == blaming.AS_IT_FAILED and PASSED in outcomes[trial.name]:
                break
    if dry_run:
        return
    found = blaming.conclude(plan.trials, outcomes, plan.unswappable)
    typer.echo(found.sentence)
    raise typer.Exit(ExitCode.OK if found.sure else ExitCode.INFRASTRUCTURE)


def bisect(
    case: Case,
    builds: Annotated[
        list[str] | None,
        typer.Argument(help="Kernels or images, oldest first; the case passes with the first and fails with the last."),
    ] = None,
    option: Annotated[
        str, typer.Option("--input", help="Pass the builds to this option of fxh run: kernel, disk, image, control.")
    ] = "kernel",
    source: Annotated[
        Path | None, typer.Option("--source", help="Bisect this git checkout instead, with --good, --bad and --build.")
    ] = None,
    good: Annotated[str, typer.Option("--good", help="A commit with which the case passes.")] = "",
    bad: Annotated[str, typer.Option("--bad", help="A commit with which the case fails.")] = "",
    build: Annotated[
        str, typer.Option("--build", help="Build the checked-out commit with this command, which writes $FXH_OUT.")
    ] = "",
    need: Annotated[int, typer.Option("--need", min=1, help="Call a build bad after this many failures in --of tries.")] = 1,
    of: Annotated[int, typer.Option("--of", min=1, help="Try each build at most this many times.")] = 1,
    confirm: Annotated[
        int, typer.Option("--confirm", min=1, help="Require this many failures of the culprit and passes of the build before it.")
    ] = 3,
    restart: Annotated[bool, typer.Option("--restart", help="Discard earlier answers.")] = False,
    cell: CellOption = "",
    run: RunOption = "latest",
    where: Reports = None,
) -> None:
    """Find the build that introduced a failure. Answers are saved: the same command continues an interrupted bisection."""
    from harness.investigate import bisect_state, bisection
    from harness.investigate.builds import Builds, CommitBuilds, FileBuilds, NamedBuilds
    from harness.investigate.rerun import rerun

    if need > of:
        raise UsageError(f"--need {need} --of {of}: more failures than tries", hint="raise --of")
    if option not in (*_FILES, *_NAMES):
        raise UsageError(f"--input {option}: invalid value", hint=f"valid values: {', '.join((*_FILES, *_NAMES))}")
    home = reports(where)
    failed_run, failed = _failed(home, run, case, cell)
    chosen: Builds
    if source is not None:
        if not (good and bad and build):
            raise UsageError("--source without --good, --bad or --build", hint="add --good COMMIT --bad COMMIT --build COMMAND")
        chosen = CommitBuilds(source.absolute(), good, bad, build, home / "bisect" / "builds")
    elif option in _NAMES:
        chosen = NamedBuilds(builds or [])
    else:
        chosen = FileBuilds([Path(name) for name in builds or []])
    rule = bisection.Rule(need, of, confirm)
    book = bisect_state.load(home / "bisect", failed.key, failed.cell, option, chosen.names, restart=restart)
    try:
        while isinstance(step := bisection.next_step(book.state, rule), bisection.Try):
            typer.echo(f"{chosen.names[step.which]}: {step.why} ...", err=True)
            value = chosen.option(step.which)
            if value is None:
                outcome, reason = "skipped", "the build failed"
            else:
                answer = rerun(failed, failed_run.options | {option: value}, cell=failed.cell, reports=home / "bisect")
                outcome, reason = ("skipped" if answer.refused else answer.outcome), _first(answer.reason)
            book.answered(step.which, outcome)
            typer.echo(f"{chosen.names[step.which]}: {outcome}" + (f"  {reason}" if reason else ""))
    finally:
        if isinstance(chosen, CommitBuilds):
            chosen.close()
    typer.echo(step.sentence)
    _summary(book.state)
    raise typer.Exit(ExitCode.OK if isinstance(step, bisection.Culprit) else ExitCode.INFRASTRUCTURE)


@repro.command("export")
def export(
    case: Case,
    cell: CellOption = "",
    run: RunOption = "latest",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write this archive (default: CASE.tar.gz).")] = None,
    where: Reports = None,
) -> None:
    """Export a failure as an archive: the case, its logs, its kernel, and where to get each input, without local paths and secrets."""
    from harness.investigate import bundle
    from harness.investigate.scrub import of_this_machine

    home = reports(where)
    path = run_directory(home, run)
    failed_run, failed = _failed(home, run, case, cell)
    target = out or Path(f"{failed.directory}.tar.gz")
    made = bundle.export(target, path / "cases" / failed.directory, failed_run, failed, of_this_machine({str(home): "(reports)"}))
    typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    for item in made.inputs:
        typer.echo(f"  {item.option} {item.name}: " + ("in it" if item.member else f"not in it, sha256 {item.sha256[:16]}"))


@repro.command("mail")
def mail(
    case: Case,
    cell: CellOption = "",
    run: RunOption = "latest",
    to: Annotated[str, typer.Option("--to", help="Address the mail to; several are separated by commas.")] = "",
    sender: Annotated[str, typer.Option("--from", help="Write the mail from this address.")] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the mail to this file (default: print it).")] = None,
    where: Reports = None,
) -> None:
    """Draft the mail that reports one failure or known issue, without local paths. Nothing is sent."""
    from harness import report as reporting
    from harness.investigate.scrub import of_this_machine
    from harness.report.mail import compose_case

    home = reports(where)
    path = run_directory(home, run)
    failed_run, failed = _failed(home, run, case, cell)
    made = reporting.build_report(path, failed_run)
    item = next(item for item in made.cases if (item.result.key, item.result.cell) == (failed.key, failed.cell))
    message = compose_case(made, item, to=to, sender=sender, scrub=of_this_machine({str(home): "(reports)"}))
    if out is None:
        typer.echo(message.as_bytes(), nl=False)
    else:
        out.write_bytes(message.as_bytes())
        typer.echo(f"mail: {out}", err=True)


@repro.command("run")
def run_bundle(
    archive: Annotated[Path, typer.Argument(help="An archive written by `fxh repro export`.")],
    kernel: Annotated[Path | None, typer.Option("--kernel", help="Use this kernel if the archive has none.")] = None,
    disk: Annotated[Path | None, typer.Option("--disk", help="Use this disk image.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Accept files that differ from those of the archive.")] = False,
    where: Reports = None,
) -> None:
    """Run the case of an archive on this machine. Exit codes: 0 it passes, 1 it fails, 4 it has no verdict."""
    import tempfile

    from harness.investigate import bundle
    from harness.investigate.rerun import rerun
    from harness.results.model import FAILED, PASSED

    given = {name: path for name, path in (("kernel", kernel), ("disk", disk)) if path is not None}
    with tempfile.TemporaryDirectory(prefix="fxh-repro-") as directory:
        found = bundle.read(archive, Path(directory))
        options = bundle.options_for(found, Path(directory), given, anyway=anyway)
        typer.echo(f"{found.title or found.case}, in {found.cell}; there it {found.outcome}: {_first(found.reason)}", err=True)
        answer = rerun(found.result(), options, cell=found.cell, reports=new_reports(where) / "repro")
    if answer.outcome not in (PASSED, FAILED):
        typer.echo(f"No verdict: {_first(answer.reason)}")
        raise typer.Exit(ExitCode.INFRASTRUCTURE)
    if answer.outcome == PASSED:
        typer.echo("Not reproduced: the case passes here.")
        raise typer.Exit(ExitCode.OK)
    same = answer.identity == found.identity
    how = f"the same way ({answer.identity or _first(answer.reason)})" if same else f"otherwise: {_first(answer.reason)}"
    typer.echo(f"Reproduced: it fails here {how}." if same else f"It fails here, but {how}.")
    raise typer.Exit(ExitCode.PRODUCT)


def _failed(home: Path, run: str, case: str, cell: str) -> tuple[RunResult, CaseResult]:
    from dataclasses import replace

    from harness.report.command import options_for_cell
    from harness.results.model import FAILED, KNOWN, read_run

    found = read_run(run_directory(home, run))
    picked = pick_case(found, case, cell)
    if picked.outcome not in (FAILED, KNOWN):
        raise UsageError(
            f"{picked.key} in {picked.cell} {picked.outcome} in run {found.run}", hint="add --run RUN, a run in which it failed"
        )
    return replace(found, options=options_for_cell(found.options_of(picked), picked.where)), picked


def _side(run: RunResult, cell: Where, inputs: dict[str, str]) -> Side:
    from harness.investigate.blame import Side
    from harness.results.revision import commit_of

    return Side(run.options, cell, commit_of((run.inputs | inputs).get("harness", "")))


def _good_side(home: Path, run: RunResult, case: CaseResult, good: str, swaps: list[str], bad: Side) -> Side | None:
    """The last run in which the case passed, or the run ``good``, with its changed files marked; None without such a run."""
    from dataclasses import replace

    from harness.history.delivery import history_of
    from harness.investigate.blame import Side
    from harness.report.command import options_for_cell
    from harness.results.model import PASSED, RunResult

    store = history_of(home)
    rows = [row for row in store.results(case=case.key) if row.seen.cell == case.cell and row.seen.outcome == PASSED]
    rows = [row for row in rows if (row.seen.run.startswith(good) if good else row.number < store.number(run.run))]
    side: Side | None = None
    if rows:
        past = store.run(rows[-1].seen.run)
        if past is not None:
            inputs = dict(rows[-1].seen.inputs.values)
            options = options_for_cell(past.options, case.where)
            old = RunResult(past.run, past.started, inputs=past.inputs, options=options)
            gone = _gone(options, inputs)
            # A rebuilt image keeps its name.
            image = inputs.get("image", "")
            if image != case.inputs.get("image", "") and options.get("image", "") == bad.options.get("image"):
                gone["image"] = f"{image} has been rebuilt since"
            side = replace(_side(old, case.where, inputs), gone=gone)
            typer.echo(f"last pass: run {past.run}", err=True)
    elif good:
        raise UsageError(f"{case.key} did not pass in {case.cell} in a run {good!r}", hint="`fxh history CASE` lists its runs")
    for word in swaps:
        name, mark, value = word.partition("=")
        if not mark or name not in (*_FILES, *_NAMES, "root"):
            raise UsageError(
                f"--swap {word}: invalid value",
                hint="use kernel=FILE, disk=FILE, control=DIRECTORY, hypervisor=FILE, dom0-kernel=FILE",
            )
        base = side or Side(bad.options, bad.where, bad.harness)
        gone = {key: why for key, why in base.gone.items() if key != name}
        side = replace(base, options=dict(base.options) | {name: value}, gone=gone)
    return side


def _gone(options: dict[str, str], inputs: dict[str, str]) -> dict[str, str]:
    """The file options whose file no longer exists or has changed since that run, with the reason."""
    from harness.digest import file_sha256

    found = {}
    files = {"kernel": ("kernel", ""), "disk": ("xvda", ""), "control": ("ramdisk", "initrd")}
    for name, (key, below) in files.items():
        if name in options:
            path = Path(options[name]) / below if below else Path(options[name])
            _, mark, wanted = inputs.get(key, "").partition("sha256:")
            if not path.is_file():
                found[name] = f"{path} no longer exists"
            elif mark and file_sha256(path) != wanted:
                found[name] = f"{path} has changed since"
    return found


def _changes(trial: Trial, bad: Side) -> str:
    names = sorted(name for name in trial.options.keys() | bad.options.keys() if trial.options.get(name) != bad.options.get(name))
    words = [f"--{name} {trial.options.get(name, '(default)')}" for name in names]
    if trial.harness:
        words.append(f"harness {trial.harness}")
    return ", ".join(words) or "the same inputs"


def _summary(state: State) -> None:
    from harness.investigate.bisection import tried
    from harness.results.model import FAILED, PASSED

    for which in sorted(tried(state)):
        tally = ", ".join(f"{state.count(which, word)} {word}" for word in (PASSED, FAILED, "skipped") if state.count(which, word))
        typer.echo(f"  {state.names[which]}: {tally or 'no verdict'}")


def _first(text: str) -> str:
    return text.splitlines()[0][:200] if text else ""
