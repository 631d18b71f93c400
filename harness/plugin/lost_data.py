# SPDX-License-Identifier: BSD-2-Clause
"""Adds the cause to the finding of a failed case if data did not arrive over its links or from its disks."""

from __future__ import annotations

import time
from collections.abc import Iterator

from harness.deadline import Deadline
from harness.guests import disk_explainer, explained
from harness.guests.explained import Explained
from harness.guests.guest import Guest
from harness.plugin.case_context import CaseContext

# Seconds for the links and the disks of all guests of a case.
_LIMIT = 20.0


def rows(context: CaseContext, reason: str, begun: float) -> tuple[str, ...]:
    """Lines to append to the finding ``reason`` of a case that began at ``begun`` (monotonic); () if nothing explains it.

    Never raises a HarnessError, and takes 20 s at most. The complete counters go to the case's directory.
    """
    deadline = Deadline(_LIMIT)
    found = [one.explained for guest in context.prepared for one in guest.explainers if one.explained is not None]
    for guest in context.guests:
        if guest.domid >= 0:
            found += _links(guest, deadline)
            found.append(disk_explainer.explain(guest, reason, deadline, time.monotonic() - begun))
    return explained.rows(found, reason)


def _links(guest: Guest, deadline: Deadline) -> Iterator[Explained]:
    """An explanation by each explainer that saw a failed transfer, or else by the last explainer of each link."""
    known = [one.explained for one in guest.explainers if one.explained is not None]
    if known:
        yield from known
        return
    for explainer in {one.subject: one for one in guest.explainers}.values():
        yield explainer.explain(deadline)
