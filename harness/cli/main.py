# SPDX-License-Identifier: BSD-2-Clause
"""The command ``fxh``. Commands import heavy modules themselves, to keep --help fast."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import typer

from harness import __version__
from harness.cli import completion
from harness.errors import ExitCode, HarnessError, InfrastructureError, UsageError
from harness.safetext import plain
from harness.trace import OUTPUT

# The commands of each module, in the order of the help.
COMMANDS = {
    "run": ("run",),
    "matrix": ("list", "check"),
    "guest": ("boot", "console"),
    "setup": ("setup",),
    "report": ("report", "compare", "history"),
    "investigate": ("blame", "bisect", "repro"),
    "hosts": ("hosts", "doctor", "clean"),
    "equipment": ("power", "prepare"),
    "merge": ("merge",),
    "nightly": ("nightly",),
    "manual": ("man",),
    "completion": ("completion",),
    "lab": ("lab",),
    "image": ("image",),
    "store": ("store",),
    "config": ("config",),
    "tested": ("matrix",),
}
# They read the commands of all modules.
_WHOLE = ("man", "completion")
# The modules of commands that may run for hours.
_LONG = {"run", "nightly", "investigate", "guest", "lab"}


def make_app(modules: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command ``fxh`` with the commands of these modules of harness.cli."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # Rich takes half of the run time of `fxh --help`.
        pretty_exceptions_enable=False,
        help="Boot FreeBSD under Xen, read its console, and report regressions.",
    )
    app.callback()(_options)
    for module in modules:
        importlib.import_module(f"harness.cli.{module}").register(app)
    return app


def _needed(words: Sequence[str]) -> list[str]:
    """The modules that fxh needs for these arguments: one, if they name a command. To import and describe all takes 50 ms."""
    before = list(itertools.takewhile(lambda word: word.startswith("-"), words))
    command = next(iter(words[len(before) :]), "")
    if completion.VARIABLE in os.environ or command in _WHOLE or "--help" in before:
        return list(COMMANDS)
    return [module for module, commands in COMMANDS.items() if command in commands] or list(COMMANDS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxh {__version__}")
        raise typer.Exit


def _options(
    verbose: Annotated[
        int,
        typer.Option(
            "-v", "--verbose", count=True, show_default=False, help="Log each action on a host or guest; twice: with its output."
        ),
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S"
    )
    if verbose > 1:
        logging.getLogger("fxh.trace").setLevel(OUTPUT)
    for noisy in ("asyncio", "filelock", "paramiko"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


# A full disk is no bug, wherever it was noticed.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def complain(error: HarnessError) -> int:
    """Print an error with its hint. Returns its exit code."""
    print(plain(f"fxh: {error.message}"), file=sys.stderr)
    if error.hint:
        print(plain(f"     hint: {error.hint}"), file=sys.stderr)
    return error.exit_code


# Seconds after a signal in which another one is the same request.
_REPEATED = 5.0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first SIGTERM (from CI) or SIGHUP (from a closed terminal) into a KeyboardInterrupt.

    By default these signals end Python at once, and the guests, labs and compilers of the command continue to run. One request can
    come more than once: `timeout make run` signals make, which signals its children, and then the whole process group. So a signal
    ends Python only ``_REPEATED`` seconds after the first.
    """
    first: float | None = None

    def interrupt(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            raise KeyboardInterrupt
        if now - first > _REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # An ignored signal stays ignored, such as SIGHUP under nohup.
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        # An interrupted command still ends: a repeated signal must not end Python before that.
        if first is None:
            for number in ours:
                signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Run fxh and exit with a code of harness.errors.ExitCode, also after an exception."""
    completion.prepare()
    needed = _needed(sys.argv[1:])
    if not _LONG & set(needed):
        # A command imports up to 500 modules, whose objects stay. To look through them for garbage took a sixth of a short command.
        gc.set_threshold(20_000, 50, 100)
    try:
        with _interruptible():
            code = make_app(needed)(standalone_mode=False)
    except HarnessError as exc:
        code = complain(exc)
    except (KeyboardInterrupt, typer.Abort):
        print("fxh: interrupted", file=sys.stderr)
        code = ExitCode.INTERRUPTED
    except typer.Exit as exc:
        code = exc.exit_code
    except Exception as exc:
        if hasattr(exc, "format_message"):  # an error of click: an invalid option or argument
            print(f"fxh: {exc.format_message()}", file=sys.stderr)
            code = ExitCode.USAGE
        elif isinstance(exc, OSError) and exc.errno in _FULL:
            what = f"{exc.filename}: {exc.strerror}" if exc.filename else f"cannot write: {exc.strerror}"
            code = complain(InfrastructureError(what, hint="free some space on this machine"))
        elif isinstance(exc, OSError) and exc.errno == errno.ENAMETOOLONG:
            code = complain(UsageError(f"{exc.filename or 'a path'}: {exc.strerror}", hint="give a shorter path"))
        else:
            traceback.print_exc()
            print("fxh: this is a bug in the harness; please report it with the lines above", file=sys.stderr)
            code = ExitCode.HARNESS
    sys.stdout.flush()
    gc.freeze()  # Python looks for garbage again when it ends.
    raise SystemExit(code if isinstance(code, int) else ExitCode.OK)
