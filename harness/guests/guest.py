# SPDX-License-Identifier: BSD-2-Clause
"""A guest: one domain, a reader of its console, and a shell on it."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from harness import trace
from harness.console.deaths import Death
from harness.console.reader import ConsoleReader
from harness.console.session import SERIAL_PORT, TTY, Output, Session
from harness.console.stages import FIRST_LINE, StageReached
from harness.console.text import excerpt
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import CommandFailed, DeadlineExpired, GuestDied, InfrastructureError
from harness.guests.explained import Explainer
from harness.guests.os.base import GuestOS
from harness.hosts.host import XenHost
from harness.images.debugfile import KernelSymbols
from harness.xen import elfsymbols
from harness.xen.config import Disk, DomainConfig, Vif
from harness.xen.listing import DomainState, ShutdownEvent, parse_log, parse_refusal
from harness.xen.toolstack import Console, ConsoleKind
from harness.xen.xenstore import DOMAINS

log = logging.getLogger("fxh.guests")

# Seconds on a machine of full speed: until the login prompt, for a command, for a login.
_BOOT = 300.0
_COMMAND = 60.0
_LOGIN = 60.0
# Seconds until an HVM guest's first line: a BIOS and its boot blocks print on the screen, so the loader prints it.
_FIRMWARE = 240.0
# Seconds until a destroyed domain is gone.
_DESTROY = 120.0
# A domain that xl restarts is gone if it is missing in this many polls, half a second apart. xl sleeps two seconds before it builds
# the next domain (tools/xl/xl_vmcontrol.c). Meanwhile `xl list` shows neither.
_ABSENT_POLLS = 7
# Seconds for xl to build the next domain. A domain must not be destroyed meanwhile: xl continues to write its memory and CPUs to
# xenstore, and these entries stay (measured: /libxl/N and /local/domain/N).
_BUILDING = 30.0
# Seconds without a domain of the guest's name until xl has given up: it sleeps two, and the next domain exists before its
# bootloader runs.
_GIVEN_UP = 45.0
# Seconds between two polls for a new domain, if no event wakes the wait. A poll is a process in dom0, which is busy with that domain.
_POLL_NEW = 8.0
# Seconds between two polls for a shutdown.
_POLL_SHUTDOWN = 1.0
# Seconds until a halted kernel has notified Xen; after that it never will.
_AFTER_HALT = 8.0
# Bytes at the end of the console that are searched for the last words of a halted kernel.
_HALTED = 1 << 16


class ConfigChanges(TypedDict, total=False):
    """Fields of :class:`harness.xen.config.DomainConfig` that :meth:`Guest.reconfigure` changes."""

    memory: int
    maxmem: int
    vcpus: int
    kernel: str
    ramdisk: str
    extra: str
    disks: tuple[Disk, ...]
    vifs: tuple[Vif, ...]
    on_poweroff: str
    on_reboot: str
    on_crash: str
    more: tuple[tuple[str, str | int | tuple[str, ...]], ...]


class GuestDeadline(Deadline):
    """A deadline for an action of the guest. If it passes, the guest hangs, which is a death (GuestDied)."""

    def __init__(self, guest: Guest, seconds: float) -> None:
        super().__init__(seconds)
        self._guest = guest

    def expire(self, what: str, reason: str = "") -> GuestDied:
        return self._guest.hang(self.describe(what, reason))


class Guest:
    """A domain on ``host``. Call :meth:`create` or :meth:`adopt` first, :meth:`destroy` last.

    Every wait raises GuestDied as soon as the guest dies.
    """

    def __init__(
        self,
        host: XenHost,
        os: GuestOS,
        config: DomainConfig,
        directory: Path,
        *,
        scale: float = 1.0,
        symbols: KernelSymbols | None = None,
    ) -> None:
        """``directory`` keeps the console log and the configuration; ``scale`` multiplies all times of the guest.

        ``symbols`` are those of its kernel: they give names and lines to the frames of a backtrace.
        """
        self.host, self.os, self.config = host, os, config
        self.disks = config.disks
        """The disks of its first configuration. The host takes them back, even after :meth:`reconfigure`."""
        self.directory, self.scale, self.symbols = directory, scale, symbols
        self.name = config.name
        self.domid = -1
        self._console: ConsoleReader | None = None
        self._client: Console | None = None
        self._session: Session | None = None
        self.created = self.unpaused = 0.0
        self.prepared: Any = None
        """The result of the preparation (``booted(prepare=...)``)."""
        self.explainers: list[Explainer] = []
        """They explain lost data after a failure."""

    # -- life ---------------------------------------------------------------------------------------------------------

    def create(self, deadline: Deadline | None = None) -> Guest:
        """Build the domain paused and attach its console before the first byte.

        Raises GuestDied if Xen or the bootloader refuses the guest's kernel, CommandFailed if the host cannot build the domain.
        """
        (self.directory / f"{self.name}.cfg").write_text(self.config.render())
        self.created = time.monotonic()
        try:
            self.domid = self.host.toolstack.create(self.config, deadline)
        except CommandFailed as exc:
            if why := self._refused(exc.stderr):
                raise GuestDied(Death("refused", why, excerpt=excerpt(exc.stderr))) from exc
            raise
        self._attach()
        self.console.enforce_budgets(False)
        return self

    def _refused(self, messages: str) -> str:
        """The toolstack's reason in ``messages`` for not building the domain; "" if the guest is not the cause."""
        found = parse_refusal(messages)
        if found is None or not found.log:
            return found.why if found else ""
        last = excerpt(self.host.transport.run(["tail", "-c", "4096", found.log], check=False).text.rstrip(), 1)
        return f"{found.why}: {last}" if last else found.why

    def start(self) -> Guest:
        """Unpause the domain."""
        self.console.enforce_budgets(True)
        self.unpaused = time.monotonic()
        self.host.toolstack.unpause(self.domid)
        return self

    def boot(self, deadline: Deadline | None = None) -> Guest:
        """Create the domain, start it, wait for the login prompt, and log in."""
        deadline = deadline or Deadline(_BOOT * self.scale)
        with trace.step("boot", f"boot to a login ({self.config.type})", self.name):
            self.create(deadline)
            self.start()
            rest = GuestDeadline(self, deadline.remaining)
            self.wait_stage("login", rest)
            self.login(rest)
        return self

    def adopt(self, domid: int) -> Guest:
        """Attach to a running domain of a restored checkpoint, which has a session's shell at its console."""
        self.domid = domid
        self._attach(new=False)
        self.console.enforce_budgets(False)
        return self.resume()

    def resume(self, deadline: Deadline | None = None) -> Guest:
        """Use the shell that an earlier session left at the console."""
        self._session = self._shell().resume(deadline)
        return self

    def login(self, deadline: Deadline | None = None) -> Session:
        """Log in at the login prompt and start a shell. Raises GuestDied if the guest does not answer within a minute."""
        self._session = self._shell().login(self.os.user, self.os.password, deadline or self.deadline(_LOGIN))
        return self._session

    def _shell(self) -> Session:
        return Session(self.console, SERIAL_PORT if self.config.serial_console else TTY)

    def detach(self) -> None:
        """Detach from the console, so that another client can attach. The domain continues to run."""
        if self._console is not None:
            self._leave()
            self._console.close()

    def abandon(self) -> None:
        """Detach from the console of a domain whose lab ends. Leaves dom0 as it is."""
        if self._console is not None:
            self._console.close()

    def destroy(self) -> None:
        """Remove the domain in any state, and detach from its console."""
        self.console_will_end()
        restarts = "restart" in (self.config.on_poweroff, self.config.on_reboot, self.config.on_crash)
        absent, building = 0, Deadline(_BUILDING)

        def poll() -> None:
            nonlocal absent
            row = self.state()
            if row is not None:
                absent = 0
                if restarts and row.paused and not row.shutdown and self.domid not in (-1, row.domid) and not building.expired:
                    raise ConditionNotMet(f"domain {row.domid} is being built")
                with contextlib.suppress(CommandFailed):  # it may be gone by now
                    self.host.toolstack.destroy(row.domid)
                raise ConditionNotMet(f"domain {row.domid} is {row.state}")
            absent += 1
            if restarts and absent < _ABSENT_POLLS:
                raise ConditionNotMet("xl may restart it")

        try:
            Deadline(_DESTROY).wait(f"{self.name} to be gone", poll, 0.5 if restarts else 0.0)
        finally:
            self.detach()

    # -- for cases ----------------------------------------------------------------------------------------------------

    @property
    def console(self) -> ConsoleReader:
        """The reader of the console. Raises InfrastructureError before :meth:`create`, :meth:`attach` or :meth:`adopt`."""
        if self._console is None:
            raise InfrastructureError(f"{self.name} has no console yet")
        return self._console

    @property
    def session(self) -> Session:
        """The shell on the console. Raises InfrastructureError before :meth:`login` or :meth:`resume`."""
        if self._session is None:
            raise InfrastructureError(f"{self.name} has no session: log in first")
        return self._session

    def run(self, command: str, seconds: float = _COMMAND, *, check: bool = True) -> Output:
        """Run a shell command line in the guest.

        Raises GuestCommandFailed (with ``check``), LoggedOut, and GuestDied, also if the guest does not answer within ``seconds``.
        """
        try:
            return self.session.run(command, Deadline(seconds * self.scale), check=check)
        except DeadlineExpired as exc:
            raise self.hang(f"no answer to {command!r} within {seconds * self.scale:.0f} s") from exc

    def deadline(self, seconds: float) -> GuestDeadline:
        """A deadline for an action of the guest that takes at most ``seconds`` on a machine of full speed."""
        return GuestDeadline(self, seconds * self.scale)

    def hang(self, message: str) -> GuestDied:
        """The error to raise when the guest misses a deadline."""
        stage, last = (self._console.stage, excerpt(self._console.tail())) if self._console else ("", "")
        return GuestDied(Death("hang", message, stage, excerpt=last))

    def sh(self, command: str, seconds: float = _COMMAND) -> str:
        """The output of a command that must succeed. Raises as :meth:`run`."""
        return self.run(command, seconds).text

    def wait_stage(self, name: str, deadline: Deadline | None = None) -> StageReached:
        """Wait for the boot to reach the stage ``name`` of the OS's :attr:`GuestOS.stages`: by default 300 s, times ``scale``.

        Raises GuestDied, also if the time passes; with a plain Deadline, DeadlineExpired.
        """
        with trace.step("wait", f"boot stage {name}", self.name) as step:
            reached = self.console.wait_stage(name, deadline or self.deadline(_BOOT))
            step.last = reached.name
        return reached

    def lent(self) -> contextlib.AbstractContextManager[str]:
        """Lend the session's shell, if it has one, to a person: see :meth:`harness.console.session.Session.lent`."""
        return self._session.lent() if self._session is not None else contextlib.nullcontext("")

    def state(self) -> DomainState | None:
        """The domain's row in ``xl list``, or None if it is gone."""
        return self.host.toolstack.find(self.name)

    def wait_shutdown(self, seconds: float) -> DomainState:
        """Wait until ``xl list`` shows the domain as shut down; its configuration must preserve it.

        Raises GuestDied if it does not shut down in ``seconds``, or within 8 s after its kernel has printed that it halted.
        """
        since, deadline = self.console.offset, self.deadline(seconds)
        halted = re.compile(self.os.halted, re.MULTILINE)
        grace: list[Deadline] = []

        def poll() -> DomainState:
            row = self.state()
            if row is None:
                raise ConditionNotMet("it is gone from `xl list`")
            if row.shutdown:
                return row
            if not grace and halted.search(self.console.since(max(since, self.console.offset - _HALTED))):
                grace.append(deadline.capped(_AFTER_HALT))
            if grace and grace[0].expired:
                raise deadline.expire(f"{self.name} to be shut down", f"its kernel has halted, and xl says {row.state}")
            raise ConditionNotMet(f"xl says {row.state}")

        with self.host.xenstore.watch(*DOMAINS, seconds=deadline.remaining) as pause:
            return deadline.wait(f"{self.name} to be shut down", poll, _POLL_SHUTDOWN, pause)

    def control(self, value: str) -> None:
        """Write ``value`` to control/shutdown, as the toolstack does to request a shutdown."""
        self.host.xenstore.write(f"/local/domain/{self.domid}/control/shutdown", value)

    def shutdowns(self) -> tuple[ShutdownEvent, ...]:
        """The domain's shutdowns in xl's log."""
        return parse_log(self.host.toolstack.log(self.name))

    def panic(self, seconds: float) -> Death:
        """Make the guest panic and return its death. Raises GuestDied if it does not panic in ``seconds``."""
        with self.console.expecting_death() as death:
            self.session.start(self.os.panic_command())
            return death(self.deadline(seconds))

    def console_will_end(self) -> None:
        """Expect the end of the console: the case ends the domain on purpose."""
        if self._console is not None:
            self._console.expect_end()

    def follow_reboot(self, seconds: float) -> int:
        """Wait until the toolstack has created the next domain, attach to it, and return its domid.

        Raises GuestDied without a new domain; the message says whether the guest did not shut down or the toolstack did not create
        it.
        """
        deadline = self.deadline(seconds)
        given_up = deadline.capped(_GIVEN_UP * self.scale)

        def poll() -> int:
            nonlocal given_up
            row = self.state()
            if row is not None:
                given_up = deadline.capped(_GIVEN_UP * self.scale)
            elif given_up.expired:
                why = self._refused(self.host.toolstack.log(self.name).rpartition("has shut down")[2])
                reasons = ["no domain of this name is left", "the toolstack did not create it again", *([why] if why else [])]
                raise deadline.expire(f"{self.name} to be re-created", ": ".join(reasons))
            if row is None or row.dying:
                raise ConditionNotMet("no new domain of that name yet")
            if row.domid == self.domid:
                raise ConditionNotMet(f"domain {row.domid} is still there")
            if row.paused:
                # Until then its console may be the bootloader's (libxl_bootloader.c), and end with it.
                raise ConditionNotMet("the new domain is being built")
            return row.domid

        with self.host.toolstack.follow_log(self.name, seconds=deadline.remaining) as pause:
            self.domid = deadline.wait(f"{self.name} to be re-created", poll, _POLL_NEW, pause)
        self._session = None
        self.unpaused = time.monotonic()
        self._replace_stream(same_boot=False)
        return self.domid

    def reconfigure(self, **changes: Unpack[ConfigChanges]) -> Guest:
        """Change its configuration before it is created, or before xl restarts it."""
        self.config = replace(self.config, **changes)
        return self

    def attach(self, domid: int) -> None:
        """Attach to a running domain that this object did not start."""
        self.domid, self.unpaused = domid, time.monotonic()
        self._attach()

    def reattach(self) -> None:
        """Detach from the console and attach a new client."""
        self._replace_stream(same_boot=True)

    def _stream(self, *, new: bool = True) -> Console:
        self._client = self.host.toolstack.console(self.domid, kind=self._console_kind, new=new)
        return self._client

    @property
    def _console_kind(self) -> ConsoleKind:
        if not self.config.serial:
            return "pv"
        return "both" if self.config.pv_console else "serial"

    def _leave(self) -> None:
        if self._client is not None:
            self.console.expect_end()
            self._client.leave()

    def _replace_stream(self, *, same_boot: bool) -> None:
        self._leave()
        self.console.replace_stream(self._stream(), same_boot=same_boot)

    def _attach(self, *, new: bool = True) -> None:
        self._console = ConsoleReader(
            self._stream(new=new),
            self.directory / f"{self.name}.console.log",
            tables=self.os.console,
            name=self.name,
            scale=self.scale,
            first_line=_FIRMWARE if self.config.type == "hvm" else FIRST_LINE,
            symbols=self._functions,
            running=not new,
        ).start()

    def _functions(self) -> elfsymbols.Functions | None:
        try:
            return self.symbols.functions if self.symbols is not None else None
        except OSError as exc:
            log.warning("%s: cannot read the kernel file for the names in a backtrace: %s", self.name, exc)
            return None
