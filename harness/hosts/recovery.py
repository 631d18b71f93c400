# SPDX-License-Identifier: BSD-2-Clause
"""Bring a hung host back: make sure that it hangs, cycle its power, wait for dom0, and let the doctor examine it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from harness.config.schema import HostConfig
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import AccessError, DeadlineExpired, HarnessError, InfrastructureError, TransportError
from harness.hosts import doctor
from harness.hosts import power as powers
from harness.hosts.lease import HEARTBEAT, SILENCE
from harness.hosts.power import Power, PowerError, word
from harness.hosts.record import HUNG, HostRecord, set_aside
from harness.transport import Transport

log = logging.getLogger("fxh.hosts")

MOST = 3
"""Power cycles within an hour. A host that hangs once more is set aside."""
# Seconds without an answer before the power of a host is cycled, as for a leased host. A shorter silence may come from the link.
_GRACE = HEARTBEAT + SILENCE
# Attempts that must fail as well: one to a loaded host may take most of that time.
_TRIES = 3
# Seconds from power on to a dom0 that answers. Firmware of servers needs minutes.
_BOOT = 900.0
# Seconds between two attempts to connect.
_PAUSE = 2.0
# Seconds for `xl info`.
_XL = 30.0
# Changes with each boot. FreeBSD has no boot_id before 15.
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.boottime"

Connect = Callable[[], Transport]
T = TypeVar("T")


class Hung(InfrastructureError):
    """A host does not answer."""


class Stuck(Hung):
    """The login to a host works, but a command does not end."""


def ask(connect: Connect, question: Callable[[Transport], T]) -> T:
    """The answer to ``question`` by a new connection. Raises Hung or Stuck, AccessError if the host cannot be asked."""
    try:
        transport = connect()
    except AccessError:
        raise
    except (TransportError, DeadlineExpired) as exc:
        raise Hung(exc.message, hint=exc.hint) from exc
    try:
        return question(transport)
    except TransportError as exc:
        raise Hung(exc.message, hint=exc.hint) from exc
    except DeadlineExpired as exc:
        raise Stuck(exc.message, hint=exc.hint) from exc
    finally:
        transport.close()


def ask_repeatedly(connect: Connect, question: Callable[[Transport], T], stop: threading.Event) -> T:
    """As :func:`ask`, but raises Hung only after 70 s and several attempts, or when ``stop`` is set.

    A host that accepts a login is alive, unless its commands hang each time.
    """
    deadline, silent, stuck = Deadline(_GRACE), 0, 0
    while True:
        try:
            return ask(connect, question)
        except Hung as exc:
            silent, stuck = (0, stuck + 1) if isinstance(exc, Stuck) else (silent + 1, stuck)
            if (deadline.expired and max(silent, stuck) >= _TRIES) or stop.wait(_PAUSE):
                raise


def boot_id(connect: Connect) -> str:
    """A word that changes with each boot of dom0. Raises as :func:`ask`."""
    return ask(connect, read_boot_id)


def read_boot_id(transport: Transport) -> str:
    """A word that changes with each boot of dom0, by a connection. Raises as Transport.run()."""
    # Also xl: dom0 may answer although the hypervisor is stuck.
    return transport.run(["sh", "-c", f"xl info >/dev/null; {_BOOT_ID}"], Deadline(_XL)).text.strip()


def wait_for_boot(config: HostConfig, connect: Connect, before: str, deadline: Deadline, stop: threading.Event) -> str:
    """Wait for a boot after ``before`` ("" if unknown) whose dom0 passes the doctor's checks. Returns its boot id.

    Raises DeadlineExpired with the last reason, also at once when ``stop`` is set.
    """

    def booted() -> str:
        try:
            found = boot_id(connect)
        except InfrastructureError as exc:
            raise ConditionNotMet(exc.message) from exc
        if found == before:
            raise ConditionNotMet("it answers, but it was not restarted")
        failed = [check for check in doctor.examine(config, connect) if check.status == doctor.FAIL]
        if failed:
            raise ConditionNotMet("fxh doctor: " + "; ".join(f"{check.name}: {check.detail}" for check in failed))
        return found

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise DeadlineExpired("the run ended meanwhile")

    return deadline.wait(f"dom0 of {config.name}", booted, _PAUSE, pause)


def end_boot(config: HostConfig, connect: Connect, record: HostRecord, stop: threading.Event) -> bool:
    """Wait for a boot that a power cycle of any process began, up to its time limit.

    Returns whether the host is up and passes the checks.
    """
    age = record.booting
    if age >= _BOOT:
        return False
    log.info("%s boots since its power was cycled %.0f s ago: waiting for it", config.name, age)
    try:
        wait_for_boot(config, connect, "", Deadline(_BOOT - age), stop)
    except DeadlineExpired:
        return False
    record.note_boot_ended()
    return True


def finish_cycle(config: HostConfig, power: Power, record: HostRecord) -> None:
    """Complete a power cycle that was interrupted when the host was off. It then boots. Raises PowerError."""
    if powers.finish(config, power):
        record.note_boot_begun()


def cycle(power: Power, record: HostRecord) -> None:
    """Cycle the power of a host and record it. After a failed command the host does not count as booting. Raises PowerError."""
    record.note_cycle()
    try:
        power.cycle()
    except PowerError:
        record.note_boot_ended()
        raise


@dataclass
class Recovery:
    """Brings one host back, in a separate thread, from :meth:`start` on."""

    config: HostConfig
    power: Power
    connect: Connect
    why: str
    """The first sign that it hangs."""
    boot: str = ""
    """The boot id of the boot that hangs; "" if unknown."""
    report: Callable[[str, str], None] = lambda name, why: None
    """Reports a host that is set aside, by its name and the reason, to its operator."""

    def __post_init__(self) -> None:
        self.error: InfrastructureError | None = None
        """Why the host is still lost, after the end."""
        self.answered = -math.inf
        """When it answered without a power cycle (monotonic s)."""
        self._record = HostRecord(self.config.name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"recover-{self.config.name}")

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def request_stop(self) -> None:
        """Let it end soon, without a further power cycle."""
        self._stop.set()

    def stop(self) -> None:
        """End it. Completes a power command that has begun, so that the host does not stay off."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._recover()
        except HarnessError as exc:
            self.error = InfrastructureError(exc.message, hint=exc.hint)
            log.error("%s", exc)
        except Exception as exc:  # a thread has no caller that would see it
            log.exception("the recovery of %s failed", self.config.name)
            self.error = InfrastructureError(f"{self.config.name}: {type(exc).__name__}: {exc}")

    def _recover(self) -> None:
        name, record = self.config.name, self._record
        with record.locked(self._stop) as held:
            if not held:
                return
            if aside := set_aside(name):
                raise aside
            finish_cycle(self.config, self.power, record)
            if end_boot(self.config, self.connect, record, self._stop):
                log.info("%s is up after an earlier power cycle", name)
                return
            if self._answers():
                log.info("%s answers again", name)
                self.answered = time.monotonic()
                return
            # Not answered or not asked: the end of a run says nothing about the host.
            if self._stop.is_set():
                return
            if record.cycles >= MOST:
                self._give_up("it hangs again")
            log.warning("%s hangs (%s): cycling its power, %d. time within an hour", name, self.why, record.cycles + 1)
            begun = time.monotonic()
            try:
                cycle(self.power, record)
                wait_for_boot(self.config, self.connect, self.boot, Deadline(_BOOT), self._stop)
                record.note_boot_ended()
            except InfrastructureError as exc:
                if self._stop.is_set():
                    return
                if record.cycles >= MOST:
                    self._give_up(exc.message)
                raise self._failed(exc) from exc
            log.warning("%s is back %.0f s after its power was cycled", name, time.monotonic() - begun)

    def _answers(self) -> bool:
        try:
            ask_repeatedly(self.connect, read_boot_id, self._stop)
        except Hung:
            return False
        return True

    def _failed(self, exc: InfrastructureError) -> InfrastructureError:
        """``exc`` with a hint that names who must act, for a host that a power cycle does not recover."""
        if exc.hint:
            return exc
        try:
            state = word(self.power.status())
        except InfrastructureError as error:
            state = f"unknown ({error.message})"
        return InfrastructureError(
            f"{self.config.name}: its power was cycled without success: {exc.message}; the power is {state}",
            hint=f"the operator of {self.config.name} must look at its console, and check that hosts.{self.config.name}.power switches this host",
        )

    def _give_up(self, last: str) -> NoReturn:
        name = self.config.name
        why = f"its power was cycled {MOST} times within an hour; last: {last} (first sign: {self.why})"
        self._record.set_aside(HUNG, why)
        self.report(name, why)
        raise set_aside(name) or InfrastructureError(why)
