# SPDX-License-Identifier: BSD-2-Clause
"""Does a guest come back with the kernel that is on its disk, and if not, which mechanism kept it from that?

The control guest replaces its ramdisk where FreeBSD replaces its kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestDied
from harness.guests import replace_kernel
from harness.guests.guest import Guest
from harness.guests.os.base import BootVolume
from harness.oracles.finding import finding
from harness.oracles.mechanism import NEW, OLD, OTHER, RebootEvidence, mechanism
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import NewGuest
from harness.plugin.worker_env import WorkerEnvironment

# An HVM guest has its own loader read its disk.
pytestmark = pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))

SOURCE = "xen tools/xl/xl_vmcontrol.c (restart), tools/libs/light/libxl_bootloader.c (run at each creation)"
Kind = Callable[[str], str]


@pytest.fixture
def pair(booted: NewGuest, rig: WorkerEnvironment, cell: Cell, case: CaseContext) -> tuple[Guest, BootVolume, Kind]:
    """A guest that pygrub booted, with a spare kernel beside the first one, and what sorts digests into old and new."""

    def with_a_spare(guest: Guest) -> dict[str, str]:
        volume = replace_kernel.volume(guest)
        data, _ = replace_kernel.spare(rig.source(cell), replace_kernel.identity(guest))
        replace_kernel.bring(guest, data, volume.beside("new"), case.directory)
        guest.sh(f"cp {volume.file} {volume.beside('old')}; sync")
        return {replace_kernel.digest(guest, volume.beside("old")): OLD, replace_kernel.sha256(data): NEW, "": ""}

    guest = booted(with_a_spare, bootloader="pygrub", on_reboot="restart", on_crash="restart")
    kinds = guest.prepared
    return guest, replace_kernel.volume(guest), lambda digest: kinds.get(digest, OTHER)


def come_back(guest: Guest, go: Callable[[], None], seconds: float = 200) -> str:
    """Reboot by ``go`` and wait for the login prompt of the next domain; returns how it failed, or ""."""
    guest.console_will_end()
    go()
    try:
        guest.follow_reboot(seconds)
        guest.wait_stage("login")
        guest.login()
    except DeadlineExpired as exc:
        return exc.message
    except GuestDied as exc:
        return exc.death.summary
    return ""


def look(guest: Guest, volume: BootVolume, kind: Kind, first: int, old: str, died: str) -> RebootEvidence:
    """All that tells the mechanisms apart, after the reboot."""
    back = not died
    running = ""
    if back:
        running = OLD if replace_kernel.identity(guest) == old else NEW
    return RebootEvidence(
        came_back=back,
        bootloader_ran=replace_kernel.bootloader_ran(guest, first),
        running=running,
        in_guest=kind(replace_kernel.digest(guest, replace_kernel.volume(guest).file)) if back else "",
        extracted=kind(replace_kernel.extracted(guest, volume.what)) if running != NEW else "",
        died=died,
    )


def test_plain_reboot(booted: NewGuest) -> None:
    """F1: a reboot with nothing replaced: the same kernel, a new domid, the bootloader run again."""
    guest = booted(bootloader="pygrub", on_reboot="restart", on_crash="restart")
    first, before = guest.domid, replace_kernel.identity(guest)

    died = come_back(guest, lambda: guest.session.start("reboot"))

    assert not died, f"it did not come back: {died}"
    assert guest.domid != first, f"it is still domain {first}"
    after = replace_kernel.identity(guest)
    assert after == before, f"nothing was replaced, and {after} runs after the reboot, {before} before it"
    assert replace_kernel.bootloader_ran(guest, first), f"no bootloader log for domain {guest.domid}"
    logged = [(event.reason, event.action) for event in guest.shutdowns()]
    assert logged == [("reboot", "restart")], f"xl logged {logged}, one reboot was asked for"


WAYS = {
    "in-place": "cp {new} {file}",
    "rename": "cp {new} {file}.next && mv {file}.next {file}",
}


@pytest.mark.parametrize("way", WAYS)
def test_replaced_kernel_runs(pair: tuple[Guest, BootVolume, Kind], way: str, case: CaseContext) -> None:
    """F2 F3: the kernel is replaced, the guest reboots in good order, and the new kernel runs."""
    guest, volume, kind = pair
    first, old = guest.domid, replace_kernel.identity(guest)
    guest.sh(WAYS[way].format(new=volume.beside("new"), file=volume.file))

    died = come_back(guest, lambda: guest.session.start(guest.profile.reboot_command))

    seen = look(guest, volume, kind, first, old, died)
    said = mechanism(seen)
    (case.directory / "mechanism.txt").write_text(f"{said}\n{seen}\n")
    assert said.startswith("ok"), finding(
        test=f"a new kernel put in place ({way}), then an orderly reboot through pygrub",
        observed=said,
        expected="comes back with the new kernel",
        reference=SOURCE,
    )


@pytest.mark.parametrize("synced", [True, False], ids=["synced", "unsynced"])
def test_replaced_then_panic(pair: tuple[Guest, BootVolume, Kind], synced: bool, case: CaseContext) -> None:
    """F4: the kernel is replaced, then the guest panics: what was synced runs; of what was not, the mechanism is told.

    UFS writes names at once and data later: then there can be a name of a kernel that is not whole, and the domain is gone.
    """
    guest, volume, kind = pair
    first, old = guest.domid, replace_kernel.identity(guest)
    guest.sh(WAYS["rename"].format(new=volume.beside("new"), file=volume.file) + ("; sync" if synced else ""))

    with guest.console.expecting_death():
        died = come_back(guest, lambda: guest.session.start(guest.profile.panic_command()))

    seen = look(guest, volume, kind, first, old, died)
    said = mechanism(seen)
    (case.directory / "mechanism.txt").write_text(f"{said}\n{seen}\n")
    allowed = ("ok",) if synced else ("ok", "3: the guest had not flushed")
    assert said.startswith(allowed), finding(
        test=f"a new kernel put in place by rename, {'synced, ' if synced else 'not synced, '}then a panic",
        observed=said,
        expected="comes back with the new kernel" + ("" if synced else ", or with what had been written by then"),
        reference=SOURCE,
    )


@pytest.mark.parametrize("broken", ["truncated", "garbage", "empty"])
def test_broken_kernel_is_refused(pair: tuple[Guest, BootVolume, Kind], broken: str) -> None:
    """F5: a kernel that is none: the toolstack says so and stops; no loop, no half-made domain, and it can be mended."""
    guest, volume, _ = pair
    first = guest.domid
    kernel = volume.kernel
    make = {
        "truncated": f"head -c 40000 {kernel} > {kernel}.cut; mv {kernel}.cut {kernel}",
        "garbage": f"dd if=/dev/urandom of={kernel} bs=64k count=20 2>/dev/null",
        "empty": f": > {kernel}",
    }[broken]
    guest.sh(f"cp {kernel} {kernel}.good; {make}; sync")

    guest.console_will_end()
    guest.session.start("reboot")
    outcome = settle(guest, first, 90)

    log = guest.host.toolstack.log(guest.name)
    assert outcome == "gone", finding(
        test=f"a reboot through pygrub with a {broken} kernel on the disk",
        observed=[f"the domain is {outcome}", *log.splitlines()[-6:]],
        expected="the toolstack logs an error and gives up, leaving no domain behind",
        reference=SOURCE,
    )
    assert "rror" in log or "failed" in log, f"xl's log has no error:\n{log[-800:]}"
    assert len(guest.shutdowns()) == 1, "it was restarted more than once"


def settle(guest: Guest, first: int, seconds: float) -> str:
    """What has become of the domain: ``gone``, or a description. Waits for a state that lasts."""
    deadline = Deadline(seconds * guest.scale)
    gone_since: Deadline | None = None
    with guest.host.toolstack.watch(guest.name, seconds=deadline.remaining) as pause:
        while not deadline.expired:
            pause(3.0)
            row = guest.state()
            if row is None:
                gone_since = gone_since or Deadline(6)
                if gone_since.expired:
                    return "gone"
            else:
                gone_since = None
                if row.domid != first and len(guest.shutdowns()) > 2:
                    return f"restarted again and again (domid {row.domid})"
    row = guest.state()
    return "gone" if row is None else f"there as domid {row.domid} ({row.state})"


def test_replaced_menu(booted: NewGuest) -> None:
    """F7: an argument changed in menu.lst is there after the next reboot: the bootloader reads its file anew."""
    guest = booted(bootloader="pygrub", on_reboot="restart", on_crash="restart")
    volume = replace_kernel.volume(guest)
    guest.sh(f"sed '{volume.menu_change}' {volume.menu} > {volume.menu}.next && mv {volume.menu}.next {volume.menu}; sync")

    died = come_back(guest, lambda: guest.session.start("reboot"))

    assert not died, f"it did not come back: {died}"
    assert guest.profile.variables(guest.sh).get("fxh.menu") == "two", finding(
        test="another argument in menu.lst, then a reboot",
        observed=f"the kernel's arguments: {dict(guest.profile.variables(guest.sh))}",
        expected="shows the new argument",
        reference=SOURCE,
    )


def test_alternation(pair: tuple[Guest, BootVolume, Kind], case: CaseContext) -> None:
    """F9: old and new kernel in turn, each reboot brings up the one that was put in place last."""
    guest, volume, _ = pair
    rounds = 2 if guest.host.facts.emulated else 10
    names = {OLD: replace_kernel.identity(guest)}
    story = []
    for turn in range(rounds):
        wanted = NEW if turn % 2 == 0 else OLD
        volume = replace_kernel.volume(guest)
        guest.sh(f"cp {volume.beside(wanted)} {volume.file}; sync")
        died = come_back(guest, lambda: guest.session.start("reboot"))
        assert not died, f"turn {turn + 1}, {wanted} kernel in place: {died}"
        names.setdefault(wanted, replace_kernel.identity(guest))
        story.append((wanted, replace_kernel.identity(guest)))
    case.metrics["reboots"] = float(rounds)
    wrong = [
        f"turn {n + 1}: {names[wanted]} was in place, {ran} runs" for n, (wanted, ran) in enumerate(story) if ran != names[wanted]
    ]
    if names[OLD] == names[NEW]:
        wrong.append(f"always {names[OLD]}")
    assert not wrong, finding(
        test=f"{rounds} reboots, with two kernels put in place in turn",
        observed=wrong,
        expected="runs each time what was put in place last",
        reference=SOURCE,
    )


def test_cold_start_is_as_warm(pair: tuple[Guest, BootVolume, Kind]) -> None:
    """F10: after a replaced kernel, xl destroy and xl create bring up the new kernel as a reboot does."""
    guest, volume, _ = pair
    old = replace_kernel.identity(guest)
    guest.sh(WAYS["in-place"].format(new=volume.beside("new"), file=volume.file) + "; sync")

    guest.destroy()
    guest.boot()

    assert replace_kernel.identity(guest) != old, finding(
        test="a new kernel put in place and synced, then xl destroy and xl create",
        observed=f"{old} runs again",
        expected="runs the new kernel",
        reference=SOURCE,
    )
