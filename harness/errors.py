# SPDX-License-Identifier: BSD-2-Clause
"""The error tree. The branch of an error decides the exit code of a run, and with it who must act.

A failed assertion of a case, and the errors of the guest below, are failures of the product under test. Any other error means
that the run learned nothing about the product.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.console.deaths import Death


class ExitCode(IntEnum):
    """Exit codes of ``fxh``."""

    OK = 0
    PRODUCT = 1
    USAGE = 2
    HARNESS = 3
    INFRASTRUCTURE = 4
    NOTHING_SELECTED = 5
    INTERRUPTED = 130


class HarnessError(Exception):
    """Root of the tree. An error of this class itself is a bug of the harness.

    ``hint`` is the fix as an imperative phrase, or "".
    """

    exit_code = ExitCode.HARNESS

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(HarnessError):
    """An invalid option, file or configuration."""

    exit_code = ExitCode.USAGE


class CannotRun(UsageError):
    """This host cannot run this guest in this shape. A case is skipped."""

    @property
    def reason(self) -> str:
        """The reason of the skip: what is needed, and where the case runs."""
        return f"{self.message}; elsewhere: {self.hint}" if self.hint else self.message


class InfrastructureError(HarnessError):
    """The host, network, disk or toolchain failed."""

    exit_code = ExitCode.INFRASTRUCTURE


class CannotJudge(InfrastructureError):
    """The host or the harness did not bring about the situation that a case judges. The guest is not to blame."""


class BuildError(InfrastructureError):
    """A lab or an image could not be built."""


class TransportError(InfrastructureError):
    """The connection to a host broke: ssh dropped, or a process is gone."""


class AccessError(TransportError):
    """A host could not be asked, but nothing says that it hangs: an unknown name or host key, a refused login, a jump host."""


class Refused(AccessError):
    """A host refuses the connection: its sshd does not run, or listens at another port."""


class CommandFailed(InfrastructureError):
    """A command on a host failed. The message ends with the last 2000 characters of its output."""

    def __init__(self, argv: str, status: int, stdout: str, stderr: str) -> None:
        tail = (stderr.strip() or stdout.strip())[-2000:]
        super().__init__(f"command failed with exit status {status}: {argv}" + (f"\n{tail}" if tail else ""))
        self.argv, self.status, self.stdout, self.stderr = argv, status, stdout, stderr


class GuestCommandFailed(HarnessError):
    """A command in the guest failed. That is the guest's fault."""

    exit_code = ExitCode.PRODUCT

    def __init__(self, guest: str, command: str, status: int, output: str) -> None:
        super().__init__(f"{guest}: {command!r} failed with exit status {status}" + (f"\n{output}" if output else ""))
        self.command, self.status, self.output = command, status, output


class LoggedOut(HarnessError):
    """The shell on the guest's console exited: the guest is alive and shows a login prompt."""

    exit_code = ExitCode.PRODUCT


class DeadlineExpired(InfrastructureError):
    """A deadline passed. The message names the awaited condition and the last reason why it was not met."""


class LabDead(InfrastructureError):
    """The lab is gone: QEMU exited, dom0 stopped responding, or Xen hung."""


class GuestDied(HarnessError):
    """The guest under test died of :attr:`death`. ``words`` say what else a case knows, in lines after the summary."""

    exit_code = ExitCode.PRODUCT

    def __init__(self, death: Death, words: str = "") -> None:
        super().__init__(f"{death.summary}\n{words}" if words else death.summary)
        self.death = death
