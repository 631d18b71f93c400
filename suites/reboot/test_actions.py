# SPDX-License-Identifier: BSD-2-Clause
"""What the toolstack does when a guest ends: each action, for each reason; and that no loop goes on unseen."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from harness.deadline import ConditionNotMet
from harness.oracles.finding import finding
from harness.plugin.fixtures import Booted, NewGuest
from harness.xen.xenstore import DOMAINS

SOURCE = "xen tools/xl/xl_vmcontrol.c, handle_domain_death()"
REASONS = ("poweroff", "reboot", "crash")
ACTIONS = ("destroy", "restart", "preserve", "rename-restart", "coredump-destroy")


# The action is the toolstack's doing alone: the control guest runs the whole table.
@pytest.mark.needs(os="linux", types=("pv",))
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("reason", REASONS)
def test_action(booted: Booted, reason: str, action: str) -> None:
    """F14: on_poweroff, on_reboot and on_crash do what xl.cfg(5) says, and xl's log says so."""
    # A core is written page by page, under emulation 4000 of them a second.
    guest = booted(on_poweroff=action, on_reboot=action, on_crash=action, vifs=0, memory=64)
    first = guest.domid
    guest.console_will_end()
    with guest.console.expecting_death():
        if reason == "crash":
            guest.session.start(guest.profile.panic_command())
        else:
            guest.control(reason)

        def settled() -> str:
            rows = [row for row in guest.host.toolstack.domains() if row.name.startswith(guest.name)]
            what = sorted(
                ("old" if row.domid == first else "new") + (" renamed" if row.name != guest.name else "") + (" down" if row.shutdown else "")
                for row in rows
            )  # fmt: skip
            if what != EXPECTED[action] or not guest.shutdowns():
                raise ConditionNotMet(
                    f"its domains are: {', '.join(what) or 'none'}; xl's log ends {guest.host.toolstack.log(guest.name)[-200:]!r}"
                )
            return ""

        deadline = guest.deadline(90)
        with guest.host.xenstore.watch(*DOMAINS, seconds=deadline.remaining) as pause:
            deadline.wait(f"the domains that on_{reason}={action} leaves: {EXPECTED[action] or 'none'}", settled, 2.0, pause)
    logged = [(event.reason, event.action) for event in guest.shutdowns()]
    assert logged == [(reason, action)], f"xl logged {logged}, {reason} and {action} were due"
    core = guest.host.transport.run(["sh", "-c", f"cd /var/lib/xen/dump && ls *{guest.name}* 2>/dev/null; rm -f *{guest.name}*"])
    assert bool(core.text) == action.startswith("coredump"), f"on_{reason}={action} left these cores: {core.text.split()}"
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


@pytest.mark.needs(os="linux", types=("pv",))
def test_restart_loop_is_caught(new_guest: NewGuest) -> None:
    """F13 F14: a guest that dies at boot is restarted for ever by the toolstack; it is seen, and a destroy ends it for good.

    xl has no least time between restarts, as xend had.
    """
    guest = new_guest(on_crash="restart", vifs=0, variables=(("fxh.panic", "init"),)).create()
    guest.console_will_end()
    with guest.console.expecting_death():
        guest.start()

        def looping() -> int:
            rounds = len(guest.shutdowns())
            if rounds < 3:
                raise ConditionNotMet(f"{rounds} rounds so far")
            return rounds

        guest.deadline(180).wait("three rounds of the loop", looping, 2.0)
        guest.destroy()
    # xl sleeps two seconds before it builds the domain anew.
    time.sleep(4)
    left = [row for row in guest.host.toolstack.domains() if row.domid]
    assert not left, finding(
        test="xl destroy of a domain that its toolstack restarts again and again",
        observed=f"there are domains: {left}",
        expected="leaves no domain, not even a nameless one on its way out",
        reference=f"{SOURCE}; freebsd-xen 2022-June 000113",
    )
    reasons = {event.reason for event in guest.shutdowns()}
    assert reasons == {"crash"}, f"xl logged as reasons {reasons}, each round was a crash"


@pytest.mark.needs(os="linux")
def test_edited_configuration(booted: Booted) -> None:
    """F12: an edited .cfg file is not seen by a reboot; xl config-update makes it seen."""
    guest = booted(on_reboot="restart")
    path = f"{guest.host.directory}/edited.cfg"
    edited = replace(guest.config, extra=f"{guest.config.extra} fxh.edited=1")
    seen = []
    guest.host.prepare()
    for update in (False, True):
        text = edited.render().encode()
        for file in (path, f"{guest.host.directory}/{guest.name}.cfg"):
            guest.host.transport.run(["sh", "-c", 'cat > "$1"', "sh", file], stdin=text)
        if update:
            guest.host.transport.run(["xl", "config-update", guest.name, path])
        guest.console_will_end()
        guest.control("reboot")
        guest.follow_reboot(120)
        guest.wait_stage("login")
        guest.login()
        seen.append("fxh.edited" in guest.profile.variables(guest.sh))
    assert seen == [False, True], finding(
        test="an edited .cfg and a reboot; then xl config-update and a reboot",
        observed=f"the change was {'seen' if seen[0] else 'not seen'} at first, {'seen' if seen[1] else 'not seen'} then",
        expected="uses the configuration that xl keeps, until config-update gives it another",
        reference="xen tools/xl/xl_vmcontrol.c, reload_domain_config()",
    )
