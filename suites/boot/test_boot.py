# SPDX-License-Identifier: BSD-2-Clause
"""A guest boots to its login prompt, runs the given kernel and boots again after a reboot."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.oracles.booting import expected_stages
from harness.oracles.finding import finding, precondition
from harness.plugin.fixtures import NewGuest
from harness.xen.elfnotes import read as read_notes


@pytest.mark.any_kernel
def test_boots_to_login(new_guest: NewGuest) -> None:
    """A boot reaches every stage in order and ends at a login prompt.

    Catches: a boot that panics, hangs, finds no root or stays in single-user mode (planted)
    """
    guest = new_guest().create().start()

    guest.wait_stage("login")

    reached = [stage.name for stage in guest.console.stages]
    expected = expected_stages([stage.name for stage in guest.os.stages], reached, uefi=guest.config.firmware == "ovmf")
    assert reached == expected, finding(
        test="a boot to the login prompt",
        observed=f"the console shows the stages {', '.join(reached)}",
        expected=f"the console shows the stages {', '.join(expected)}, in this order",
        reference="the messages of each stage: harness/console/stages.py",
    )


@pytest.mark.any_kernel
@pytest.mark.needs(capability=("emulated",))
def test_boots_unspared(new_guest: NewGuest) -> None:
    """A guest boots without the settings that help an emulated CPU: own APIC mode, ASLR, trapped TSC."""
    guest = new_guest(spared=False).create().start()

    guest.wait_stage("login")

    guest.login()
    assert guest.sh("echo alive") == "alive", "the shell does not answer `echo alive` after the login"


def test_runs_the_kernel_it_was_given(guest: Guest, kernel_file: Path) -> None:
    """The running kernel reports the version and ident of the kernel file that Xen was given.

    Source: FreeBSD sys/conf/newvers.sh; Linux arch/x86/boot/version.c
    """
    given = guest.os.identity_of(kernel_file.read_bytes())

    running = guest.os.identity(guest.sh)

    wrong = running.differences(given)
    assert not wrong, finding(
        test=f"a boot of the kernel file {kernel_file.name}",
        observed=wrong,
        expected="uname and sysctl report the version of the kernel file",
        reference="FreeBSD sys/conf/newvers.sh; Linux arch/x86/boot/version.c",
    )


def assert_in_kenv(guest: Guest, variables: dict[str, str]) -> None:
    """Fail unless the guest's kernel environment has each of ``variables`` with its value."""
    kenv = guest.os.variables(guest.sh)
    wrong = [
        f"{name} is {kenv[name]!r} instead of {value!r}" if name in kenv else f"{name} is missing"
        for name, value in variables.items()
        if kenv.get(name) != value
    ]
    assert not wrong, finding(
        test=f"a boot with the kernel variables {', '.join(variables)}",
        observed=wrong,
        expected="kenv shows each variable with its value",
        reference="sys/x86/xen/pv.c, xen_pvh_parse_preload_data(); loader.conf(5)",
    )


@pytest.mark.needs(os="freebsd")
def test_kernel_environment_arrives(new_guest: NewGuest) -> None:
    """Every kernel variable of the configuration is in kenv, whether it came by `extra` or by a loader.

    Source: sys/x86/xen/pv.c, xen_pvh_parse_preload_data(); loader.conf(5)
    Catches: a kernel variable that gets lost (planted)
    """
    variables = {"fxh.plain": "1", "fxh.path": "/a/b:c=d", "fxh.long": "x" * 100}
    guest = new_guest(variables=tuple(variables.items())).boot()

    assert_in_kenv(guest, variables)


@pytest.mark.needs(os="freebsd", types=("pvh", "pv"))
def test_extra_arrives_whole(guest: Guest) -> None:
    """Every variable of `extra` is in kenv with its value.

    Source: sys/x86/xen/pv.c, xen_pvh_parse_preload_data()
    """
    passed = dict(word.partition("=")[::2] for word in guest.config.extra.split(",") if word)
    precondition(passed, "the domain configuration has no `extra`")
    assert_in_kenv(guest, passed)


@pytest.mark.any_kernel
def test_comes_back_after_a_reboot(new_guest: NewGuest) -> None:
    """After a reboot the toolstack creates a new domain, and the guest reaches its login prompt again.

    Source: xen tools/xl/xl_vmcontrol.c, handle_domain_death()
    Catches: a guest that ignores control/shutdown (planted)
    """
    guest = new_guest(on_reboot="restart").boot()
    first = guest.domid

    guest.console_will_end()
    guest.control("reboot")
    guest.follow_reboot(120)
    guest.wait_stage("login")

    reasons = [event.reason for event in guest.shutdowns()]
    recreated = guest.domid != first and reasons == ["reboot"]
    assert recreated, finding(
        test="`reboot` written to control/shutdown, with on_reboot=restart",
        observed=f"domain {first} became domain {guest.domid}; xl logged the shutdown reasons {', '.join(reasons) or 'none'}",
        expected="xl logs one shutdown with the reason reboot and creates a new domain",
        reference="xen tools/xl/xl_vmcontrol.c, handle_domain_death()",
    )
    guest.login()
    assert guest.sh("echo alive") == "alive", "the shell does not answer `echo alive` after the reboot"


@pytest.mark.needs(os="freebsd")
def test_wrong_root_names_the_true_disk(new_guest: NewGuest) -> None:
    """With a root device that does not exist, FreeBSD reports error 19 and the mountroot prompt lists the real disk.

    Source: sys/kern/vfs_mountroot.c, parse_dir_ask()
    """
    guest = new_guest(variables=(("vfs.root.mountfrom", "ufs:/dev/xbd7"),)).create().start()

    with pytest.raises(GuestDied) as caught:
        guest.wait_stage("login")

    death = caught.value.death
    problem = ""
    if (death.kind, death.message) != ("mountroot", "no root file system: ufs:/dev/xbd7 failed with error 19"):
        problem = f"the boot ends with {death.kind}: {death.message}"
    elif "xbd0" not in (listed := dict(death.answers)["?"]):
        problem = f"`?` does not list xbd0: {listed}"
    assert not problem, finding(
        test="a boot with vfs.root.mountfrom=ufs:/dev/xbd7, which does not exist",
        observed=problem,
        expected="the mount fails with error 19 (ENODEV), and `?` at the mountroot> prompt lists xbd0",
        reference="sys/kern/vfs_mountroot.c, parse_dir_ask()",
    )


@pytest.mark.needs(os="freebsd", types=("pvh", "pv"))
def test_kernel_has_xen_notes(new_guest: NewGuest, kernel_file: Path) -> None:
    """The kernel file has the Xen ELF notes of the guest type that it is started as.

    Source: sys/amd64/amd64/xen-locore.S
    """
    started, able = new_guest().config.guest_type, read_notes(kernel_file).guest_types
    assert started in able, finding(
        test=f"the Xen ELF notes of {kernel_file.name}",
        observed=f"the notes allow the guest types {', '.join(able) or 'none'}",
        expected=f"the notes allow the guest type {started}",
        reference="sys/amd64/amd64/xen-locore.S",
    )
