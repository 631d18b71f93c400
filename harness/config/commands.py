# SPDX-License-Identifier: BSD-2-Clause
"""The commands in ``[hosts.NAME]``: argument vectors, as a list or as a string that is split like a shell does. No shell runs them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from harness.config import addresses, checks
from harness.errors import UsageError

Reader = Callable[[Any, str], Any]
"""Reads a value. Its second argument is the source and the key, for the UsageError."""
_ACTION = "{action}"
_POWER_HINT = f'set a command with {_ACTION}, or a table with "off" and "on", or "cycle"; see docs/hosts.md'


@dataclass(frozen=True)
class PowerCommands:
    """``[hosts.NAME.power]``. An empty command is not set."""

    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    cycle: tuple[str, ...] = ()
    """If empty: ``off``, then ``on``."""
    status: tuple[str, ...] = ()
    """It prints a line with the word ``on`` or ``off``."""


def argv(value: Any, where: str) -> tuple[str, ...]:
    """The words of a command. ``where`` is the source and the key, for the UsageError."""
    words: Any = value
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as exc:
            raise UsageError(f"{where} = {value!r}: {exc}", hint="close the quote, or write a list of words") from None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words) or not words[0]:
        raise UsageError(f"{where} = {value!r}: not a command", hint='set a list of words: ["program", "argument"]')
    if hint := next(filter(None, map(checks.argument, words)), ""):
        raise UsageError(f"{where} = {value!r}: invalid value", hint=hint)
    return tuple(words)


def power(value: Any, where: str) -> PowerCommands:
    """``hosts.NAME.power``: one command with ``{action}`` (on, off, cycle, status), or a table of commands. Raises UsageError."""
    actions = [item.name for item in fields(PowerCommands)]
    if not isinstance(value, dict):
        words = argv(value, where)
        if not any(_ACTION in word for word in words):
            raise UsageError(f"{where}: no {_ACTION} in the command", hint=_POWER_HINT)
        return PowerCommands(*(tuple(word.replace(_ACTION, action) for word in words) for action in actions))
    unknown = [key for key in value if key not in actions]
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]}", hint=f"valid names: {', '.join(actions)}")
    found = PowerCommands(**{key: argv(command, f"{where}.{key}") for key, command in value.items()})
    if not (found.cycle or (found.off and found.on)):
        raise UsageError(f"{where}: no way to switch the host off and on", hint=_POWER_HINT)
    return found


def serial(value: Any, where: str) -> tuple[str, ...]:
    """``hosts.NAME.serial``: a device, ``tcp:HOST:PORT``, ``unix:PATH``, or a command. Raises UsageError."""
    words = argv(value, where)
    kind, _, place = words[0].partition(":")
    if (kind == "tcp" and (len(words) > 1 or not _has_port(place))) or (kind == "unix" and not place):
        raise UsageError(f"{where} = {value!r}: invalid value", hint="use tcp:HOST:PORT or unix:PATH")
    return words


def _has_port(place: str) -> bool:
    try:
        return addresses.server(place)[1] > 0
    except UsageError:
        return False
