# SPDX-License-Identifier: BSD-2-Clause
"""fxh completion: typer's completion scripts for bash, zsh and fish, and the completions of option values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from typing import Annotated

import typer

from harness.errors import HarnessError

# def test_boots_to_login(new_guest: NewGuest) -> None:
_CASE = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
PROGRAM, VARIABLE = "fxh", "_FXH_COMPLETE"


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    app.command()(completion)


def completion(shell: Annotated[Shell, typer.Argument(help="The shell that reads the script.")]) -> None:
    """Print the shell script that completes commands, options and values of fxh.

    bash: fxh completion bash > ~/.local/share/bash-completion/completions/fxh

    zsh: fxh completion zsh > ~/.zfunc/_fxh, and in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit

    fish: fxh completion fish > ~/.config/fish/completions/fxh.fish

    The script calls fxh, which must be in PATH.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell.value)
    if shell is Shell.ZSH:
        # zsh runs an autoloaded file at the first TAB, and its compdef takes effect only at the second.
        script += f'\n[ "$funcstack[1]" != "_{PROGRAM}" ] || _{PROGRAM}_completion "$@"'
    print(script)


def prepare() -> None:
    """Enable typer's completion if a completion script called fxh."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def listed(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completion of the last word of a list with commas. If ``values`` raises an error, there are no completions."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        with suppress(HarnessError, OSError, ValueError):
            return [before + comma + value for value in values() if value.startswith(last)]
        return []

    return complete


def one_of(*values: str) -> Callable[[str], list[str]]:
    """As :func:`listed`, for constant values."""
    return listed(lambda: values)


def _suites() -> list[str]:
    from harness import paths

    return paths.suite_names()


def _guests() -> list[str]:
    from harness.guests import registry

    return list(registry.GUESTS)


def _xens() -> tuple[str, ...]:
    from harness.lab import recipe

    return recipe.available()


def _images() -> list[str]:
    from harness.images import image

    return sorted(image.names())


def _layouts() -> list[str]:
    from harness.images import layout

    return sorted(layout.available())


def _hosts() -> list[str]:
    from harness.config import load

    hosts = load().config.hosts
    return ["lab", "local", *hosts, *sorted({f"tag:{tag}" for host in hosts.values() for tag in host.tags})]


def pauses(incomplete: str) -> list[str]:
    """The cases of the project's suites; after a colon the places at which they stop."""
    from harness import paths
    from harness.config.runoptions import PAUSES

    name, colon, place = incomplete.rpartition(":")
    if colon:
        return [f"{name}:{one}" for one in PAUSES if one.startswith(place)]
    found: set[str] = set()
    for path in (paths.project() / "suites").glob("*/test_*.py"):
        with suppress(OSError, ValueError):
            found |= set(_CASE.findall(path.read_text()))
    return sorted(case for case in found if case.startswith(incomplete))


suites, guests, xens, images, layouts, hosts = map(listed, (_suites, _guests, _xens, _images, _layouts, _hosts))
