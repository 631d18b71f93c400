# SPDX-License-Identifier: BSD-2-Clause
"""Pages that a guest gives back must be zeroed, because Xen passes them on unchanged, to another domain or to the guest."""

from __future__ import annotations

import json
import secrets

import pytest

from harness.deadline import Deadline
from harness.dom0 import scan_pages
from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample
from harness.oracles.finding import finding, precondition
from harness.plugin.case_context import CaseContext
from harness.xen import dom0_program

# The share of its memory that the guest gives back.
GIVEN = 0.3


def count_secret_pages(guest: Guest, secret: str, holes: str) -> dict[str, int]:
    """Scan the guest's pages from dom0 and count those that hold ``secret``.

    The first call scans all pages and records the missing ones in the file ``holes`` in dom0. The second call scans only those.
    """
    words = [str(guest.domid), "0", str(guest.config.memory * MIB // scan_pages.PAGE), holes, secret]
    found: dict[str, int] = json.loads(dom0_program.run(guest.host.transport, scan_pages, *words, deadline=Deadline(120)).text)
    return found


# The scan addresses pages by number, and that does not find the pages of a PV guest.
@pytest.mark.needs(types=("pvh", "hvm"))
def test_pages_are_given_back_empty(memory: Memory, initial: Sample, case: CaseContext) -> None:
    """Pages that the guest gives back do not contain data of its processes.

    dom0 looks at the pages when the guest takes them again.

    Source: sys/dev/xen/balloon/balloon.c, decrease_reservation()
    Catches: pages that are not zeroed before they are given back (FreeBSD 9; planted)
    """
    guest = memory.guest
    secret, whole = f"fxh-{secrets.token_hex(8)}", guest.config.memory
    dirty, given = int(whole * guest.os.balloon_limits.dirty), int(whole * GIVEN)
    guest.sh(guest.os.tmpfs_command)
    fill = f"i=0; while [ $i -lt {dirty * 4} ]; do cat /tmp/secret; i=$((i+1)); done > /mnt/secret"
    guest.sh(f"yes {secret} | head -c 262144 > /tmp/secret; {fill}; rm /mnt/secret; umount /mnt", 180)
    # A file of an earlier run would make the first scan the second one.
    holes = f"{guest.host.make_directory()}/{guest.name}-{secret}.json"
    case.undo.append(lambda: guest.host.transport.run(["rm", "-f", holes]))

    memory.ask(whole - given)
    memory.settle(initial.current - given * MIB)
    kept = count_secret_pages(guest, secret, holes)
    memory.ask(whole)
    memory.settle(initial.current)
    retaken = count_secret_pages(guest, secret, holes)

    case.metrics |= {"given back": float(kept["holes"]), "taken again": float(retaken["pages"]), "kept": float(kept["found"])}
    precondition(kept["found"], "the secret is not in the guest's memory")
    assert retaken["pages"] > given * MIB // scan_pages.PAGE * 0.9, (
        f"the guest gave {given} MiB back and took only {retaken['pages']} pages again, too few to judge"
    )
    assert retaken["found"] == 0, finding(
        test=f"xl mem-set {whole - given} after a process wrote a secret into {dirty} MiB, then xl mem-set {whole}",
        observed=f"the secret is in {retaken['found']} of the {retaken['pages']} pages that went to Xen and came back",
        expected="the guest zeroes each page before it gives it back, because Xen does not",
        reference=guest.os.source("balloon pages"),
    )
