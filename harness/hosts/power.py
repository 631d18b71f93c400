# SPDX-License-Identifier: BSD-2-Clause
"""Switch the power of a host: the interface, and its form with the commands of ``[hosts.NAME.power]``."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from harness import stamp
from harness.config.commands import PowerCommands
from harness.config.schema import HostConfig
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, InfrastructureError
from harness.hosts import operator_command
from harness.hosts.record import directory, is_locked
from harness.safetext import plain

log = logging.getLogger("fxh.hosts")


@dataclass(frozen=True)
class Times:
    """Limits in seconds."""

    command: float = 60.0
    effect: float = 30.0
    """Until the status follows a command: a BMC needs a few seconds."""
    discharge: float = 5.0
    """Without power, if no status reports that it is off."""


TIMES = Times()
CYCLE = 300.0
"""Seconds for a whole power cycle."""
_INTENT = "off-and-on"
# Chassis Power is on     xen1: off     {"PowerState": "On"}
_STATUS = re.compile(r"\b(on|off)\b", re.IGNORECASE)


def word(on: bool | None, unknown: str = "unknown") -> str:
    """The state of a power switch in a word; ``unknown`` without a status command."""
    if on is None:
        return unknown
    return "on" if on else "off"


class PowerError(InfrastructureError):
    """A power command failed or had no effect. The message names the host, the hint who must act."""


class Power(Protocol):
    """The power of one host. Every method has a time limit and raises PowerError.

    No method asks the host itself: it may hang.
    """

    def on(self) -> None:
        """Switch it on. No-op if it is on."""
        ...

    def off(self) -> None:
        """Switch it off at once, without a shutdown. No-op if it is off."""
        ...

    def cycle(self) -> None:
        """Switch it off and on. It is on afterwards, even if it was off before or if this process is killed meanwhile."""
        ...

    def status(self) -> bool | None:
        """Whether it is on; None without a status command."""
        ...


class CommandPower:
    """Power by commands on this machine."""

    def __init__(self, name: str, commands: PowerCommands, host: str = "", times: Times | None = None) -> None:
        """``name`` is the host's name for errors, ``host`` that in fxh.toml if it differs."""
        self._name, self._commands, self._host, self._times = name, commands, host or name, times or TIMES

    def on(self) -> None:
        self._run("on")
        self._wait_for(True, "on")
        _forget(self._host)

    def off(self) -> None:
        self._switch_off()
        # The operator wants it to stay off.
        _forget(self._host)

    def _switch_off(self) -> None:
        self._run("off")
        self._wait_for(False, "off")

    def cycle(self) -> None:
        """As :meth:`Power.cycle`. A separate process (:mod:`harness.hosts.power_cycle`) does it, so it continues after the end of
        this process.

        KeyboardInterrupt waits for the end of the cycle, but a second one does not.
        """
        request = {
            "name": self._name,
            "host": self._host,
            "commands": asdict(self._commands),
            "words": {action: (self._key(action), self._hint(action)) for action in asdict(self._commands)},
            "times": asdict(self._times),
        }
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "harness.hosts.power_cycle"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    start_new_session=True, pass_fds=self._kept_open(),
                )  # fmt: skip
            except OSError as exc:
                raise PowerError(f"{self._key('cycle')}: cannot start a process: {exc.strerror}", hint=self._hint("cycle")) from exc
            try:
                out, _ = process.communicate(json.dumps(request).encode())
            except KeyboardInterrupt:
                what = "%s: completing its power cycle before the end, so that it does not stay off (process %d)"
                log.warning(what, self._name, process.pid)
                process.communicate()
                raise
            errors.seek(0)
            last = plain(errors.read().decode("utf-8", "replace")).strip().splitlines()[-1:]
        try:
            answer = json.loads(out)
        except ValueError:
            what = f"the process of the power cycle ended with status {process.returncode}: {''.join(last)}"
            raise PowerError(f"{self._key('cycle')}: {what}", hint=self._hint("on")) from None
        for line in answer["warnings"]:
            log.warning("%s", line)
        if answer["error"]:
            raise PowerError(answer["error"], hint=answer["hint"])

    def cycle_here(self) -> None:
        """As :meth:`cycle`, but in this process, and with a record of the remaining steps if it is killed."""
        # A BMC refuses to cycle a host that is off.
        if self._commands.on and self.status() is False:
            self.on()
            return
        intent = _intent(self._host)
        try:
            intent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            intent.write_text(stamp.now())
        except OSError as exc:  # a full store must not keep a host from coming back
            log.warning("%s: %s", intent, exc.strerror)
        try:
            if self._commands.cycle:
                self._run("cycle")
                self._wait_for(True, "cycle")
            else:
                self._switch_off()
                if not self._commands.status:
                    time.sleep(self._times.discharge)
                self.on()
        except PowerError:
            # Without a command `on`, all that is left is another cycle.
            if self._commands.on:
                with contextlib.suppress(PowerError):
                    self.on()
            else:
                _forget(self._host)
            raise
        _forget(self._host)

    def _kept_open(self) -> Sequence[int]:
        """File descriptors that stay open until the end of a power cycle."""
        return ()

    def status(self) -> bool | None:
        if not self._commands.status:
            return None
        found = _STATUS.findall(self._run("status"))
        if not found:
            raise self._error("status", "prints neither on nor off")
        return str(found[-1]).lower() == "on"

    def _run(self, action: str) -> str:
        argv: tuple[str, ...] = getattr(self._commands, action)
        if not argv:
            raise PowerError(f"{self._key(action)} is not set", hint="set it in fxh.toml (docs/hosts.md)")
        try:
            return operator_command.run(argv, self._key(action), self._times.command, self._hint(action))
        except InfrastructureError as exc:
            raise PowerError(exc.message, hint=exc.hint) from exc

    def _wait_for(self, on: bool, action: str) -> None:
        """Wait until the status matches ``action``, if there is a status command."""
        unknown: PowerError | None = None

        def reached() -> None:
            nonlocal unknown
            try:
                found = self.status()
            except PowerError as exc:  # a BMC may be busy, or restart
                unknown = exc
                raise ConditionNotMet(exc.message) from exc
            unknown = None
            if found is (not on):
                raise ConditionNotMet(f"the status is {word(not on)}")

        try:
            Deadline(self._times.effect).wait("the power", reached, 1.0)
        except DeadlineExpired:
            if unknown is None:
                raise self._error(action, f"had no effect: the power is {word(not on)} after {self._times.effect:.0f} s") from None
            # The command succeeded. Whether it had an effect, the boot will tell.
            log.warning("%s: %s", self._key(action), unknown.message)
            time.sleep(self._times.discharge)

    def _key(self, action: str) -> str:
        return f"hosts.{self._name}.power.{action}"

    def _hint(self, action: str) -> str:
        return f"the operator of {self._name} must run this command by hand, and check its BMC or power switch (fxh power {action} {self._name})"

    def _error(self, action: str, what: str) -> PowerError:
        return PowerError(f"{self._key(action)}: {what}", hint=self._hint(action))


def _intent(host: str) -> Path:
    """Exists from before a host is switched off until it is on again. It has the time."""
    return directory(host) / _INTENT


def _forget(host: str) -> None:
    with contextlib.suppress(OSError):
        _intent(host).unlink(missing_ok=True)


def lock_of(host: str) -> Path:
    """The file that the process of a power cycle locks."""
    return directory(host) / f"{_INTENT}.lock"


def interrupted(host: str) -> str:
    """Why the host may be off although it should be on: all processes of its power cycle were killed. Else ""."""
    try:
        since = plain(_intent(host).read_text())
    except OSError:
        return ""
    return "" if is_locked(lock_of(host)) else f"its power cycle of {since} was interrupted, so it may be off"


def finish(config: HostConfig, power: Power) -> bool:
    """Switch a host on if its power cycle was interrupted. Returns whether it was. Raises PowerError."""
    why = interrupted(config.name)
    if not why:
        return False
    log.warning("%s: %s: switching it on", config.name, why)
    if config.power is not None and config.power.on:
        power.on()
    elif power.status() is False:
        power.cycle()
    _forget(config.name)
    return True


def wait_for_cycles(say: Callable[[str], object]) -> None:
    """Wait for the end of the power cycles that processes of this user began.

    Their machine or container may end with this process.
    """
    for path in sorted(directory("").glob(f"*/{_INTENT}")):
        host = path.parent.name
        if not is_locked(lock_of(host)):
            continue
        say(f"{host}: waiting for the end of its power cycle, so that it does not stay off")

        def ended(host: str = host) -> None:
            if is_locked(lock_of(host)):
                raise ConditionNotMet("it still runs")

        try:
            Deadline(CYCLE).wait(f"the power cycle of {host}", ended, 0.2)
        except DeadlineExpired as exc:
            say(exc.message)


def of(config: HostConfig) -> Power | None:
    """The power of a host of fxh.toml; None if it has no power commands."""
    return CommandPower(config.name, config.power) if config.power is not None else None
