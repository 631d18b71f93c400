"""What the toolstack does when a guest ends: each action, for each reason; and that no loop goes on unseen."""

from __future__ import annotations

import pytest

from harness.deadline import Deadline, NotYet
from harness.plugin.fixtures import NewGuest

SOURCE = "xen tools/xl/xl_vmcontrol.c, handle_domain_death()"
REASONS = ("poweroff", "reboot", "crash")
ACTIONS = ("destroy", "restart", "preserve", "rename-restart", "coredump-destroy")


# The action is the toolstack's doing alone, and each needs a boot: the control guest runs the whole table.
@pytest.mark.needs(os="linux", types=("pv",))
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("reason", REASONS)
def test_action(new_guest: NewGuest, reason: str, action: str) -> None:
    """F14: on_poweroff, on_reboot and on_crash do what xl.cfg(5) says, and xl's log says so."""
    # It panics by itself before anybody could log in.
    crash = (("fxh.panic", "login"),) if reason == "crash" else ()
    guest = new_guest(**{f"on_{reason}": action}, vifs=0, memory=96, variables=crash).create()
    first = guest.domid
    guest.console_will_end()
    with guest.console.expecting_death() as death:
        guest.start()
        if reason == "crash":
            death(Deadline(90 * guest.scale))
        else:
            guest.wait_stage("login")
            guest.control(reason)

        def settled() -> str:
            rows = [row for row in guest.host.toolstack.domains() if row.name.startswith(guest.name)]
            what = sorted(
                ("old" if row.domid == first else "new") + (" renamed" if row.name != guest.name else "") + (" down" if row.shutdown else "")
                for row in rows
            )  # fmt: skip
            if what != EXPECTED[action]:
                raise NotYet(
                    f"its domains are: {', '.join(what) or 'none'}; xl's log ends {guest.host.toolstack.log(guest.name)[-200:]!r}"
                )
            return ""

        Deadline(90 * guest.scale).wait(f"the domains that on_{reason}={action} leaves: {EXPECTED[action] or 'none'}", settled, 0.3)
    # A guest that panics at boot and is restarted panics again.
    events = [(event.reason, event.action) for event in guest.shutdowns()]
    assert events[:1] == [(reason, action)]
    assert len(events) == 1 or reason == "crash"
    core = guest.host.transport.run(["sh", "-c", f"cd /var/lib/xen/dump && ls *{guest.name}* 2>/dev/null; rm -f *{guest.name}*"])
    assert bool(core.text) == action.startswith("coredump")
    for row in guest.host.toolstack.domains():
        if row.name.startswith(f"{guest.name}-"):
            guest.host.toolstack.destroy(row.domid)


EXPECTED = {
    "destroy": [],
    "coredump-destroy": [],
    "preserve": ["old down"],
    "restart": ["new"],
    "rename-restart": ["new", "old renamed down"],
}
