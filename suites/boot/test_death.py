# SPDX-License-Identifier: BSD-2-Clause
"""A guest ends as documented, Xen gets the right shutdown reason, and the harness recognises each way to die."""

from __future__ import annotations

import time

import pytest

from harness.deadline import Deadline
from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

# Seconds from the last byte of a panic on the console to the verdict.
VERDICT_LIMIT = 1.0
# Seconds after which a guest that wrongly obeys a value has begun to go down.
OBEYED = 3
# The fifth letter of xl list's state (xen tools/xl/xl_info.c).
LETTERS = {"poweroff": "-", "reboot": "r", "crash": "c"}


def test_panic_is_seen_and_classified(guest: Guest, case: CaseContext) -> None:
    """A panic is recognised within a second, with its backtrace, and Xen gets the documented shutdown reason.

    Source: sys/dev/xen/control/control.c, xctrl_shutdown_final(); Linux arch/x86/xen/enlighten.c, xen_panic_event()
    Catches: a panic that Xen does not see as a crash (FreeBSD 9e0b0f5de67f); a guest that stays in the debugger (planted)
    """
    death = guest.panic(60)

    assert death.kind == guest.os.panic_kind, f"a panic on purpose was classified as {death.kind}: {death.message}"
    assert death.frames, f"no backtrace was found in the console output:\n{death.excerpt}"
    assert death.at is not None, "the death has no time of its verdict"
    assert death.seen is not None, "the death has no time of its last console byte"
    delay = death.at - death.seen
    case.metrics["panic to verdict"] = delay
    assert delay <= VERDICT_LIMIT, f"the verdict came {delay:.2f} s after the panic's last byte; {VERDICT_LIMIT} s are allowed"
    fate = guest.os.fate_of_panic(guest.config.guest_type)
    row = guest.wait_shutdown(60)
    assert row.reason == fate.reason, finding(
        test="a panic",
        observed=f"Xen got the shutdown reason {row.reason!r} (xl list: {row.state})",
        expected=f"Xen gets the shutdown reason {fate.reason!r}",
        reference=fate.why,
    )


def test_panic_names_its_functions(guest: Guest) -> None:
    """The backtrace of a panic has the names of the kernel's functions, also if Xen's own loader started the kernel.

    Source: sys/x86/xen/pv.c, xen_pvh_parse_symtab(); xen tools/libs/guest/xg_dom_elfloader.c; Linux kernel/kallsyms.c
    Catches: a kernel without the symbols that Xen's loader gives it (xen 06ee606aaf, dec25a2cd1): it names the nearest global function
    """
    death = guest.panic(60)

    assert death.frames, f"no backtrace was found in the console output:\n{death.excerpt}"
    names, ask, wrong = [frame.name for frame in death.frames], guest.os, []
    if 2 * death.nameless >= len(names):
        wrong.append(f"{death.nameless} of the {len(names)} frames in the kernel's backtrace have an address instead of a name")
    if ask.panic_function not in names:
        wrong.append(f"{ask.panic_function}() is not in the kernel's backtrace: {', '.join(names)}")
    assert not wrong, finding(
        test=f"a panic by `{ask.panic_command()}`",
        observed=wrong,
        expected="the kernel names its functions, also those that are static",
        reference=ask.source("names in a backtrace"),
    )


@pytest.mark.parametrize("control", ["poweroff", "reboot", "halt", "crash"])
def test_control_shutdown(guest: Guest, control: str) -> None:
    """Each value of control/shutdown ends the guest with the documented reason and state letters in `xl list`.

    Source: sys/dev/xen/control/control.c; Linux drivers/xen/manage.c, shutdown_handlers
    Catches: a PVH guest that halts when asked to power off (FreeBSD 9e0b0f5de67f, D42343)
    """
    fate = guest.os.fate(control, guest.config.guest_type)

    with guest.console.expecting_death():
        guest.control(control)
        if fate.reason:
            row = guest.wait_shutdown(90)
            letters = f"s{LETTERS[fate.reason]}"
            assert (row.reason, row.state[3:5]) == (fate.reason, letters), finding(
                test=f"`{control}` written to control/shutdown",
                observed=f"Xen got the shutdown reason {row.reason!r}; xl list shows the state {row.state}",
                expected=f"Xen gets the shutdown reason {fate.reason!r}; the state's fourth and fifth letter are {letters}",
                reference=fate.why,
            )
    if fate.reason:
        return
    if fate.halts:
        guest.console.wait_for(guest.os.halted, guest.deadline(90), "the kernel to halt")
    else:
        time.sleep(OBEYED)
        assert guest.sh("echo alive") == "alive", f"the shell does not answer after `{control}`, which the guest should ignore"
    row_now = guest.state()
    stays = row_now is not None and not row_now.shutdown
    assert stays, finding(
        test=f"`{control}` written to control/shutdown",
        observed=f"xl list shows the state {row_now.state}" if row_now else "the domain is gone",
        expected="the kernel halts and the domain stays" if fate.halts else "the guest ignores the value and the domain stays",
        reference=fate.why,
    )


@pytest.mark.needs(os="linux")
@pytest.mark.parametrize("stage", ["init", "login"])
def test_panic_at_boot_names_its_stage(new_guest: NewGuest, stage: str) -> None:
    """A panic during a boot ends every wait at once, and the death names the last stage that was reached."""
    guest = new_guest(variables=(("fxh.panic", stage),)).create().start()

    with pytest.raises(GuestDied) as caught:
        guest.wait_stage("login")

    death = caught.value.death
    assert (death.kind, death.stage) == ("linux-panic", "init"), (
        f"a panic after stage init was recorded as {death.kind} after stage {death.stage}"
    )


@pytest.mark.needs(os="linux")
def test_hang_is_found(new_guest: NewGuest) -> None:
    """A guest without progress is recorded as a hang in its stage within the stage's budget."""
    guest = new_guest(variables=(("fxh.hang", "init"),))
    guest.scale = 0.3
    guest.create().start()
    # This case judges the budget of one stage. Those of the earlier stages are short, too.
    with guest.console.budgets_off():
        guest.wait_stage("init", Deadline(300))

    with pytest.raises(GuestDied) as caught:
        guest.wait_stage("login", Deadline(120))

    death = caught.value.death
    assert (death.kind, death.stage) == ("hang", "init"), (
        f"a hang after stage init was recorded as {death.kind} after stage {death.stage}"
    )
    assert guest.state() is not None, "the domain is gone, but a guest that hangs keeps its domain"
