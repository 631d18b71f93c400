# SPDX-License-Identifier: BSD-2-Clause
"""Install or boot the Xen and the dom0 under test: run the host's command, boot the host if the command did not, and examine it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError, Refused, UsageError
from harness.hosts import lease, operator_command, recovery
from harness.hosts.direct import DirectHost
from harness.hosts.host import HostFacts
from harness.hosts.power import Power
from harness.hosts.record import UNPREPARED, HostRecord, set_aside
from harness.transport import Transport

log = logging.getLogger("fxh.hosts")

# Seconds for which a recovery by another process is waited for: it may wait for a boot.
_LOCK = 1200.0
# Seconds for the command.
_COMMAND = 7200.0
# Seconds for a restart without the power switch.
_BOOT = 900.0
# The connection ends before the command does.
_REBOOT = "sync; (sleep 1; reboot) >/dev/null 2>&1 </dev/null &"


def prepare(
    config: HostConfig, power: Power | None, connect: Callable[[], Transport], stop: threading.Event | None = None
) -> HostFacts:
    """Prepare the host and return its new versions. It is set aside until this has succeeded.

    Raises InfrastructureError if a run uses the host, if the command fails, or if no usable dom0 boots afterwards; Interrupted when
    ``stop`` is set.
    """
    stop = stop or threading.Event()
    record = HostRecord(config.name)
    with record.locked(stop, _LOCK) as held:
        if not held:
            raise Interrupted("its preparation had not begun")
        if aside := set_aside(config.name, except_for=UNPREPARED):
            raise aside
        before_aside = record.aside
        _end_earlier(config, before_aside.get("mark", ""))
        mark = secrets.token_hex(8)
        # First of all: otherwise a run could lease the host after the look at its leases.
        record.set_aside(UNPREPARED, "it is being prepared", mark)
        try:
            before = _idle_boot(config, power, connect, record, stop, unused=bool(before_aside))
        except (HostInUse, UsageError, KeyboardInterrupt):
            record.restore(before_aside)
            raise
        except HarnessError as exc:
            if stop.is_set():
                record.restore(before_aside)
                raise Interrupted("its preparation was interrupted before its command") from exc
            record.set_aside(UNPREPARED, f"its preparation failed: {exc.message}")
            raise
        step = "during its command"
        try:
            operator_command.run(config.prepare, f"hosts.{config.name}.prepare", _COMMAND, _hint(config), stop=stop, mark=mark)
            step = "before its boot"
            _boot(config, power, connect, before, record, stop)
            transport = connect()
            try:
                facts = DirectHost(transport, config=config).facts
            finally:
                transport.close()
        except HarnessError as exc:
            why = f"its preparation failed: {exc.message}"
            if stop.is_set():
                why = f"its preparation was interrupted {step}: {exc.message}"
            record.set_aside(UNPREPARED, why)
            if stop.is_set():
                raise Interrupted(why, hint=f"run fxh prepare {config.name} again") from exc
            raise
        record.use_again(UNPREPARED)
        return facts


def _end_earlier(config: HostConfig, mark: str) -> None:
    """Report an earlier preparation that was killed, and end the processes of its command ``mark``: they would disturb a new one."""
    if not mark:
        return
    log.warning("%s: its last preparation was interrupted, so it may be half prepared; preparing it again", config.name)
    if pids := operator_command.end_survivors(mark):
        numbers = ", ".join(map(str, pids))
        log.warning("%s: ended the processes of the interrupted preparation: %s", config.name, numbers)


class Interrupted(InfrastructureError):
    """A preparation ended at the request of its caller."""


class HostInUse(InfrastructureError):
    """A run uses the host, so it cannot be prepared."""


def _hint(config: HostConfig) -> str:
    return f"the operator of {config.name} must run this command by hand and correct it; then run fxh prepare {config.name}"


def _idle_boot(
    config: HostConfig,
    power: Power | None,
    connect: Callable[[], Transport],
    record: HostRecord,
    stop: threading.Event,
    *,
    unused: bool,
) -> str:
    """The boot id of the host, or "" if it does not answer. ``unused``: no run leases it, because it was set aside before.

    Raises HostInUse, and AccessError if the host is up and cannot be asked about leases.
    """

    def examine(transport: Transport) -> str:
        held = [row for row in lease.survey(transport)["leases"] if row.get("state") == "held"]
        if held:
            runs = ", ".join(f"{row['run']} of {row.get('who', '?')}" for row in held)
            raise HostInUse(f"{config.name} is used by {runs}", hint="prepare it when these runs have ended; see fxh hosts")
        return recovery.read_boot_id(transport)

    if power is not None:
        recovery.finish_cycle(config, power, record)
    recovery.end_boot(config, connect, record, stop)
    try:
        return recovery.ask_repeatedly(connect, examine, stop)
    except (recovery.Hung, Refused) as exc:
        # A dom0 that was prepared before may have booted without sshd. Otherwise runs may still use their connections.
        if isinstance(exc, Refused) and not unused:
            raise
        if stop.is_set():
            raise
        log.warning("%s does not answer before its preparation: %s", config.name, exc.message)
        return ""


def _boot(
    config: HostConfig,
    power: Power | None,
    connect: Callable[[], Transport],
    before: str,
    record: HostRecord,
    stop: threading.Event,
) -> None:
    """Wait for the boot after the preparation. Boot the host if the command did not: by ``reboot``, or else by its power."""
    if stop.is_set():
        raise Interrupted("it was not restarted")
    if before:
        with contextlib.suppress(InfrastructureError):
            if recovery.boot_id(connect) == before:
                transport = connect()
                try:
                    transport.run(["sh", "-c", _REBOOT], Deadline(20))
                finally:
                    transport.close()
    elif power is not None:
        recovery.cycle(power, record)
    try:
        recovery.wait_for_boot(config, connect, before, Deadline(_BOOT), stop)
    except InfrastructureError as exc:
        if stop.is_set():
            raise
        if power is None or not before:
            raise InfrastructureError(
                f"{config.name} does not boot after its preparation: {exc.message}", hint=_hint(config)
            ) from exc
        log.warning("%s: %s; cycling its power", config.name, exc.message)
        recovery.cycle(power, record)
        recovery.wait_for_boot(config, connect, before, Deadline(_BOOT), stop)
    record.note_boot_ended()
