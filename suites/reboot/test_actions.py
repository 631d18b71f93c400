# SPDX-License-Identifier: BSD-2-Clause
"""The toolstack's actions when a guest ends: each action for each reason, restart loops, and edited configurations."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from harness.deadline import ConditionNotMet
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted, NewGuest
from harness.xen.xenstore import DOMAINS

SOURCE = "xen tools/xl/xl_vmcontrol.c, handle_domain_death()"
# xl's directory for core dumps.
DUMPS = "/var/lib/xen/dump"
REASONS = ("poweroff", "reboot", "crash")
ACTIONS = ("destroy", "restart", "preserve", "rename-restart", "coredump-destroy")
# The domains that each action leaves: the old or a new one, renamed, and down.
LEFT = {
    "destroy": [],
    "coredump-destroy": [],
    "preserve": ["old down"],
    "restart": ["new"],
    "rename-restart": ["new", "old renamed down"],
}


# The actions depend only on the toolstack, so only the control guest runs the table.
@pytest.mark.needs(os="linux", types=("pv",))
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("reason", REASONS)
def test_action(booted: Booted, reason: str, action: str, case: CaseContext) -> None:
    """on_poweroff, on_reboot and on_crash do what xl.cfg(5) documents, and xl logs reason and action.

    Source: xen tools/xl/xl_vmcontrol.c, handle_domain_death(); xl.cfg(5)
    """
    # A core dump is written page by page, under emulation 4000 pages a second.
    guest = booted(on_poweroff=action, on_reboot=action, on_crash=action, vifs=0, memory=64)
    first = guest.domid
    case.undo.append(lambda: remove_left(guest))
    guest.console_will_end()
    with guest.console.expecting_death():
        if reason == "crash":
            guest.session.start(guest.os.panic_command())
        else:
            guest.control(reason)

        def settled() -> str:
            rows = [row for row in guest.host.toolstack.domains() if row.name.startswith(guest.name)]
            domains = sorted(
                ("old" if row.domid == first else "new") + (" renamed" if row.name != guest.name else "") + (" down" if row.shutdown else "")
                for row in rows
            )  # fmt: skip
            if domains != LEFT[action] or not guest.shutdowns():
                log = guest.host.toolstack.log(guest.name)[-200:]
                raise ConditionNotMet(f"the domains are: {', '.join(domains) or 'none'}; xl's log ends with {log!r}")
            return ""

        deadline = guest.deadline(90)
        with guest.host.xenstore.watch(*DOMAINS, seconds=deadline.remaining) as pause:
            deadline.wait(f"the domains that on_{reason}={action} leaves: {', '.join(LEFT[action]) or 'none'}", settled, 2.0, pause)
    logged = [(event.reason, event.action) for event in guest.shutdowns()]
    core = guest.host.transport.run(["sh", "-c", f"cd {DUMPS} && ls *{guest.name}*"], check=False)
    wrong = []
    if logged != [(reason, action)]:
        wrong.append(f"xl logged {', '.join(map(str, logged)) or 'no shutdown'}")
    if bool(core.text) != action.startswith("coredump"):
        wrong.append(f"{DUMPS} has these cores: {' '.join(core.text.split()) or 'none'}")
    assert not wrong, finding(
        test=f"the end of a guest by {reason}, with on_{reason}={action}",
        observed=wrong,
        expected=f"xl logs the reason {reason} and the action {action}, "
        f"and writes {'a core' if action.startswith('coredump') else 'no core'}",
        reference=f"{SOURCE}; xl.cfg(5)",
    )


def remove_left(guest: Guest) -> None:
    """Destroy the renamed domains of a guest, and remove its core dumps."""
    for row in guest.host.toolstack.domains():
        if row.name.startswith(f"{guest.name}-"):
            guest.host.toolstack.destroy(row.domid)
    guest.host.transport.run(["sh", "-c", f"rm -f {DUMPS}/*{guest.name}*"])


@pytest.mark.needs(os="linux", types=("pv",))
def test_restart_loop_is_caught(new_guest: NewGuest) -> None:
    """A guest that panics at each boot is restarted again and again until `xl destroy`, which leaves no domain.

    xl has no minimum time between restarts, as xend had.

    Source: xen tools/xl/xl_vmcontrol.c, handle_domain_death()
    Catches: a nameless domain that remains after a destroy during a restart (freebsd-xen 2022-June 000113)
    """
    guest = new_guest(on_crash="restart", vifs=0, variables=(("fxh.panic", "init"),)).create()
    guest.console_will_end()
    with guest.console.expecting_death():
        guest.start()

        def looping() -> int:
            rounds = len(guest.shutdowns())
            if rounds < 3:
                raise ConditionNotMet(f"xl logged {rounds} restarts")
            return rounds

        guest.deadline(180).wait("three restarts", looping, 2.0)
        guest.destroy()
    # xl sleeps 2 s before it creates the domain again.
    time.sleep(4)
    # Another run may have guests on this host.
    left = [row for row in guest.host.toolstack.domains() if row.domid and (not row.name or row.name.startswith(guest.name))]
    reasons = {event.reason for event in guest.shutdowns()}
    wrong = [f"xl list shows domain {row.domid} ({row.name or 'no name'}, {row.state})" for row in left]
    if reasons != {"crash"}:
        wrong.append(f"xl logged the shutdown reasons {', '.join(sorted(reasons)) or 'none'}")
    assert not wrong, finding(
        test="xl destroy of a domain that panics at each boot and that its toolstack restarts",
        observed=wrong,
        expected="xl logs a crash for each restart, and no domain is left, also none without a name",
        reference=f"{SOURCE}; freebsd-xen 2022-June 000113",
    )


@pytest.mark.needs(os="linux")
def test_edited_configuration(booted: Booted) -> None:
    """A reboot ignores an edited .cfg file; after `xl config-update` it uses the new configuration.

    Source: xen tools/xl/xl_vmcontrol.c, reload_domain_config()
    """
    guest = booted(on_reboot="restart")
    directory = guest.host.make_directory()
    path = f"{directory}/edited.cfg"
    edited = replace(guest.config, extra=f"{guest.config.extra} fxh.edited=1")
    seen = []
    for update in (False, True):
        text = edited.render().encode()
        for file in (path, f"{directory}/{guest.name}.cfg"):
            guest.host.transport.run(["sh", "-c", 'cat > "$1"', "sh", file], stdin=text)
        if update:
            guest.host.transport.run(["xl", "config-update", guest.name, path])
        guest.console_will_end()
        guest.control("reboot")
        guest.follow_reboot(120)
        guest.wait_stage("login")
        guest.login()
        seen.append("fxh.edited" in guest.os.variables(guest.sh))
    assert seen == [False, True], finding(
        test="an edited .cfg file and a reboot; then xl config-update and a reboot",
        observed=f"the new argument {'arrived' if seen[0] else 'did not arrive'} after the first reboot, "
        f"{'arrived' if seen[1] else 'did not arrive'} after the second",
        expected="xl uses the configuration that it keeps until config-update replaces it",
        reference="xen tools/xl/xl_vmcontrol.c, reload_domain_config()",
    )
