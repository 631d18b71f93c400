# SPDX-License-Identifier: BSD-2-Clause
"""Finds resources that a case left in dom0: domains, loop devices, network interfaces, xenstore nodes."""

from __future__ import annotations

import logging
import time

from harness.errors import LabDead, TransportError
from harness.hosts.inventory import Item
from harness.plugin.case_context import CaseContext
from harness.plugin.worker_hosts import HeldHost

log = logging.getLogger("fxh.worker")

# Seconds between looks: some resources disappear a moment after their guest.
_PAUSES = (0.0, 0.5, 2.0)


def leaks(held: HeldHost, context: CaseContext) -> tuple[Item, ...]:
    """The resources in dom0 that are not in the host's baseline. Also reads the case's lines of the host's logs.

    On a host that can be restored, names that contain an element of ``context.own_resources`` do not count. On any other host, the leaks
    become part of the baseline, so that only one case reports them.
    """
    if held.baseline is None:
        return ()
    found: tuple[Item, ...] = ()
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            now = held.host.inventory()
            if not pause:
                context.read_logs(held.host, now)
        except (LabDead, TransportError) as exc:  # the next case that needs the host reports this
            log.warning("%s: cannot look for leaks: %s", held.host.transport.name, exc.message)
            return ()
        found = now.leaks_since(held.baseline)
        if held.host.checkpoints is not None:
            found = tuple(item for item in found if not any(part in item.name for part in context.own_resources))
        if not found:
            return ()
    if held.host.checkpoints is None:
        held.baseline = now
    return found
