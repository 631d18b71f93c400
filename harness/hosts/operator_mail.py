# SPDX-License-Identifier: BSD-2-Clause
"""Mail about a host that is set aside, to its operator."""

from __future__ import annotations

import logging
import platform

from harness import mailer, paths
from harness.config import load
from harness.errors import HarnessError
from harness.hosts.record import directory
from harness.safetext import plain

log = logging.getLogger("fxh.hosts")

# Bytes of the serial console.
_TAIL = 4000


def report(name: str, why: str) -> None:
    """Mail that the host ``name`` is set aside. The mail is also kept in the host's directory of the store. Raises nothing."""
    text = [
        f"The host {name} is set aside. This says nothing about FreeBSD.",
        "",
        f"  reason: {plain(why)}",
        f"  to use it again: repair it, check it with `fxh doctor {name}`, and run `fxh hosts {name} --return`",
    ]
    try:
        tail = paths.tail(directory(name) / "serial.log", _TAIL).decode("utf-8", "replace")
        text += ["", "--- the end of its serial console", plain(tail)]
    except OSError:
        text += ["", "There is no log of its serial console: set hosts.NAME.serial."]
    config = load().config.mail
    path = directory(name) / "infrastructure.eml"
    try:
        machine = platform.node() or "localhost"
        mailer.deliver(mailer.to_operators(f"host {name} is set aside, reported by {machine}", text, config, machine), config, path)
        log.warning("%s is set aside: %s %s", name, path, "is sent" if config.send else "is written; mail.send is false")
    except (HarnessError, OSError) as exc:
        log.error("no mail about %s: %s", name, exc)
