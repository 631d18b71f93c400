# SPDX-License-Identifier: BSD-2-Clause
"""fxh report, compare and history: report a run, compare two, and show the history of a case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.run_lookup import Reports, pick_key, reports, run_directory, with_delivery
from harness.errors import ExitCode, HarnessError, UsageError

if TYPE_CHECKING:
    from harness.history.rows import Row
    from harness.history.store import History
    from harness.report.boot_consoles import ConsoleChange
    from harness.verdicts.values import Baseline

_LETTERS = {"passed": "·", "failed": "F", "skipped": "-", "infrastructure": "I", "harness": "H", "known": "k"}


def register(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(compare)
    app.command()(history)


def report(
    run: Annotated[str, typer.Argument(help="A run: its name, a prefix of it, or latest.")] = "latest",
    mail: Annotated[bool, typer.Option("--mail", help="Print the mail and the path of its file.")] = False,
    to: Annotated[str, typer.Option("--to", help="Address the mail to; several are separated by commas (default: mail.to).")] = "",
    sender: Annotated[str, typer.Option("--from", help="Send the mail from this address (default: mail.sender).")] = "",
    send: Annotated[
        bool, typer.Option("--send", help="Send the mail through --smtp. Without this option nothing is sent.")
    ] = False,
    smtp: Annotated[
        str, typer.Option("--smtp", help="Send through this server, HOST[:PORT] (default: mail.smtp). fxh.toml sets login and TLS.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON (docs/report.schema.json).")] = False,
    against: Annotated[
        str, typer.Option("--baseline", help="Compare with this run, or with branch:NAME (default: the last results).")
    ] = "",
    kcidb: Annotated[
        Path | None, typer.Option("--kcidb", help="Also write the run as KCIDB data into this file. It is never sent.")
    ] = None,
    origin: Annotated[str, typer.Option("--origin", help="The name of your CI system in the KCIDB data: a-z, 0-9 and _.")] = "",
    site: Annotated[
        Path | None,
        typer.Option("--site", help="Only write static pages of all recorded runs into this directory, or update them."),
    ] = None,
    where: Reports = None,
) -> None:
    """Rewrite the reports of a run: page, mail, JSON, results for JUnit and allure. The exit code is that of the run."""
    if site:
        if (run, mail, send, as_json, against, kcidb) != ("latest", False, False, False, "", None):
            raise UsageError("--site writes the pages of all runs", hint="write the report of one run with a second command")
        _build_site(reports(where), site)
        return
    from harness import mailer
    from harness import report as reporting
    from harness.config import MailConfig, load
    from harness.history.delivery import record
    from harness.report import kcidb as kcidb_data
    from harness.report import machine
    from harness.report import mail as mailing
    from harness.results.model import FAILED, KNOWN, PASSED, read_run

    config = load({"mail.smtp": smtp, "mail.sender": sender}).config.mail if mail or send else MailConfig()
    to = to or ", ".join(config.to)
    if send and not to:
        raise UsageError("--send without --to", hint="add --to ADDRESS, or set mail.to in fxh.toml")
    if origin and not kcidb:
        raise UsageError("--origin without --kcidb", hint="add --kcidb FILE")
    if kcidb:
        kcidb_data.check_origin(origin)
    path = run_directory(reports(where), run)
    try:
        result = read_run(path)
    except (OSError, ValueError) as exc:
        raise UsageError(f"{path}: {exc}", hint="choose a run with a complete run.json") from exc
    _deliver(reports(where))
    # A killed run did not record itself. Its verdicts count from its first report on.
    if not result.ended and result.cases:
        record(path, result)
    made = reporting.build_report(path, result, baseline=_baseline(against, reports(where)))
    reporting.write_reports(path, made)
    if kcidb:
        _write(kcidb, kcidb_data.render(made, origin))
        typer.echo(f"KCIDB data: {kcidb}", err=True)
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
    raise typer.Exit(with_delivery(path, ExitCode.OK if result.exit_code is None else result.exit_code))


def _build_site(where: Path, directory: Path) -> None:
    from harness.report.site import build

    _deliver(where)
    built = build(where, directory)
    typer.echo(f"{built.pages} pages, {len(built.written)} files written")
    typer.echo(f"site: {built.index}", err=True)


def _write(file: Path, text: str) -> None:
    """Write ``file`` atomically. Raises UsageError if that fails."""
    from harness.results import model

    try:
        model.write_text(file, text)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}", hint="choose a file in an existing directory that you can write") from exc


def compare(
    before: Annotated[str, typer.Argument(help="The earlier run.")],
    now: Annotated[str, typer.Argument(help="The later run.")] = "latest",
    consoles: Annotated[bool, typer.Option("--console", help="Also compare the boot consoles of each cell.")] = False,
    where: Reports = None,
) -> None:
    """Compare two runs: inputs, cases and times. Exit code 1 if a case is worse."""
    from harness.verdicts import compare as comparing

    store = _history(reports(where))
    sides = [
        [(row.seen, row.metrics) for row in store.results(run=_full_name(store, reports(where), name))] for name in (before, now)
    ]
    for side, name in zip(sides, (before, now), strict=True):
        if not side:
            raise UsageError(f"run {name} has no results", hint="`fxh history` lists the runs with their results")
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
    for boot in _console_changes(reports(where), found.before, found.now) if consoles else ():
        typer.echo(f"boot console of {boot.cell}:")
        for mark, lines in (("+", boot.difference.appeared), ("-", boot.difference.disappeared)):
            for line in lines:
                typer.echo(f"  {mark} {line}")
    for case, cell in found.only_before:
        typer.echo(f"no longer run: {case} in {cell}")
    typer.echo(f"{same} of {len(found.changes)} cases as before")
    raise typer.Exit(ExitCode.PRODUCT if found.worse else ExitCode.OK)


def _console_changes(where: Path, before: str, now: str) -> tuple[ConsoleChange, ...]:
    """The cells whose boot consoles differ between two runs, given by their full names."""
    from harness.report import boot_consoles
    from harness.results import model

    try:
        old, new = (model.read_run(where / "runs" / name) for name in (before, now))
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"no consoles to compare: {exc}",
            hint="compare without --console; run.keep_runs of fxh.toml sets how many runs keep their files",
        ) from exc
    return boot_consoles.between(old, new, where / "runs")


def history(
    case: Annotated[str, typer.Argument(help="The name of a case, or a part of it (default: list the runs).")] = "",
    cell: Annotated[str, typer.Option("--cell", help="Show only cells whose name contains this (default: all cells).")] = "",
    last: Annotated[int, typer.Option("--last", min=1, help="Show the last runs, this many.")] = 30,
    file: Annotated[
        Path | None, typer.Option("--import", help="Only copy the runs of this SQLite history into the database of run.history.")
    ] = None,
    where: Reports = None,
) -> None:
    """Show the outcomes of a case in the last runs, with changed inputs; without a case list the runs.

    First deliver the runs in reports/ that the history lacks, for example because its server was down."""
    if file:
        _import(file, reports(where))
        return
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
            _print_changes(rows[-last:])


def _import(file: Path, where: Path) -> None:
    from harness.history import transfer
    from harness.history.delivery import history_of

    done = transfer.import_file(file, history_of(where))
    typer.echo(f"{done.runs} runs with {done.results} results copied, {done.known} runs were there")


def _print_changes(rows: list[Row]) -> None:
    """Print one line for each run whose outcome or inputs differ from those of the run before."""
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
        typer.echo("no run is recorded: `fxh run` records each run at its end", err=True)
    for run in runs:
        words = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.get(run.run, {}).items()))
        typer.echo("  ".join(filter(None, (run.run, run.branch, words or "no result", run.command)))[:200])


def _history(where: Path) -> History:
    """The history, after it has the runs in ``where`` that it lacked. Raises the errors of History."""
    from harness.history.delivery import deliver, history_of

    history = history_of(where)
    if count := deliver(where / "runs", history):
        typer.echo(f"delivered to the history: {count} {'run' if count == 1 else 'runs'}", err=True)
    return history


def _deliver(where: Path) -> None:
    """Like :func:`_history`, but a command that reports files does so without the history, too."""
    from harness.cli.main import complain

    try:
        _history(where)
    except HarnessError as exc:
        complain(exc)


def _full_name(store: History, where: Path, name: str) -> str:
    """The full name of a run, from the history or the run directories."""
    found = [run.run for run in store.runs() if run.run.startswith(name)]
    exact = [run for run in found if run == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    return run_directory(where, name).name


def _baseline(text: str, where: Path) -> Baseline:
    """Raises UsageError for a run that neither the history nor a directory has."""
    from harness.verdicts.values import Branch, LastGreen, NamedRun

    if not text:
        return LastGreen()
    head, mark, branch = text.partition("branch:")
    return Branch(branch) if mark and not head else NamedRun(_full_name(_history(where), where, text))
