"""pygrub as the toolstack runs it: the kernel is handed over, and so are its arguments."""

from __future__ import annotations

import pytest

from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen.config import Disk

from .watch import watch

# An HVM guest has its own loader read its disk.
pytestmark = pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))

BOOTED = {"bootloader": "pygrub", "on_reboot": "restart", "on_crash": "restart"}


def test_arguments_arrive(booted: NewGuest) -> None:
    """C8: what menu.lst and ``extra`` say is in the kernel's arguments; each variable on its own."""
    guest: Guest = booted(**BOOTED)
    freebsd = guest.profile.os == "freebsd"
    separator = "," if freebsd else " "

    variables = guest.profile.variables(guest.sh)

    passed = dict(word.partition("=")[::2] for word in guest.config.extra.split(separator) if word)
    assert passed, "its configuration has no extra"
    arrived = {name: variables.get(name) for name in passed}
    assert arrived == passed, finding(
        asked=f"extra={guest.config.extra!r} beside menu.lst",
        did=f"the kernel has {arrived}",
        good="has each variable as given",
        source="xen tools/pygrub/src/pygrub:805; FreeBSD sys/x86/xen/pv.c, xen_pvh_parse_preload_data()",
    )
    if not freebsd:
        assert variables.get("fxh.menu") == "one", "menu.lst's own argument is missing"


@pytest.mark.formerly("pygrub/test_toolstack::test_no_kernel_is_a_clean_error")
@pytest.mark.parametrize(
    "restrict",
    [pytest.param(0, id="root"), pytest.param(1, id="restricted", marks=pytest.mark.needs(capability=("pygrub-restrict",)))],
)
def test_no_kernel_is_a_clean_error(new_guest: NewGuest, scratch: NewScratch, restrict: int) -> None:
    """A volume without a kernel: xl says so and leaves no domain."""
    guest = new_guest(bootloader="pygrub")
    (disk,) = scratch("no-kernel")
    guest.reconfigure(disks=(Disk(disk.target),), more=(("bootloader_restrict", restrict),))

    with pytest.raises(GuestDied) as caught:
        guest.create()
    left = guest.state()
    guest.destroy()

    death = caught.value.death
    assert (death.kind, death.message.partition(":")[0]) == ("refused", "bootloader failed"), finding(
        asked=f"xl create with bootloader_restrict={restrict}, and no kernel on the disk",
        did=f"goes on without a kernel: {death.message}",
        good="says that the bootloader failed",
        source="xen tools/pygrub/src/pygrub, depriv(): sys.exit(rc) with a wait status, of which 256 is 0",
    )
    assert left is None, f"xl create failed, and left a domain in state {left.state}"


@pytest.mark.needs(capability=("pygrub-restrict",))
def test_restricted(new_guest: NewGuest, host: XenHost) -> None:
    """C12: restricted (XSA-443: a user of its own, a root of its own, limits), as all guests here: it boots all the same."""
    guest = new_guest(bootloader="pygrub")
    assert "bootloader_restrict = 1" in guest.config.render()

    with watch(host) as seen:
        guest.create()
    guest.start()
    guest.wait_stage("login")

    unprivileged = [process for process in seen if process.uid != 0]
    assert unprivileged, finding(
        asked="xl create with bootloader_restrict=1",
        did=[f"pygrub ran with uid {process.uid} and root {process.root}" for process in seen] or "no pygrub was seen",
        good="reads the guest's disk with a uid other than 0",
        source="xen tools/pygrub/src/pygrub, depriv(); tools/libs/light/libxl_bootloader.c, bootloader_uid()",
    )
    assert all(process.root != "/" for process in unprivileged), f"it sees dom0's files: {unprivileged}"
