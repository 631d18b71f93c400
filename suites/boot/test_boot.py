# SPDX-License-Identifier: BSD-2-Clause
"""Does it boot? Each guest type to its login prompt, stage by stage, and back after a reboot."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.oracles.booting import expected_stages
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest
from harness.xen.elfnotes import read as read_notes


def test_boots_to_login(new_guest: NewGuest) -> None:
    """B1: every stage of a boot is reached, in order, and a login prompt at the end."""
    guest = new_guest().create().start()

    guest.wait_stage("login")

    reached = [stage.name for stage in guest.console.stages]
    expected = expected_stages([stage.name for stage in guest.profile.stages], reached, uefi=guest.config.firmware == "ovmf")
    assert reached == expected, f"stages reached: {reached}; a good boot shows {expected}"


@pytest.mark.needs(capability=("emulated",))
def test_boots_unspared(new_guest: NewGuest) -> None:
    """B1: also with nothing changed for an emulated CPU: with FreeBSD's own choice of APIC mode, ASLR, and a TSC that Xen traps."""
    guest = new_guest(spared=False).create().start()

    guest.wait_stage("login")

    guest.login()
    assert guest.sh("echo alive") == "alive"


def test_runs_the_kernel_it_was_given(guest: Guest, kernel_file: Path) -> None:
    """B1: the kernel that answers is the one that was handed to Xen: it says of itself what the file says."""
    given = guest.profile.identity_of(kernel_file.read_bytes())

    running = guest.profile.identity(guest.sh)

    wrong = running.differences(given)
    assert not wrong, finding(
        test=f"the kernel {kernel_file.name}",
        observed=wrong,
        expected="says by uname and sysctl what its file names itself",
        reference="FreeBSD sys/conf/newvers.sh; Linux arch/x86/boot/version.c",
    )


def arrived(guest: Guest, asked: dict[str, str]) -> None:
    """Each of these variables is in the guest's kernel environment, with its value."""
    kenv = guest.profile.variables(guest.sh)
    wrong = [
        f"{name} is {kenv.get(name, 'not there')!r}, not {value!r}" for name, value in asked.items() if kenv.get(name) != value
    ]
    assert not wrong, finding(
        test=f"a kernel environment with {', '.join(asked)}",
        observed=wrong,
        expected="has each variable in kenv, with its value",
        reference="sys/x86/xen/pv.c, xen_pvh_parse_preload_data(); loader.conf(5)",
    )


@pytest.mark.needs(os="freebsd")
def test_kernel_environment_arrives(new_guest: NewGuest) -> None:
    """Every variable that was asked for is in kenv: by ``extra`` (sys/x86/xen/pv.c, xen_pvh_parse_preload_data) or a loader."""
    asked = {"fxh.plain": "1", "fxh.path": "/a/b:c=d", "fxh.long": "x" * 100}
    guest = new_guest(variables=tuple(asked.items())).boot()

    arrived(guest, asked)


@pytest.mark.needs(os="freebsd", types=("pvh", "pv"))
def test_extra_arrives_whole(guest: Guest) -> None:
    """All that stands in ``extra`` is in kenv, each variable with its value."""
    passed = dict(word.partition("=")[::2] for word in guest.config.extra.split(",") if word)
    assert passed, "its configuration has no extra"
    arrived(guest, passed)


def test_comes_back_after_a_reboot(new_guest: NewGuest) -> None:
    """F1 in short: the guest reboots, the toolstack re-creates the domain, and it reaches its login prompt again."""
    guest = new_guest(on_reboot="restart").boot()
    first = guest.domid

    guest.console_will_end()
    guest.control("reboot")
    guest.follow_reboot(120)
    guest.wait_stage("login")

    assert guest.domid != first, f"it is still domain {first}"
    reasons = [event.reason for event in guest.shutdowns()]
    assert reasons == ["reboot"], f"xl logged its shutdowns as {reasons}, one reboot was asked for"
    guest.login()
    assert guest.sh("echo alive") == "alive"


@pytest.mark.needs(os="freebsd")
def test_wrong_root_names_the_true_disk(new_guest: NewGuest) -> None:
    """A3: with a root device that is not there, FreeBSD waits, says error 19 (ENODEV) and asks at mountroot>.

    The answer to ``?`` there names the disk that is (sys/kern/vfs_mountroot.c, parse_dir_ask).
    """
    guest = new_guest(variables=(("vfs.root.mountfrom", "ufs:/dev/xbd7"),)).create().start()

    with pytest.raises(GuestDied) as caught:
        guest.wait_stage("login")

    death = caught.value.death
    assert (death.kind, death.message) == ("mountroot", "no root file system: ufs:/dev/xbd7 failed with error 19"), (
        f"with vfs.root.mountfrom=ufs:/dev/xbd7 it ends in {death.kind}: {death.message}; a good one says error 19 and asks at mountroot>"
    )
    assert "xbd0" in dict(death.answers)["?"], f"`?` does not list xbd0: {death.answers}"


@pytest.mark.needs(os="freebsd", types=("pvh", "pv"))
def test_kernel_has_xen_notes(new_guest: NewGuest, kernel_file: Path) -> None:
    """The kernel says by its ELF notes that Xen can start it as what it was started (sys/amd64/amd64/xen-locore.S)."""
    started, able = new_guest().config.guest_type, read_notes(kernel_file).guest_types
    assert started in able, f"by its notes the kernel can be started as {', '.join(able) or 'nothing'}; it was started as {started}"
