# SPDX-License-Identifier: BSD-2-Clause
"""Does the guest die as documented, and is its death seen, told apart, and told to Xen?"""

from __future__ import annotations

import pytest

from harness.deadline import Deadline
from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

# From a panic's last byte on the console to the verdict.
PROMPT = 1.0


def test_panic_is_seen_and_classified(guest: Guest, case: CaseContext) -> None:
    """B3: a panic is recognised within a second of its last line, with its backtrace, and Xen is told what is documented."""
    death = guest.panic(60)

    assert death.kind == guest.profile.panic_kind, f"a panic on purpose was taken for {death.kind}: {death.message}"
    assert death.frames, f"no backtrace was read from:\n{death.excerpt}"
    assert death.at is not None
    assert death.seen is not None
    case.metrics["panic to verdict"] = death.at - death.seen
    assert death.at - death.seen <= PROMPT, f"the verdict came {death.at - death.seen:.2f} s after the last byte"
    fate = guest.profile.fate_of_panic(guest.config.guest_type)
    row = guest.wait_shutdown(60)
    assert row.reason == fate.reason, f"Xen was told {row.reason!r} ({row.state}), documented is {fate.reason!r}: {fate.why}"


@pytest.mark.parametrize("control", ["poweroff", "reboot", "halt", "crash"])
def test_control_shutdown(guest: Guest, control: str) -> None:
    """B2: each value of control/shutdown ends the guest with the documented reason and letters in ``xl list``."""
    fate = guest.profile.fate(control, guest.config.guest_type)

    with guest.console.expecting_death():
        guest.control(control)
        if fate.reason:
            row = guest.wait_shutdown(90)

            assert row.reason == fate.reason, f"{control}: Xen was told {row.reason!r} ({row.state}); {fate.why}"
            letter = {"poweroff": "-", "reboot": "r", "crash": "c"}[fate.reason]
            assert row.state[3:5] == f"s{letter}", (
                f"{control}: xl list shows {row.state}, the fourth and fifth letter should be s{letter}"
            )
    if fate.halts:
        guest.console.wait_for(guest.profile.halted, guest.deadline(90), "the kernel to halt")
    elif not fate.reason:
        assert guest.sh("echo alive") == "alive", f"{control}: {fate.why}"
    if not fate.reason:
        row_now = guest.state()
        assert row_now is not None, f"{control} removed it; {fate.why}"
        assert not row_now.shutdown, f"{control} shut it down: {row_now.state}; {fate.why}"


@pytest.mark.needs(os="linux")
@pytest.mark.parametrize("stage", ["init", "login"])
def test_panic_at_boot_names_its_stage(new_guest: NewGuest, stage: str) -> None:
    """A guest that dies on its way up ends every wait at once, and the death names the last stage reached."""
    guest = new_guest(variables=(("fxh.panic", stage),)).create().start()

    with pytest.raises(GuestDied) as caught:
        guest.wait_stage("login")

    death = caught.value.death
    assert (death.kind, death.stage) == ("linux-panic", "init"), f"a panic in init was taken for {death.kind} after {death.stage}"


@pytest.mark.needs(os="linux")
def test_hang_is_found(new_guest: NewGuest) -> None:
    """G1: a guest that makes no progress is a hang in that stage within the stage's budget, not a timeout of the case."""
    guest = new_guest(variables=(("fxh.hang", "init"),))
    guest.scale = 0.3
    guest.create().start()

    with pytest.raises(GuestDied) as caught:
        guest.wait_stage("login", Deadline(120))

    death = caught.value.death
    assert (death.kind, death.stage) == ("hang", "init"), f"a hang in init was taken for {death.kind} after {death.stage}"
    assert guest.state() is not None, "the domain itself is there: its guest hangs"
