# SPDX-License-Identifier: BSD-2-Clause
"""The process that cycles the power of a host. CommandPower starts it, and it outlives that process.

Between off and on, xdist may kill a worker, or a person may press Ctrl-C twice. The host must not stay off. This process reads a
request from its standard input and writes one line of JSON with the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
from typing import Any

from harness.config.commands import PowerCommands
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError
from harness.hosts import power
from harness.hosts.power import CommandPower, PowerError, Times


class _Relayed(CommandPower):
    """The power of the request. Its errors read like those of the class that made it."""

    def __init__(self, request: dict[str, Any]) -> None:
        commands = PowerCommands(**{name: tuple(argv) for name, argv in request["commands"].items()})
        super().__init__(request["name"], commands, request["host"], Times(**request["times"]))
        self._words = request["words"]

    def _key(self, action: str) -> str:
        return str(self._words[action][0])

    def _hint(self, action: str) -> str:
        return str(self._words[action][1])


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    # Not SIG_IGN, which the power commands would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    request = json.load(sys.stdin)
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    found = _Relayed(request)
    error: InfrastructureError | None = None
    try:
        _lock(request["host"])
        found.cycle_here()
    except InfrastructureError as exc:
        error = exc
    answer = {"warnings": warnings.lines, "error": error.message if error else "", "hint": error.hint if error else ""}
    with contextlib.suppress(BrokenPipeError):  # the process that started us has ended
        print(json.dumps(answer), flush=True)


def _lock(host: str) -> None:
    """Lock the power of a host until the end of this process. Raises PowerError if another cycle of it does not end."""
    path = power.lock_of(host)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:  # see CommandPower.cycle_here()
        logging.getLogger("fxh.hosts").warning("%s: %s", path, exc.strerror)
        return

    def locked() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConditionNotMet("another process cycles it") from exc

    try:
        Deadline(power.CYCLE).wait(f"the power of {host}", locked, 0.5)
    except InfrastructureError as exc:
        raise PowerError(exc.message, hint="wait until that has ended") from exc


if __name__ == "__main__":
    main()
