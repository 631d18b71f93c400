"""What is in the pages that a guest gives back: Xen hands them to the next domain as they are."""

from __future__ import annotations

import secrets

import pytest

from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest
from harness.plugin.rig import CaseContext

from .test_balloon import SOURCE

# All free pages but these MiB are taken first, so that what comes next is what the guest gave back.
LEFT = 24
# The guest fills three fifths of its memory with the secret, and is asked for two fifths.
DIRTY, GIVEN = 0.6, 0.4
# How many lines with the secret the memory of the domain holds; xl writes it into a pipe.
SEARCH = """
d=$(mktemp -d) && mkfifo "$d/core" && { grep -ac "$2" < "$d/core" > "$d/count" & } &&
xl dump-core "$1" "$d/core" >/dev/null 2>&1; wait; cat "$d/count"; rm -r "$d"
"""


# It takes all of the host's memory.
@pytest.mark.needs(capability=("checkpoint",))
def test_pages_are_given_back_empty(new_guest: NewGuest, booted: NewGuest, case: CaseContext) -> None:
    """E14: what a process left in memory is not in the memory of a domain that is built from pages the guest gave back."""
    guest = booted()
    memory = Memory(guest)
    first, _ = memory.settle()
    secret, whole = f"fxh-{secrets.token_hex(8)}", guest.config.memory
    mount = "mount -t tmpfs tmpfs /mnt" if guest.profile.os == "freebsd" else "mount -t tmpfs -o size=90% tmpfs /mnt"
    guest.sh(f"{mount} && yes {secret} | head -c {int(whole * DIRTY) << 20} > /mnt/secret && rm /mnt/secret && umount /mnt", 180)
    free = guest.host.toolstack.info().free_memory
    taken = new_guest(memory=free - LEFT, vifs=0).reconfigure(disks=()).create()

    given = int(whole * GIVEN)
    memory.ask(whole - given)
    after, _ = memory.settle(first.current - given * MIB)
    helper = new_guest(memory=given, vifs=0).reconfigure(disks=()).create()
    found = int(guest.host.transport.run(["sh", "-c", SEARCH, "sh", str(helper.domid), secret]).text)

    case.metrics |= {"given back MiB": (first.current - after.current) / MIB, "taken before MiB": float(free - LEFT)}
    for domain in (taken, helper):
        domain.destroy()
    assert found == 0, finding(
        asked=f"xl mem-set {whole - given} after a process wrote a secret into {int(whole * DIRTY)} MiB, then a domain of {given} MiB",
        did=f"{found} lines of the new domain's memory hold the secret",
        good="gives no page back before it has zeroed it: Xen does not",
        source=SOURCE[guest.profile.os].replace("balloon_process() and set_new_target()", "decrease_reservation()"),
    )
