# SPDX-License-Identifier: BSD-2-Clause
"""What is in the pages that a guest gives back: Xen hands them on as they are, to another domain or to the guest itself."""

from __future__ import annotations

import json
import secrets

import pytest

from harness.deadline import Deadline
from harness.dom0 import scan_pages
from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.xen import dom0_program

# How much of its memory the guest gives back.
GIVEN = 0.3
_HOLES = "/run/fxh-holes.json"


def look(guest: Guest, secret: str) -> dict[str, int]:
    """At all of the guest's pages the first time, and at those that it did not have then the second time."""
    words = [str(guest.domid), "0", str(guest.config.memory * MIB // scan_pages.PAGE), _HOLES, secret]
    found: dict[str, int] = json.loads(dom0_program.run(guest.host.transport, scan_pages, *words, deadline=Deadline(120)).text)
    return found


# The pages of a PV guest are not found by their numbers.
@pytest.mark.needs(types=("pvh", "hvm"))
def test_pages_are_given_back_empty(guest: Guest, first: Sample, case: CaseContext) -> None:
    """E14: what a process left in memory is not in the pages that the guest gives back: dom0 sees them when it takes them again."""
    memory = Memory(guest)
    secret, whole = f"fxh-{secrets.token_hex(8)}", guest.config.memory
    dirty, given = int(whole * guest.profile.balloon_limits.dirty), int(whole * GIVEN)
    guest.sh(guest.profile.tmpfs_command)
    fill = f"i=0; while [ $i -lt {dirty * 4} ]; do cat /tmp/secret; i=$((i+1)); done > /mnt/secret"
    guest.sh(f"yes {secret} | head -c 262144 > /tmp/secret; {fill}; rm /mnt/secret; umount /mnt", 180)
    case.undo.append(lambda: guest.host.transport.run(["rm", "-f", _HOLES]))

    memory.ask(whole - given)
    memory.settle(first.current - given * MIB)
    without = look(guest, secret)
    memory.ask(whole)
    memory.settle(first.current)
    again = look(guest, secret)

    case.metrics |= {"given back": float(without["holes"]), "taken again": float(again["pages"]), "kept": float(without["found"])}
    assert without["found"], "the secret is nowhere in the guest's memory: this case sees nothing"
    assert again["pages"] > given * MIB // scan_pages.PAGE * 0.9, f"of {given} MiB it took {again['pages']} pages again"
    assert again["found"] == 0, finding(
        test=f"xl mem-set {whole - given} after a process wrote a secret into {dirty} MiB, then xl mem-set {whole}",
        observed=f"the secret is in {again['found']} of the {again['pages']} pages that went to Xen and came back",
        expected="gives no page back before it has zeroed it: Xen does not",
        reference=guest.profile.source("balloon pages"),
    )
