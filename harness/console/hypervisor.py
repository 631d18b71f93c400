# SPDX-License-Identifier: BSD-2-Clause
"""Finds the end of a host on its serial console: Xen's panic, or a crash of dom0."""

from __future__ import annotations

import re

from harness.console import reasons
from harness.console.evidence import LOOK
from harness.console.markers import MARKERS
from harness.console.text import XEN_STAMP, decode
from harness.safetext import plain

_STAMP = rf"(?:{XEN_STAMP} ?)?"
# A domain's console in Xen's log. Its text is a guest's, so it says nothing about the host.
# (d3) panic: xyz     (XEN) [2026-12-01 04:50:00] (d3) panic: xyz     (XEN) [000000123456789a] (d3) panic: xyz
_DOMAIN = re.compile(rf"^(?:\(XEN\) )?{_STAMP}\(d\d+\)[^\n]*\n?", re.MULTILINE)
# (XEN) [   46.123456] Hardware Dom0 crashed: rebooting machine in 5 seconds.     (xen/common/shutdown.c, hwdom_shutdown())
_DOM0 = re.compile(rf"^\(XEN\) {_STAMP}(Hardware Dom\d+ (?:crashed|halted|shutdown)[^\n]*)", re.MULTILINE)
# Domain 3 (vcpu#0) crashed on cpu#0     (a guest; domain 0 is the host's)
_GUEST = re.compile(r"Domain (?!0 )\d+ ")
# A panic of dom0's Linux makes Xen report that dom0 crashed, but the reason is Linux's.
_MARKERS = tuple(marker for marker in MARKERS if marker.kind in ("crash", "linux-panic"))


def crash(data: bytes) -> str:
    """The first report in ``data`` that Xen or dom0 crashed, in one line with its reason; "" if there is none.

    Lines of guests do not count. A crash of a guest does not count either.
    """
    raw = _DOMAIN.sub("", plain(decode(data))).encode("ascii", "replace")
    text = raw.decode()
    found = [(match.start(), match[1]) for match in _DOM0.finditer(text)]
    for marker in _MARKERS:
        found += [(match.start(), _message(match, text)) for match in marker.pattern.finditer(raw)]
    return next((message.strip() for _, message in sorted(found) if not _GUEST.match(message)), "")


def _message(match: re.Match[bytes], text: str) -> str:
    message = match[match.lastindex or 0].decode()
    if not message.startswith("Panic on CPU"):
        return message
    return ": ".join(filter(None, (message, reasons.xen_panic(text[match.end() : match.end() + LOOK]))))
