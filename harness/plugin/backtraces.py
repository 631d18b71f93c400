# SPDX-License-Identifier: BSD-2-Clause
"""The backtraces of a failed case with source files and lines: of a dead guest, and of Xen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from harness import paths
from harness.console import xentrace
from harness.console.deaths import Death
from harness.console.text import decode
from harness.errors import HarnessError
from harness.guests import sourcelines
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.hosts.logs import xen_since
from harness.images.debugfile import KernelSymbols, has_lines
from harness.plugin.case_context import CaseContext
from harness.safetext import plain

log = logging.getLogger("fxh.evidence")

BACKTRACE = "backtrace.txt"
XEN_BACKTRACE = "xen-backtrace.txt"
XEN_LOG, CPUS_LOG, SERIAL_LOGS = "xl-dmesg.log", "xen-cpus.log", ("lab-serial.log", "host-serial.log")
# Bytes at the end of Xen's logs that are searched for call traces.
_SEARCHED = 1 << 20


def guest(death: Death, guests: Sequence[Guest], directory: Path) -> tuple[str, ...]:
    """Write the death's backtrace with files and lines to ``directory`` and return it; empty without debugging information."""
    symbols = next((guest.symbols for guest in reversed(guests) if guest.symbols is not None), None)
    if symbols is None or not death.frames:
        return ()
    try:
        lines = sourcelines.backtrace(death.frames, symbols)
        if lines:
            (directory / BACKTRACE).write_text("\n".join(lines) + "\n")
    except (HarnessError, OSError) as exc:
        log.warning("no source lines: %s", exc)
        return ()
    return tuple(lines)


def hypervisor(context: CaseContext) -> None:
    """Write the call traces of Xen in the gathered logs, with files and lines, to :data:`XEN_BACKTRACE`.

    Xen's log counts from the begin of the case. The serial console also has the logs of earlier cases, so it counts only for a
    panic, after which dom0 gives no log.
    """
    text = _text(context.directory / XEN_LOG)
    new = xen_since(text, context.mark) if context.mark is not None else text
    found = [trace for text in (new, _text(context.directory / CPUS_LOG)) for trace in xentrace.traces(text)]
    serial = "".join(_text(context.directory / name) for name in SERIAL_LOGS)
    found = found or [trace for trace in xentrace.traces(serial) if trace.panic]
    if not found or context.host is None:
        return
    symbols = KernelSymbols(files=(*context.symbols, *context.host.symbol_files), known=_running(context.host))
    stacks, why = [sourcelines.names(trace.frames) for trace in found], ""
    try:
        debug = symbols.debug
        if debug is None:
            why = f"no source lines: no symbols of this Xen (build-id {symbols.identity or 'unknown'}): give its xen-syms to --symbols"
        elif not has_lines(debug):
            why = f"no source lines: {debug} has no line tables"
        stacks = [
            lines or names for lines, names in zip(sourcelines.backtraces([t.frames for t in found], symbols), stacks, strict=True)
        ]
    except (HarnessError, OSError) as exc:
        why = f"no source lines: {exc}"
    rows = [row for trace, stack in zip(found, stacks, strict=True) for row in (plain(trace.title), *stack, "")]
    (context.directory / XEN_BACKTRACE).write_text("\n".join([*([plain(why), ""] if why else []), *rows]))


def _running(host: XenHost) -> str:
    """The build-id of the host's Xen. It is unknown if Xen died before the first query."""
    try:
        return host.facts.build_id
    except HarnessError:
        return ""


def _text(path: Path) -> str:
    try:
        return decode(paths.tail(path, _SEARCHED))
    except OSError:
        return ""
