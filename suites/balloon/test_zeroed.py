"""What is in the pages that a guest gives back: Xen hands them to the next domain as they are."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest
from harness.plugin.rig import CaseContext
from harness.xen import peek

from .test_balloon import SOURCE

# MiB of the domain that looks: a Linux kernel fits.
HELPER = 128
# MiB that are free beyond what that takes.
SPARE = 12
# How much of its memory the guest fills with the secret (the control guest has no more room), and gives back.
DIRTY, GIVEN = {"freebsd": 0.6, "linux": 0.4}, 0.3
_PEEK = "/run/fxh-peek.py"


# It takes all of the host's memory.
@pytest.mark.needs(capability=("checkpoint",))
def test_pages_are_given_back_empty(new_guest: NewGuest, booted: NewGuest, case: CaseContext) -> None:
    """E14: what a process left in memory is not in the memory of a domain that is built from pages the guest gave back."""
    guest = booted()
    memory = Memory(guest)
    first, _ = memory.settle()
    secret, whole = f"fxh-{secrets.token_hex(8)}", guest.config.memory
    dirty, given = int(whole * DIRTY[guest.profile.os]), int(whole * GIVEN)
    guest.sh("mount -t tmpfs tmpfs /mnt" if guest.profile.os == "freebsd" else "mount -t tmpfs -o size=90% tmpfs /mnt")
    fill = f"i=0; while [ $i -lt {dirty * 4} ]; do cat /tmp/secret; i=$((i+1)); done > /mnt/secret"
    guest.sh(f"yes {secret} | head -c 262144 > /tmp/secret; {fill}; rm /mnt/secret; umount /mnt", 180)
    free = guest.host.toolstack.info().free_memory
    size = max(HELPER, given)
    # All but what the next domain will need together with what the guest gives back: so it gets these pages.
    new_guest(memory=free - (size - given) - SPARE, vifs=0).reconfigure(disks=()).create()

    memory.ask(whole - given)
    after, _ = memory.settle(first.current - given * MIB)
    helper = new_guest(memory=size, vifs=0).reconfigure(disks=(), type="pvh").create()
    guest.host.transport.put(Path(peek.__file__), _PEEK)
    found = int(guest.host.transport.run(["python3", _PEEK, str(helper.domid), str(size), secret], Deadline(120)).text)

    case.metrics |= {"given back MiB": (first.current - after.current) / MIB, "free before MiB": float(free)}
    assert found == 0, finding(
        asked=f"xl mem-set {whole - given} after a process wrote a secret into {dirty} MiB, then a domain of {size} MiB",
        did=f"the secret is {found} times in the new domain's memory",
        good="gives no page back before it has zeroed it: Xen does not",
        source=SOURCE[guest.profile.os].replace("balloon_process() and set_new_target()", "decrease_reservation()"),
    )
