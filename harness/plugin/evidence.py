# SPDX-License-Identifier: BSD-2-Clause
"""Gather evidence from a host and its guests after a failure."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from harness import trace
from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.guests import postmortem
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.plugin import backtraces
from harness.plugin.case_context import CaseContext
from harness.xen.events import RINGS

log = logging.getLogger("fxh.evidence")

# Seconds for all of it.
_LIMIT = 20.0
# Bytes that are kept of a log's end.
_TAIL = 4 << 20


def gather(context: CaseContext, *, silent: bool = False) -> None:
    """Write the messages of Xen, dom0, the toolstack and the guests to the case's directory. Does not raise HarnessError and OSError.

    Does nothing if :attr:`CaseContext.gathered`: later evidence would replace that of the failure.
    ``silent``: a guest hangs or ended without a message, so Xen also dumps the state of the CPUs.
    """
    if context.gathered:
        return
    with trace.step(trace.EVIDENCE, "gather evidence"):
        try:
            _gather(context, silent)
        except OSError as exc:  # a full disk must not replace the finding
            log.warning("the evidence is not complete: %s", exc)


def _gather(context: CaseContext, silent: bool) -> None:
    host = context.host
    if host is None:
        return
    sources = {
        backtraces.XEN_LOG: ["xl", "dmesg"],
        "xl-list.txt": ["xl", "list", "-v"],
        "xenstore.txt": ["xenstore-ls", "-f"],
        "dom0-dmesg.log": ["dmesg"],
        "netback.txt": ["sh", "-c", RINGS],
        "xenstore-changes.log": ["tail", "-c", str(_TAIL >> 2), host.xenstore_log],
    }
    for guest in context.guests:
        sources[f"xl-{guest.name}.log"] = ["tail", "-c", str(_TAIL), f"/var/log/xen/xl-{guest.name}.log"]
        if guest.config.type == "hvm":
            # A guest may make the device model write as much as it likes.
            sources[f"qemu-dm-{guest.name}.log"] = ["tail", "-c", str(_TAIL), f"/var/log/xen/qemu-dm-{guest.name}.log"]
    deadline, answers = Deadline(_LIMIT), False
    _mark_time(host, context.directory / "xl-dmesg.clock", deadline)
    for name, argv in sources.items():
        try:
            done = host.transport.run(argv, deadline.capped(10), check=False)
        except HarnessError as exc:
            log.warning("no %s: %s", name, exc.message)
            break
        _keep(context.directory / name, done.stdout)
    else:
        answers = True
        inspect(context.guests, context.directory)
        if silent:
            _dump_cpus(host, context.directory / backtraces.CPUS_LOG, deadline)
    for name, data in host.last_words(_TAIL, answers=answers).items():
        _keep(context.directory / name, data)
    backtraces.hypervisor(context)


def inspect(guests: Sequence[Guest], directory: Path) -> None:
    """Write each running guest's stacks and kernel messages to ``directory``, as ``vcpus-NAME.txt`` and ``messages-NAME.txt``."""
    for guest in guests:
        if guest.domid < 0:  # not created
            continue
        found = postmortem.inspect(guest.host.transport, guest.domid, guest.config.vcpus, guest.symbols)
        for name, text in found.items():
            if text.startswith(postmortem.NOT_READ):
                log.warning("%s of %s %s", name, guest.name, text.strip())
            else:
                (directory / f"{name}-{guest.name}.txt").write_text(text)


def _keep(path: Path, data: bytes) -> None:
    """Write ``data`` if there is some. A full disk only leaves a warning."""
    try:
        if data:
            path.write_bytes(data)
    except OSError as exc:
        log.warning("no %s: %s", path.name, exc)


def _mark_time(host: XenHost, path: Path, deadline: Deadline) -> None:
    """Let the hypervisor print a line with its time now (debug key t: its clocks), and write this machine's time to ``path``.

    So the lines of its log (console_timestamps=boot) can be placed on the time line of the guest's console.
    """
    try:
        done = host.transport.run(["xl", "debug-keys", "t"], deadline.capped(5), check=False)
    except HarnessError as exc:
        log.warning("no time mark in the hypervisor's log: %s", exc.message)
        return
    if done.status == 0:
        path.write_text(json.dumps({"monotonic": time.monotonic(), **_uptime(host, deadline)}))


def _dump_cpus(host: XenHost, path: Path, deadline: Deadline) -> None:
    """Let the hypervisor dump the state of each CPU (debug key d), with a call trace where it runs Xen.

    Do this last: a small log would lose its other messages.
    """
    try:
        done = host.transport.run(["sh", "-c", "xl debug-keys d && sleep 0.3 && xl dmesg"], deadline.capped(5), check=False)
    except HarnessError as exc:
        log.warning("no state of the CPUs: %s", exc.message)
        return
    before, pressed, after = done.stdout.rpartition(b"'d' pressed")
    if pressed:
        path.write_bytes(before[before.rfind(b"\n") + 1 :] + pressed + after)


def _uptime(host: XenHost, deadline: Deadline) -> dict[str, float]:
    """dom0's uptime in seconds, for the time stamps of its kernel's log."""
    try:
        words = host.transport.run(["cat", "/proc/uptime"], deadline.capped(5), check=False).text.split()
        return {"uptime": float(words[0])}
    except (HarnessError, ValueError, IndexError):
        return {}
