"""pygrub as the toolstack runs it: the kernel is handed over, and so are its arguments."""

from __future__ import annotations

import pytest

from harness.errors import CommandFailed
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen.config import Disk

pytestmark = pytest.mark.needs(capability=("pygrub",))

BOOTED = {"bootloader": "pygrub", "on_reboot": "restart", "on_crash": "restart"}


def test_arguments_arrive(booted: NewGuest) -> None:
    """C8: what menu.lst and ``extra`` say is in the kernel's arguments; each variable on its own."""
    guest: Guest = booted(**BOOTED)
    freebsd = guest.profile.os == "freebsd"
    separator = "," if freebsd else " "

    variables = guest.profile.variables(guest.sh)

    passed = dict(word.partition("=")[::2] for word in guest.config.extra.split(separator) if word)
    arrived = {name: variables.get(name) for name in passed}
    assert arrived == passed, finding(
        asked=f"extra={guest.config.extra!r} beside menu.lst",
        did=f"the kernel has {arrived}",
        good="has each variable as given",
        source="xen tools/pygrub/src/pygrub:805; FreeBSD sys/x86/xen/pv.c, xen_pvh_parse_preload_data()",
    )
    if not freebsd:
        assert variables.get("fxh.menu") == "one", "menu.lst's own argument is missing"


def test_no_kernel_is_a_clean_error(new_guest: NewGuest, scratch: NewScratch) -> None:
    """A volume without a kernel: xl says so and leaves no domain."""
    guest = new_guest(bootloader="pygrub")
    (disk,) = scratch("no-kernel")
    guest.reconfigure(disks=(Disk(disk.target),))

    with pytest.raises(CommandFailed) as caught:
        guest.create()

    assert "bootloader failed" in caught.value.stderr, caught.value.stderr
    assert guest.state() is None


def test_restricted(new_guest: NewGuest) -> None:
    """C12: with bootloader_restrict=1 (XSA-443: its own user, no menu, limits) the guest boots all the same."""
    guest = new_guest(bootloader="pygrub")
    guest.reconfigure(more=(("bootloader_restrict", 1),))

    try:
        guest.create()
    except CommandFailed as exc:
        if "Could not find user" not in exc.stderr:
            raise
        pytest.skip("needs a dom0 with the user xen-qemuuser-shared; elsewhere: fxh run pygrub -k test_restricted --xen-host HOST")
    guest.start()
    guest.wait_stage("login")
