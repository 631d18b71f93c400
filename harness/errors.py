# SPDX-License-Identifier: BSD-2-Clause
"""The one error tree. Each branch says who has to act, and with which exit code a run ends.

Only :class:`GuestDied` (and a failed assertion of a case) is a failure of the product under test; all
else means that nothing was learned about it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.console.deaths import Death


class ExitCode(IntEnum):
    """How ``fxh`` ends (0 is success)."""

    OK = 0
    PRODUCT = 1
    USAGE = 2
    HARNESS = 3
    INFRASTRUCTURE = 4
    NOTHING_SELECTED = 5
    INTERRUPTED = 130


class HarnessError(Exception):
    """Root of the tree; raised as such it is a bug of the harness.

    ``hint`` says what to do about it, as an imperative sentence, where we know.
    """

    exit_code = ExitCode.HARNESS

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(HarnessError):
    """The user asked for something that cannot be: an option, a file, a configuration."""

    exit_code = ExitCode.USAGE


class CannotRun(UsageError):
    """This guest cannot run in this shape on this host: a case is skipped for it."""


class InfrastructureError(HarnessError):
    """Host, network, disk or toolchain failed: nothing was learned about the guest."""

    exit_code = ExitCode.INFRASTRUCTURE


class BuildError(InfrastructureError):
    """A lab or an image could not be built."""


class TransportError(InfrastructureError):
    """The way to a host broke (ssh dropped, process gone)."""


class CommandFailed(InfrastructureError):
    """A command on a host ended with a status that was not asked for."""

    def __init__(self, argv: str, status: int, stdout: str, stderr: str) -> None:
        tail = (stderr.strip() or stdout.strip())[-2000:]
        super().__init__(f"command ended with {status}: {argv}" + (f"\n{tail}" if tail else ""))
        self.argv, self.status, self.stdout, self.stderr = argv, status, stdout, stderr


class GuestCommandFailed(HarnessError):
    """A command in the guest that had to succeed did not: the guest's own fault."""

    exit_code = ExitCode.PRODUCT

    def __init__(self, guest: str, command: str, status: int, output: str) -> None:
        super().__init__(f"in {guest}: {command!r} ended with {status}" + (f"\n{output}" if output else ""))
        self.command, self.status, self.output = command, status, output


class LoggedOut(HarnessError):
    """Our shell at the guest's console ended by itself: the guest lives, and asks for a login."""

    exit_code = ExitCode.PRODUCT


class DeadlineExpired(InfrastructureError):
    """Time ran out; the message says what was awaited and why it was not satisfied last."""


class LabDead(InfrastructureError):
    """The lab's machine is gone: QEMU ended, dom0 fell silent, or the hypervisor hung."""


class GuestDied(HarnessError):
    """The guest under test died; :attr:`death` says how."""

    exit_code = ExitCode.PRODUCT

    def __init__(self, death: Death) -> None:
        super().__init__(death.summary)
        self.death = death
