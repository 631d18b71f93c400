# SPDX-License-Identifier: BSD-2-Clause
"""Switch the power of a host: the interface, and its form with the commands of ``[hosts.NAME.power]``."""

from __future__ import annotations

import logging
import re
import time
from typing import Protocol

from harness.config.commands import PowerCommands
from harness.config.schema import HostConfig
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import DeadlineExpired, InfrastructureError
from harness.hosts import operator_command

log = logging.getLogger("fxh.hosts")

# Seconds for one command.
_COMMAND = 60.0
# Seconds until the status follows a command: a BMC needs a few.
_EFFECT = 30.0
# Seconds without power, if no status tells that it is off.
_DISCHARGE = 5.0
# Chassis Power is on     xen1: off     {"PowerState": "On"}
_STATUS = re.compile(r"\b(on|off)\b", re.IGNORECASE)


def word(on: bool | None, unknown: str = "unknown") -> str:
    """The state of a power switch in a word; ``unknown`` if there is no way to find out."""
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
        """Switch it off and on. It is on afterwards, whatever it was before."""
        ...

    def status(self) -> bool | None:
        """Whether it is on; None if there is no way to find out."""
        ...


class CommandPower:
    """Power by commands on this machine."""

    def __init__(self, name: str, commands: PowerCommands) -> None:
        """``name`` is the host's in fxh.toml, for errors."""
        self._name, self._commands = name, commands

    def on(self) -> None:
        self._run("on")
        self._wait_for(True, "on")

    def off(self) -> None:
        self._run("off")
        self._wait_for(False, "off")

    def cycle(self) -> None:
        # A BMC refuses to cycle a host that is off.
        if self._commands.on and self.status() is False:
            self.on()
            return
        if self._commands.cycle:
            self._run("cycle")
            self._wait_for(True, "cycle")
            return
        self.off()
        if not self._commands.status:
            time.sleep(_DISCHARGE)
        self.on()

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
            return operator_command.run(argv, self._key(action), _COMMAND, self._hint(action))
        except InfrastructureError as exc:
            raise PowerError(exc.message, hint=exc.hint) from exc

    def _wait_for(self, on: bool, action: str) -> None:
        """Wait until the status is as ``action`` makes it, if the status is known."""
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
            Deadline(_EFFECT).wait("the power", reached, 1.0)
        except DeadlineExpired:
            if unknown is None:
                raise self._error(action, f"had no effect: the power is {word(not on)} after {_EFFECT:.0f} s") from None
            # The command succeeded. Whether it had an effect, the boot will tell.
            log.warning("%s: %s", self._key(action), unknown.message)
            time.sleep(_DISCHARGE)

    def _key(self, action: str) -> str:
        return f"hosts.{self._name}.power.{action}"

    def _hint(self, action: str) -> str:
        return f"the operator of {self._name} must run this command by hand, and check its BMC or power switch (fxh power {action} {self._name})"

    def _error(self, action: str, what: str) -> PowerError:
        return PowerError(f"{self._key(action)}: {what}", hint=self._hint(action))


def of(config: HostConfig) -> Power | None:
    """The power of a host of fxh.toml; None if it has no power commands."""
    return CommandPower(config.name, config.power) if config.power is not None else None
