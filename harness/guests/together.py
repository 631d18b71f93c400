# SPDX-License-Identifier: BSD-2-Clause
"""Asks a guest several questions in one command, because each command costs a round trip over the console."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any, NoReturn

from harness.errors import GuestCommandFailed, HarnessError
from harness.guests.guest import Guest
from harness.guests.os.values import Run


class _Asked(Exception):
    """The command that a question runs."""


def _asked(command: str) -> NoReturn:
    raise _Asked(command)


def _command(question: Callable[[Run], Any]) -> str:
    try:
        question(_asked)
    except _Asked as exc:
        return str(exc)
    raise HarnessError("a question that runs no command cannot be asked together with others")


def together(guest: Guest, *questions: Callable[[Run], Any]) -> list[Any]:
    """The answers to the questions, each a method of a :class:`GuestOS` that runs one command, such as ``guest.os.disks``.

    Raises GuestCommandFailed if a command fails, and GuestDied.
    """
    commands = [_command(question) for question in questions]
    nonce = secrets.token_hex(4)
    text = guest.sh("; ".join(f"( {command} ); s=$?; echo; echo fxh-{nonce} $s" for command in commands), 120)
    answers: list[Any] = []
    at = 0
    for question, command in zip(questions, commands, strict=True):
        end = re.compile(rf"^fxh-{nonce} (\d+)$", re.MULTILINE).search(text, at)
        if end is None or end[1] != "0":
            raise GuestCommandFailed(guest.name, command, int(end[1]) if end else -1, text[at : end.start() if end else None])
        part = text[at : end.start()].rstrip("\n")
        answers.append(question(lambda _, part=part: part))  # type: ignore[misc]
        at = end.end() + 1
    return answers
