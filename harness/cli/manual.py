# SPDX-License-Identifier: BSD-2-Clause
"""fxh man: the manual page fxh(1), generated from the commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from harness import __version__
from harness.errors import ExitCode

_EXIT = {
    ExitCode.OK: "Success: all judged cases passed.",
    ExitCode.PRODUCT: "Product failure: a case failed, or a guest died.",
    ExitCode.USAGE: "Usage error: an invalid option, file or configuration.",
    ExitCode.HARNESS: "Harness error: a bug in the harness.",
    ExitCode.INFRASTRUCTURE: "Infrastructure failure: some cases have no verdict.",
    ExitCode.NOTHING_SELECTED: "No case was selected.",
    ExitCode.INTERRUPTED: "Interrupted.",
}
_ENVIRONMENT = {
    "FXH_STORE": "The directory of labs, images and checkpoints. Default: ~/.cache/freebsd-xen-harness.",
    "FXH_RUNTIME": "The directory of running labs' sockets. Its path must be short. Default: fxh-UID in the temporary directory.",
    "FXH_CONFIG": "The configuration file, instead of those below.",
    "FXH_PROJECT": "The checkout to use, with its suites, images, fxh.toml and reports/.",
    "FXH_SECTION_KEY": "A setting of the configuration file: FXH_RUN_WORKERS=2 sets workers = 2 in [run].",
    "FXH_MAIL_PASSWORD": "The password for the mail server.",
    "FXH_RUN_HISTORY": "run.history of fxh.toml: the URL of the PostgreSQL database with the history; empty for reports/history.sqlite.",
    "FXH_MIRROR": "The mirror of release sets, in the directory layout of download.freebsd.org.",
    "FXH_RELEASE": "The URL or directory of the release sets for --with-release.",
    "FXH_MAKEFS": "The makefs program for images whose world has none.",
    "FXH_CRIU": "The criu program for hot checkpoints, or off for none. Default: the system's, else Debian's package.",
    "FXH_COMMIT": "Set by `fxh bisect` for the command of --build: the commit to build.",
    "FXH_OUT": "Set by `fxh bisect` for the command of --build: the path to write the build to.",
    "FXH_FUZZ_SEED": "The seed of the pygrub fuzz test. Take it from fuzz.json of a run to repeat that run.",
}
_FILES = {
    "~/.config/freebsd-xen-harness/fxh.toml": "The user's configuration.",
    "fxh.toml": "The project's configuration: in the checkout, or in the current directory for an installed copy.",
    "reports/": "The runs and their history, in the directory of fxh.toml; --reports names another.",
    "docs/": "The documentation: in the checkout, or in harness/_data of the installed package.",
}
_EXAMPLES = {
    "fxh run boot": "Run the boot suite on the control guest in a lab.",
    "fxh run boot --disk FreeBSD-14.2-RELEASE-amd64-ufs.raw.xz": "Run the boot suite on a FreeBSD disk image.",
    "fxh image build mine --src /usr/src": "Build an image from a source tree.",
    "fxh run --image mine --guest freebsd,control -n 2": "Run all suites on this image and on the control guest, in two labs.",
    "fxh report": "Show the verdict on the latest run and the path of its page.",
    "fxh repro export CASE": "Export a failure as an archive.",
    "fxh repro mail CASE --to LIST": "Draft the mail that reports the failure.",
}


def register(app: typer.Typer) -> None:
    app.command("man")(man)


def man(context: typer.Context) -> None:
    """Show the manual page fxh(1). Without a terminal print its source: fxh man > ~/.local/share/man/man1/fxh.1"""
    root = context.find_root()
    text = page(root.command, type(context))
    viewer = shutil.which("man")
    if not sys.stdout.isatty() or viewer is None:
        print(text, end="")
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fxh.1"
        path.write_text(text)
        subprocess.run([viewer, str(path)], check=False)


def page(root: Any, context: Any) -> str:
    """The source of the page, in man(7) macros. ``root`` is the command ``fxh``, ``context`` the class of its contexts."""
    top = context(root, info_name="fxh")
    lines = [
        f'.TH FXH 1 "" "fxh {__version__}" "User Commands"',
        ".SH NAME",
        "fxh \\- integration tests for FreeBSD under Xen",
        ".SH SYNOPSIS",
        ".B fxh",
        f"{_text('[OPTIONS] COMMAND [ARGUMENTS]')}",
        ".SH DESCRIPTION",
        "fxh boots FreeBSD kernels under Xen with xl(1), reads their consoles, and reports what regressed.",
        "It needs no Xen host and no KVM: a lab is a Xen host in QEMU. See",
        ".B fxh lab",
        "and",
        ".BR \\-\\-xen\\-host .",
        ".SH OPTIONS",
        *_parameters(root, top),
        ".SH COMMANDS",
        *_commands(root, top, context),
    ]
    for title, entries in (("EXIT STATUS", _EXIT), ("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        lines += [f".SH {title}", *_tagged((str(name), text) for name, text in entries.items())]
    lines += [".SH EXAMPLES"]
    for command, what in _EXAMPLES.items():
        lines += [".PP", _text(what), ".PP", ".RS", ".EX", _text(command), ".EE", ".RE"]
    lines += [".SH SEE ALSO", ".BR xl (1),", ".BR xl.cfg (5),", ".BR qemu-system-x86_64 (1)"]
    return "\n".join(lines) + "\n"


def _commands(group: Any, above: Any, context: Any) -> Iterator[str]:
    """A section for each command; the commands of a group follow it."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        here = context(command, info_name=name, parent=above)
        usage = " ".join(word for word in command.collect_usage_pieces(here) if word != "[OPTIONS]")
        yield f'.SS "{_text(f"{here.command_path} {usage}".strip())}"'
        yield from _paragraphs(command.help or "")
        yield from _parameters(command, here)
        if hasattr(command, "commands"):
            yield from _commands(command, here, context)


def _parameters(command: Any, here: Any) -> Iterator[str]:
    records = [parameter.get_help_record(here) for parameter in command.get_params(here)]
    # The page lists --help only once, for fxh.
    shown = [record for record in records if record and (record[0] != "--help" or here.parent is None)]
    # "suites... <list[str]>" becomes "suites..."
    yield from _tagged((re.sub(r"\s+(<list\[\w+\]>)?", " ", name).strip(), text) for name, text in shown)


def _tagged(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in entries:
        yield from (".TP", f".B {_text(name)}", _text(text) or "\\&")


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        if paragraph:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """``text`` with escapes, so that roff prints it unchanged."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("`", "\\(ga")
    escaped = "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in escaped)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
