# SPDX-License-Identifier: BSD-2-Clause
"""A guest states in xenstore which requests of the toolstack it obeys."""

from __future__ import annotations

import pytest

from harness.guests import suspend
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

FEATURES = ("feature-poweroff", "feature-reboot", "feature-suspend")


def stated(guest: Guest) -> dict[str, str | None]:
    """The guest's features by node of ``control``; None for a node that is missing."""
    return {name: guest.host.xenstore.read(f"/local/domain/{guest.domid}/control/{name}") for name in FEATURES}


def require_nodes(guest: Guest) -> None:
    """Skip the case unless the toolstack created the nodes for the guest that it built."""
    if None in stated(guest).values():
        pytest.skip(
            f"needs a toolstack that creates {', '.join(FEATURES)} in control; elsewhere: fxh run lifecycle -k capabilities --xen 4.20"
        )


def assert_stated(guest: Guest, test: str) -> None:
    """Fail unless the guest states all features."""
    wrong = [
        f"control/{name} is {'missing' if value is None else repr(value)}" for name, value in stated(guest).items() if value != "1"
    ]
    assert not wrong, finding(
        test=test,
        observed=wrong,
        expected="the guest writes 1 to each, because toolstacks decide by them whether a VM can be shut down, suspended or migrated",
        reference="xen docs/misc/xenstore-paths.pandoc (control/feature-*); FreeBSD sys/dev/xen/control/control.c, notify_support(); "
        "Linux drivers/xen/manage.c, setup_shutdown_watcher()",
    )


def test_capabilities_after_boot(guest: Guest) -> None:
    """After its boot the guest states in control/feature-* that it obeys poweroff, reboot and suspend requests.

    Kind of bug: the guest does not tell the toolstack what it can, so the toolstack does not offer it.

    Source: xen docs/misc/xenstore-paths.pandoc; sys/dev/xen/control/control.c, notify_support(); Linux drivers/xen/manage.c
    Catches: FreeBSD up to 14.2 writes none of them, so XAPI calls the VM not migratable (xapi-project/xen-api PR 1895 and 7047)
    """
    require_nodes(guest)

    assert_stated(guest, "a boot to the login prompt")


def test_saved_guest_states_its_capabilities(guest: Guest, case: CaseContext) -> None:
    """After `xl save` and `xl restore` the guest states its features in control/feature-* again: its directory is a new one.

    Kind of bug: a driver does not repeat after a restore what it wrote into xenstore at boot.

    Source: xen tools/libs/light/libxl_create.c; sys/dev/xen/control/control.c, xctrl_resume()
    Catches: a restored guest that cannot be migrated a second time (xapi-project/xen-api PR 7047)
    """
    require_nodes(guest)

    journey = suspend.through_a_file(guest)

    case.metrics |= {"save": round(journey.saved, 2), "restore": round(journey.restored, 2)}
    assert_stated(guest, "xl save, then xl restore")
