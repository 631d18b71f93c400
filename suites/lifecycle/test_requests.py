# SPDX-License-Identifier: BSD-2-Clause
"""Requests of the toolstack in control/shutdown that ask for nothing."""

from __future__ import annotations

import pytest

from harness.deadline import Deadline
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

# Writes of each value, and the allocations that a guest without a leak may have more than before.
WRITES, SLACK = 40, 6
# One script, because each command over ssh takes a tenth of a second under emulation.
SCRIPT = 'i=0; while [ $i -lt "$3" ]; do xenstore-write "$1" "$2" || exit; i=$((i+1)); done'


@pytest.mark.needs(os="freebsd")  # Linux does not list the allocations of its drivers.
@pytest.mark.parametrize("value", ["", "fxh-nothing"], ids=["empty", "unknown"])
def test_ignored_requests(guest: Guest, value: str, case: CaseContext) -> None:
    """A guest that ignores what stands in control/shutdown keeps no memory for it, and continues to run.

    The node is empty after each request that the guest took, and after each restore.

    Kind of bug: a handler returns early and forgets what it has read.

    Source: sys/dev/xen/control/control.c, xctrl_on_watch_event()
    Catches: FreeBSD 13.2 to 15.1 keep the string if it is empty (found by lifecycle/test_random_walk)
    """
    ask = guest.os
    before = ask.holdings(guest.sh)["allocations"]
    node = f"/local/domain/{guest.domid}/control/shutdown"
    guest.host.transport.run(["sh", "-c", SCRIPT, "sh", node, value, str(WRITES)], Deadline(60 * guest.scale))
    kept = ask.holdings(guest.sh)["allocations"] - before
    case.metrics["kept allocations"] = float(kept)
    assert kept <= SLACK, finding(
        test=f"{WRITES} writes of {value!r} to control/shutdown, and the allocations of the kernel's Xen drivers",
        observed=f"the kernel has {kept} more allocations",
        expected=f"at most {SLACK} more: the guest frees what it has read",
        reference="sys/dev/xen/control/control.c, xctrl_on_watch_event()",
    )
