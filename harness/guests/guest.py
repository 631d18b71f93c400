# SPDX-License-Identifier: BSD-2-Clause
"""A guest: one domain, its console always read, and a shell on it."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import trace
from harness.console.deaths import Death
from harness.console.reader import ConsoleReader
from harness.console.session import SERIAL_PORT, TTY, Output, Session
from harness.console.stages import FIRST_LINE, StageReached
from harness.console.text import excerpt
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import CommandFailed, DeadlineExpired, GuestDied, InfrastructureError
from harness.guests.os.base import GuestOS
from harness.hosts.host import XenHost
from harness.xen import elfsymbols
from harness.xen.config import DomainConfig
from harness.xen.listing import DomainState, ShutdownEvent, parse_log, parse_refusal
from harness.xen.toolstack import Console
from harness.xen.xenstore import DOMAINS

log = logging.getLogger("fxh.guests")

_BOOT = 300.0
_COMMAND = 60.0
_LOGIN = 60.0
# A BIOS and its boot blocks print on the screen: the loader's is the first line.
_FIRMWARE = 240.0
_DESTROY = 120.0
# Looks, half a second apart, at which a domain has to be gone whose toolstack restarts it: xl sleeps two seconds before it
# builds a domain anew (tools/xl/xl_vmcontrol.c), and until then none is listed.
_BETWEEN_LIVES = 7
# So many seconds for a toolstack to build a domain anew. One that is destroyed meanwhile is gone, but its builder goes on to
# write its memory and its CPUs to xenstore, and nobody removes them (measured: /libxl/N, /local/domain/N stay).
_BUILDING = 30.0
# So many seconds without any domain of its name, and the toolstack builds none any more: xl sleeps two, and the new one is
# there before its bootloader runs.
_GIVEN_UP = 45.0
# Seconds between two looks at a domain that is awaited when the toolstack tells nothing before: each is a process in dom0, which
# is busy with that domain. And at one that shuts down, of which its console tells, too.
_UNTOLD = 8.0
_LOOKS = 1.0
# A halted kernel that has not told Xen by then will not tell it any more.
_AFTER_HALT = 8.0


class GuestDeadline(Deadline):
    """For what a guest has to do: it hangs when this has passed, and that is the guest's death (GuestDied)."""

    def __init__(self, guest: Guest, seconds: float) -> None:
        super().__init__(seconds)
        self._guest = guest

    def expire(self, what: str, reason: str = "") -> GuestDied:
        return self._guest.hang(self.describe(what, reason))


class Guest:
    """A domain of ours on ``host``. :meth:`create` or :meth:`adopt` first; whoever made it destroys it.

    Waits raise GuestDied at once when the guest dies, whatever they wait for.
    """

    def __init__(
        self,
        host: XenHost,
        profile: GuestOS,
        config: DomainConfig,
        directory: Path,
        *,
        scale: float = 1.0,
        kernel: Path | None = None,
    ) -> None:
        """``directory`` keeps the console's log and the configuration; ``scale`` stretches the stages' budgets.

        ``kernel`` is the file of the kernel that it boots, on this machine: it names what a backtrace does not.
        """
        self.host, self.profile, self.config = host, profile, config
        self.disks = config.disks
        """What it was configured with at first: its host gets them back, whatever it was reconfigured to."""
        self.directory, self.scale, self.kernel = directory, scale, kernel
        self.name = config.name
        self.domid = -1
        self._console: ConsoleReader | None = None
        self._client: Console | None = None
        self._session: Session | None = None
        self.created = self.unpaused = 0.0
        self.prepared: Any = None
        """What the preparation that it comes from has left for its cases (``booted(prepare=...)``)."""

    # -- life ---------------------------------------------------------------------------------------------------------

    def create(self, deadline: Deadline | None = None) -> Guest:
        """Build the domain paused and attach its console before the first byte.

        Raises GuestDied where Xen or its bootloader refuses what it is given: nothing that the host lacks.
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
        self.console.watch(False)
        return self

    def _refused(self, said: str) -> str:
        """Why the toolstack, which said so much, built no domain of it; "" where that is not the guest's fault."""
        found = parse_refusal(said)
        if found is None or not found.log:
            return found.why if found else ""
        last = excerpt(self.host.transport.run(["tail", "-c", "4096", found.log], check=False).text.rstrip(), 1)
        return f"{found.why}: {last}" if last else found.why

    def start(self) -> Guest:
        """Let it run."""
        self.console.watch(True)
        self.unpaused = time.monotonic()
        self.host.toolstack.unpause(self.domid)
        return self

    def boot(self, deadline: Deadline | None = None) -> Guest:
        """Create, start, wait for its login prompt, and log in."""
        deadline = deadline or Deadline(_BOOT * self.scale)
        with trace.step("boot", f"boot to a login ({self.config.type})", self.name):
            self.create(deadline)
            self.start()
            self.wait_stage("login", deadline)
            self.login(GuestDeadline(self, deadline.remaining))
        return self

    def adopt(self, domid: int) -> Guest:
        """Take over a domain that runs and has a shell of ours at its console (a restored checkpoint)."""
        self.domid = domid
        self._attach(new=False)
        self.console.watch(False)
        return self.resume()

    def resume(self, deadline: Deadline | None = None) -> Guest:
        """Take the shell that we left at its console."""
        self._session = self._shell().resume(deadline)
        return self

    def login(self, deadline: Deadline | None = None) -> Session:
        """From its login prompt to a shell of ours. Raises GuestDied where it does not answer within a minute."""
        self._session = self._shell().login(self.profile.user, self.profile.password, deadline or self.deadline(_LOGIN))
        return self._session

    def _shell(self) -> Session:
        return Session(self.console, SERIAL_PORT if self.config.serial else TTY)

    def detach(self) -> None:
        """Let go of the console; the domain lives on, and the next client can have it."""
        if self._console is not None:
            self._leave()
            self._console.close()

    def abandon(self) -> None:
        """Let go of the console of a domain that goes with its machine: nobody sees to what is left there."""
        if self._console is not None:
            self._console.close()

    def destroy(self) -> None:
        """Remove the domain, whatever state it is in."""
        self.console_will_end()
        restarts = "restart" in (self.config.on_poweroff, self.config.on_reboot, self.config.on_crash)
        gone, building = 0, Deadline(_BUILDING)

        def look() -> None:
            nonlocal gone
            row = self.state()
            if row is not None:
                gone = 0
                if restarts and row.paused and not row.shutdown and self.domid not in (-1, row.domid) and not building.expired:
                    raise ConditionNotMet(f"domain {row.domid} is being built")
                with contextlib.suppress(CommandFailed):  # it may have gone by itself meanwhile
                    self.host.toolstack.destroy(row.domid)
                raise ConditionNotMet(f"domain {row.domid} is {row.state}")
            gone += 1
            if restarts and gone < _BETWEEN_LIVES:
                raise ConditionNotMet("it may be between two lives")

        Deadline(_DESTROY).wait(f"{self.name} to be gone", look, 0.5 if restarts else 0.0)
        self.detach()

    # -- what cases use -----------------------------------------------------------------------------------------------

    @property
    def console(self) -> ConsoleReader:
        if self._console is None:
            raise InfrastructureError(f"{self.name} has no console yet")
        return self._console

    @property
    def session(self) -> Session:
        if self._session is None:
            raise InfrastructureError(f"nobody is logged in at {self.name}")
        return self._session

    def run(self, command: str, seconds: float = _COMMAND, *, check: bool = True) -> Output:
        """Run a shell command line in the guest. Raises GuestCommandFailed (with ``check``), GuestDied, LoggedOut.

        A guest that does not answer within ``seconds`` hangs: that is a death, too.
        """
        try:
            return self.session.run(command, Deadline(seconds * self.scale), check=check)
        except DeadlineExpired as exc:
            raise self.hang(f"no answer to {command!r} within {seconds * self.scale:.0f} s") from exc

    def deadline(self, seconds: float) -> GuestDeadline:
        """A deadline for something that the guest has to do within so many seconds of a machine of full speed."""
        return GuestDeadline(self, seconds * self.scale)

    def hang(self, message: str) -> GuestDied:
        """The error to raise when it does not do what it has to."""
        stage, said = (self._console.stage, excerpt(self._console.tail())) if self._console else ("", "")
        return GuestDied(Death("hang", message, stage, excerpt=said))

    def sh(self, command: str, seconds: float = _COMMAND) -> str:
        """The output of a command that must succeed."""
        return self.run(command, seconds).text

    def wait_stage(self, name: str, deadline: Deadline | None = None) -> StageReached:
        with trace.step("wait", f"boot stage {name}", self.name) as step:
            reached = self.console.wait_stage(name, deadline or Deadline(_BOOT * self.scale))
            step.last = reached.name
        return reached

    def state(self) -> DomainState | None:
        """Its row in ``xl list``, or None when it is gone."""
        return self.host.toolstack.find(self.name)

    def wait_shutdown(self, seconds: float) -> DomainState:
        """Wait until Xen says that it is shut down (it has to be preserved then).

        Raises GuestDied for one that does not go: that is a hang, too, and sure soon after its kernel has halted.
        """
        since, deadline = self.console.offset, self.deadline(seconds)
        halted = re.compile(self.profile.halted, re.MULTILINE)
        grace: list[Deadline] = []

        def look() -> DomainState:
            row = self.state()
            if row is None:
                raise ConditionNotMet("it is gone from `xl list`")
            if row.shutdown:
                return row
            if not grace and halted.search(self.console.since(since)):
                grace.append(deadline.capped(_AFTER_HALT))
            if grace and grace[0].expired:
                raise deadline.expire(f"{self.name} to be shut down", f"its kernel has halted, and xl says {row.state}")
            raise ConditionNotMet(f"xl says {row.state}")

        with self.host.xenstore.watch(*DOMAINS, seconds=deadline.remaining) as pause:
            return deadline.wait(f"{self.name} to be shut down", look, _LOOKS, pause)

    def control(self, value: str) -> None:
        """Write ``value`` to its control/shutdown, as the toolstack does to ask it to go."""
        self.host.xenstore.write(f"/local/domain/{self.domid}/control/shutdown", value)

    def shutdowns(self) -> tuple[ShutdownEvent, ...]:
        """What xl logged of its shutdowns so far."""
        return parse_log(self.host.toolstack.log(self.name))

    def panic(self, seconds: float) -> Death:
        """Make it panic on purpose and return the death. Raises GuestDied for one that goes on, too."""
        with self.console.expecting_death() as death:
            self.session.start(self.profile.panic_command())
            return death(self.deadline(seconds))

    def console_will_end(self) -> None:
        """The domain goes down on purpose: its console's end is no death."""
        if self._console is not None:
            self._console.expect_end()

    def follow_reboot(self, seconds: float) -> int:
        """After the toolstack re-created the domain: attach to the new one. Returns its domid.

        Raises GuestDied when none comes: the guest has not gone down, or its toolstack gave it up; the message says which.
        """
        deadline = self.deadline(seconds)
        given_up = deadline.capped(_GIVEN_UP * self.scale)

        def look() -> int:
            nonlocal given_up
            row = self.state()
            if row is not None:
                given_up = deadline.capped(_GIVEN_UP * self.scale)
            elif given_up.expired:
                why = self._refused(self.host.toolstack.log(self.name).rpartition("has shut down")[2])
                said = ["none of its domains is left", "the toolstack gave it up", *([why] if why else [])]
                raise deadline.expire(f"{self.name} to be re-created", ": ".join(said))
            if row is None or row.dying:
                raise ConditionNotMet("no new domain of that name yet")
            if row.domid == self.domid:
                raise ConditionNotMet(f"domain {row.domid} is still there")
            if row.paused:
                # Until then its console can be the bootloader's (libxl_bootloader.c), and ends with it.
                raise ConditionNotMet("the new domain is being built")
            return row.domid

        with self.host.toolstack.watch(self.name, seconds=deadline.remaining) as pause:
            self.domid = deadline.wait(f"{self.name} to be re-created", look, _UNTOLD, pause)
        self._session = None
        self.unpaused = time.monotonic()
        self._replace_stream(same_boot=False)
        return self.domid

    def reconfigure(self, **changes: object) -> Guest:
        """Change its configuration (fields of DomainConfig) before it is created, or between two lives."""
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]
        return self

    def attach(self, domid: int) -> None:
        """Attach to a domain that somebody else started."""
        self.domid, self.unpaused = domid, time.monotonic()
        self._attach()

    def reattach(self) -> None:
        """Let go of the console and attach again: what comes now is read by a new client."""
        self._replace_stream(same_boot=True)

    def _stream(self, *, new: bool = True) -> Console:
        self._client = self.host.toolstack.console(self.domid, serial=self.config.serial, new=new)
        return self._client

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
            tables=self.profile.console,
            name=self.name,
            scale=self.scale,
            first_line=_FIRMWARE if self.config.type == "hvm" else FIRST_LINE,
            symbols=self._symbols,
            running=not new,
        ).start()

    def _symbols(self) -> elfsymbols.Functions | None:
        try:
            return elfsymbols.functions(self.kernel.read_bytes()) if self.kernel is not None else None
        except OSError as exc:
            log.warning("%s: the kernel file cannot be read for the names in a backtrace: %s", self.name, exc)
            return None
