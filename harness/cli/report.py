# SPDX-License-Identifier: BSD-2-Clause
"""fxh report, compare, history: what runs found, beside those before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.run_lookup import Reports, pick_key, reports, run_directory
from harness.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from harness.history.rows import Row
    from harness.history.store import History
    from harness.verdicts.values import Baseline

_LETTERS = {"passed": "·", "failed": "F", "skipped": "-", "infrastructure": "I", "harness": "H", "known": "k"}


def register(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(compare)
    app.command()(history)


def report(
    run: Annotated[str, typer.Argument(help="A run's name or the beginning of it, or latest.")] = "latest",
    mail: Annotated[bool, typer.Option("--mail", help="Print the mail, and where its file is.")] = False,
    to: Annotated[str, typer.Option("--to", help="Address the mail to; several by commas (default: mail.to).")] = "",
    sender: Annotated[str, typer.Option("--from", help="Send the mail from this address (default: mail.sender).")] = "",
    send: Annotated[bool, typer.Option("--send", help="Hand the mail to --smtp. Without this nothing is ever sent.")] = False,
    smtp: Annotated[
        str, typer.Option("--smtp", help="HOST[:PORT] that takes mail (default: mail.smtp). Login and TLS: fxh.toml.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON (docs/report.schema.json).")] = False,
    against: Annotated[str, typer.Option("--baseline", help="A run to compare with, or branch:NAME (default: last results).")] = "",
    where: Reports = None,
) -> None:
    """Write a run's reports anew: page, mail, JSON, properties for JUnit and allure. Exit code: the run's own."""
    from harness import mailer
    from harness import report as reporting
    from harness.config import MailConfig, load
    from harness.report import machine
    from harness.report import mail as mailing
    from harness.results.model import FAILED, KNOWN, PASSED, read_run

    config = load({"mail.smtp": smtp, "mail.sender": sender}).config.mail if mail or send else MailConfig()
    to = to or ", ".join(config.to)
    if send and not to:
        raise UsageError("--send without --to", hint="add --to ADDRESS, or set mail.to in fxh.toml")
    path = run_directory(reports(where), run)
    try:
        result = read_run(path)
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: {exc}", hint="this run left nothing that can be read") from exc
    _remember_all(path.parent)
    # One that was killed did not record itself: what it learned counts as soon as somebody looks at it.
    if not result.ended and result.cases:
        reporting.record(path, result)
    made = reporting.build_report(path, result, baseline=_baseline(against))
    reporting.write_reports(path, made)
    if mail or send:
        message = mailing.compose(made, to=to, sender=config.sender)
        (path / "mail.eml").write_bytes(message.as_bytes())
        if send and not any(item.result.outcome in (FAILED, PASSED, KNOWN) for item in made.cases):
            typer.echo("not sent: no case was judged", err=True)
        elif send:
            mailer.send(message, config, path / "mail.eml")
            typer.echo(f"sent to {to} by {config.smtp}", err=True)
        typer.echo(mailing.body(made), nl=False)
        typer.echo(f"mail: {path / 'mail.eml'}", err=True)
    elif as_json:
        typer.echo(machine.render(made), nl=False)
    else:
        typer.echo(made.sentence)
        for item in made.news:
            typer.echo(f"  {item.verdict.kind}: {item.result.key} in {item.result.cell}: {item.verdict.reason}")
        typer.echo(f"report: {path / 'index.html'}", err=True)
    raise typer.Exit(ExitCode.OK if result.exit_code is None else result.exit_code)


def compare(
    before: Annotated[str, typer.Argument(help="The earlier run.")],
    now: Annotated[str, typer.Argument(help="The later run.")] = "latest",
    where: Reports = None,
) -> None:
    """What changed from one run to another: inputs, cases, times. Exit code 1 when something is worse."""
    from harness.verdicts import compare as comparing

    store = _history(reports(where))
    sides = [[(row.seen, row.metrics) for row in store.results(run=_name(store, reports(where), name))] for name in (before, now)]
    for side, name in zip(sides, (before, now), strict=True):
        if not side:
            raise UsageError(f"run {name} has no results to compare")
    found = comparing.compare(*sides)
    typer.echo(f"{found.before} -> {found.now}")
    for what, old, new in found.inputs:
        typer.echo(f"  {what}: {old} -> {new}")
    same = 0
    for change in found.changes:
        if change.verdict.kind in ("passed", "skipped") and change.before == change.now:
            same += 1
        else:
            typer.echo(f"{change.verdict.kind}: {change.case} in {change.cell}: {change.before or 'not run'} -> {change.now}")
        for metric, was, value in change.metrics:
            typer.echo(f"  {change.case} in {change.cell}: {metric} {was:.2f} -> {value:.2f}")
    for case, cell in found.only_before:
        typer.echo(f"no longer run: {case} in {cell}")
    typer.echo(f"{same} of {len(found.changes)} cases as before")
    raise typer.Exit(ExitCode.PRODUCT if found.worse else ExitCode.OK)


def history(
    case: Annotated[str, typer.Argument(help="A case, or a part of its name; without one, the runs are listed.")] = "",
    cell: Annotated[str, typer.Option("--cell", help="Only cells that hold this.")] = "",
    last: Annotated[int, typer.Option("--last", help="How many runs.")] = 30,
    where: Reports = None,
) -> None:
    """How a case went over the last runs, with what was changed where; or the runs themselves."""
    store = _history(reports(where))
    if not case:
        _list_runs(store, last)
        return
    for key in pick_key(store.cases(), case):
        lines: dict[str, list[Row]] = {}
        for row in store.results(case=key):
            if cell in row.seen.cell:
                lines.setdefault(row.seen.cell, []).append(row)
        for name, rows in lines.items():
            typer.echo(f"{key} in {name}:  {''.join(_LETTERS.get(row.seen.outcome, '?') for row in rows[-last:])}")
            _tell(rows[-last:])


def _tell(rows: list[Row]) -> None:
    """A line for each run in which something differs from the one before."""
    before: Row | None = None
    for row in rows:
        same = before is not None and (before.seen.outcome, before.seen.identity) == (row.seen.outcome, row.seen.identity)
        changed = before.seen.inputs.changes(row.seen.inputs) if before is not None else ()
        if not same or changed:
            words = ", ".join(f"{name} {row.seen.inputs.words(name)}" for name in changed)
            why = row.seen.identity or (row.reason.splitlines()[0] if row.reason else "")
            typer.echo("  " + "  ".join(filter(None, (row.seen.run, row.seen.outcome, words, why)))[:300])
        before = row


def _list_runs(store: History, last: int) -> None:
    counts: dict[str, dict[str, int]] = {}
    for row in store.results(last=last):
        tally = counts.setdefault(row.seen.run, {})
        tally[row.seen.outcome] = tally.get(row.seen.outcome, 0) + 1
    runs = store.runs()[-last:]
    if not runs:
        typer.echo("no run is recorded yet: `fxh run` records each at its end", err=True)
    for run in runs:
        words = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.get(run.run, {}).items()))
        typer.echo("  ".join(filter(None, (run.run, run.branch, words or "no result", run.command)))[:200])


def _history(where: Path) -> History:
    from harness.history.store import FILE, History

    _remember_all(where / "runs")
    return History(where / FILE)


def _remember_all(runs: Path) -> None:
    """Take in runs whose record was lost (a full disk, a damaged history, a run that was killed), oldest first."""
    from harness.history.store import FILE, History

    recorded = {run.run for run in History(runs.parent / FILE).runs()}
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.name in recorded or not (path / "run.json").is_file():
            continue
        from harness import report as reporting
        from harness.results.model import read_run

        try:
            result = read_run(path)
        except (OSError, ValueError, TypeError):
            continue
        # One that has not ended may be going on at this moment; it records itself.
        if result.ended:
            reporting.record(path, result)


def _name(store: History, where: Path, name: str) -> str:
    """A run's full name, from the history or the directories."""
    found = [run.run for run in store.runs() if run.run.startswith(name)]
    exact = [run for run in found if run == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    return run_directory(where, name).name


def _baseline(text: str) -> Baseline:
    from harness.verdicts.values import Branch, LastGreen, NamedRun

    if not text:
        return LastGreen()
    head, mark, branch = text.partition("branch:")
    return Branch(branch) if mark and not head else NamedRun(text)
