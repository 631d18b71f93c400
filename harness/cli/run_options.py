# SPDX-License-Identifier: BSD-2-Clause
"""The options of harness.config.runoptions as parameters of commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import completion
from harness.config.runoptions import OPTIONS, RunOption
from harness.errors import UsageError

Given = dict[str, Any]
"""The run options of a command line, by key of OPTIONS, without those that it does not give."""


def option(key: str, help: str = "") -> Any:
    """The typer option of OPTIONS[key], for a command that has it by itself; with its own ``help`` if it means something else."""
    defined = OPTIONS[key]
    complete = getattr(completion, defined.complete) if defined.complete else None
    if defined.values:
        complete = completion.one_of(*defined.values)
    help = help or defined.help
    return typer.Option(
        *defined.flags, help=help, show_default="default:" not in help, autocompletion=complete, callback=_checked(defined)
    )


def _checked(defined: RunOption) -> Callable[[Any], Any]:
    """The callback of typer that returns a valid value. It raises UsageError for an invalid one."""

    def check(value: Any) -> Any:
        if value is not None:
            word, hint = defined.problem(defined.read(value))
            if hint:
                raise UsageError(f"--{defined.name} {word}: invalid value", hint=hint)
        return value

    return check


def takes(*keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter ``given: Given`` of a command by the run options ``keys``, by default by all of ``fxh run``."""
    options = [OPTIONS[key] for key in keys] if keys else [one for one in OPTIONS.values() if one.flags and one.fxh]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name == "given":
                parameters += map(_parameter, options)
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given = {one.key: values.pop(one.key) for one in options}
            command(
                given={key: value for key, value in given.items() if value is not None and value is not False and value != ""},
                **values,
            )

        # typer reads both.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _parameter(option_: RunOption) -> inspect.Parameter:
    kind = Path if option_.kind is Path else option_.written
    wanted: Any = bool if kind is bool else kind | None
    return inspect.Parameter(
        option_.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[wanted, option(option_.key)],
    )
