# SPDX-License-Identifier: BSD-2-Clause
"""Tests every detector with the recorded consoles of real guests."""

from __future__ import annotations

import random
import re
import threading
import time
from pathlib import Path

import pytest
from played import FREEBSD, classify

from harness.console import boot_tracker, deaths
from harness.console.backtrace import frames
from harness.console.boot_tracker import BootTracker, Overrun
from harness.console.reader import MOST, ConsoleReader
from harness.console.text import decode, excerpt
from harness.deadline import Deadline
from harness.errors import ExitCode, GuestDied, HarnessError, InfrastructureError, TransportError
from harness.guests import sourcelines
from harness.guests.os.freebsd import FreeBSD as FreeBSDProfile
from harness.oracles.booting import expected_stages
from harness.safetext import plain
from harness.transport.replay import ReplayStream
from harness.xen import xenconsole
from harness.xen.xenconsole import ConsoleStream

CONSOLES = Path(__file__).parent.parent / "consoles"
PVH = (CONSOLES / "freebsd-13.2-pvh-boot-login-panic.log").read_bytes()
WRONG_ROOT = (CONSOLES / "freebsd-13.2-pvh-wrong-root.log").read_bytes()
TRAP = (CONSOLES / "freebsd-13.2-pvh-fpu-trap.log").read_bytes()
HVM = (CONSOLES / "freebsd-13.2-hvm-mountroot-prompt.log").read_bytes()


def play(tmp_path: Path, data: bytes, **options: object) -> ConsoleReader:
    reader = ConsoleReader(ReplayStream(data, **options), tmp_path / "console.log", tables=FREEBSD)  # type: ignore[arg-type]
    reader.start()
    reader._thread.join(10)
    return reader


def test_boot_login_and_panic_within_a_line(tmp_path: Path) -> None:
    reader = play(tmp_path, PVH)
    assert [stage.name for stage in reader.stages] == ["kernel", "xen", "xenbus", "disk", "mountroot", "rc", "login"]
    assert reader.death is not None
    assert (reader.death.kind, reader.death.message, reader.death.stage) == ("panic", "kdb_sysctl_panic", "login")
    assert reader.death.faulting_function == "kdb_sysctl_panic"
    assert (tmp_path / "console.log").read_bytes() == PVH


@pytest.mark.parametrize(
    ("recording", "uefi", "missing"),
    [
        ("freebsd-13.2-pvh-boot-login-panic", False, []),
        ("freebsd-15.1-pvh-login", False, []),
        ("freebsd-13.2-hvm-lab-loader-login", False, []),
        ("freebsd-10.4-i386-pv-login", False, []),
        # The console of a UEFI guest also shows the firmware.
        ("freebsd-15.1-pvh-login", True, ["firmware"]),
        ("freebsd-13.2-pvh-wrong-root", False, ["login"]),
    ],
)
def test_stages_of_a_good_boot(tmp_path: Path, recording: str, uefi: bool, missing: list[str]) -> None:
    reached = [stage.name for stage in play(tmp_path, (CONSOLES / f"{recording}.log").read_bytes()).stages]
    expected = expected_stages([stage.name for stage in FREEBSD.stages], reached, uefi=uefi)
    assert [name for name in expected if name not in reached] == missing
    assert [name for name in expected if name in reached] == reached


def test_boot_of_freebsd_15(tmp_path: Path) -> None:
    reader = play(tmp_path, (CONSOLES / "freebsd-15.1-pvh-login.log").read_bytes())
    assert [stage.name for stage in reader.stages] == ["kernel", "xen", "xenbus", "disk", "mountroot", "rc", "login"]


def test_panic_of_freebsd_15_ends_without_a_reboot(tmp_path: Path) -> None:
    """The panic starts inside a line and ends with "Uptime:": the guest reports the crash to Xen, which ends the domain."""
    data = (CONSOLES / "freebsd-15.1-pvh-panic.log").read_bytes()
    assert b"debug.kdb.panic: 0panic: kdb_sysctl_panic" in data
    assert b"Automatic reboot" not in data
    death = play(tmp_path, data).death
    assert death is not None
    assert (death.kind, death.message, death.faulting_function) == ("panic", "kdb_sysctl_panic", "kdb_sysctl_panic")
    assert [frame.function for frame in death.frames[-2:]] == ["amd64_syscall", "fast_syscall_common"]


def test_double_fault_of_freebsd_15(tmp_path: Path) -> None:
    """A recursion filled the kernel stack: its backtrace is cut to one line, and the caller below it stays visible."""
    death = play(tmp_path, (CONSOLES / "freebsd-15.1-pvh-double-fault.log").read_bytes()).death
    assert death is not None
    assert (death.kind, death.message, death.faulting_function) == ("trap", "Fatal double fault", "kdb_stack_overflow")
    assert len(death.frames) > 400
    lines = sourcelines.names(death.frames)
    assert lines[4:8] == [
        "#4  Xdblfault+0xd7",
        "#5  kdb_stack_overflow+0x12",
        "#6-482 kdb_stack_overflow+0x17",
        "#483 kdb_sysctl_stack_overflow+0x65",
    ]
    assert lines[-1].endswith("fast_syscall_common+0xf8")


def test_wrong_root_of_freebsd_15(tmp_path: Path) -> None:
    death = play(tmp_path, (CONSOLES / "freebsd-15.1-pvh-wrong-root.log").read_bytes()).death
    assert death is not None
    assert death.kind == "mountroot"
    assert death.message == "no root file system: ufs:/dev/xbd7 failed with error 19"


def test_boot_and_panic_of_freebsd_14(tmp_path: Path) -> None:
    """14.1 and later, like 15, report the crash to Xen at once, without `Automatic reboot`."""
    data = (CONSOLES / "freebsd-14.2-pvh-login-panic.log").read_bytes()
    assert b"Automatic reboot" not in data
    reader = play(tmp_path, data)
    assert [stage.name for stage in reader.stages] == ["kernel", "xen", "xenbus", "disk", "mountroot", "rc", "login"]
    death = reader.death
    assert death is not None
    assert (death.kind, death.message, death.stage, death.faulting_function) == (
        "panic",
        "kdb_sysctl_panic",
        "login",
        "kdb_sysctl_panic",
    )


def test_wrong_root_of_freebsd_14(tmp_path: Path) -> None:
    death = play(tmp_path, (CONSOLES / "freebsd-14.2-pvh-wrong-root.log").read_bytes()).death
    assert death is not None
    assert (death.kind, death.message) == ("mountroot", "no root file system: ufs:/dev/xbd7 failed with error 19")


@pytest.mark.parametrize("version", ["14.2", "15.1"])
def test_panic_without_ddb(version: str, tmp_path: Path) -> None:
    death = play(tmp_path, (CONSOLES / f"freebsd-{version}-pvh-nodb-panic.log").read_bytes()).death
    assert death is not None
    assert (death.kind, death.message) == ("panic", "kdb_sysctl_panic")
    assert [frame.function for frame in death.frames[:3]] == ["kdb_backtrace", "vpanic", "panic"]
    assert len(death.frames) == 10


@pytest.mark.parametrize(
    ("recording", "text"),
    [("14.2-pvh-witness-login", b"1000lock order reversal"), ("15.1-pvh-witness-restored", b"fxh# lock order reversal")],
)
def test_a_recorded_complaint_of_witness_is_no_death(recording: str, text: bytes, tmp_path: Path) -> None:
    data = (CONSOLES / f"freebsd-{recording}.log").read_bytes()
    assert text in data
    death = play(tmp_path, data).death
    assert death is not None
    assert death.kind == "eof"


def test_trap_of_a_restored_freebsd_14(tmp_path: Path) -> None:
    """The console of a restored guest begins in the middle. The output before the trap is no prompt of a live shell."""
    death = play(tmp_path, (CONSOLES / "freebsd-14.2-pvh-restored-trap.log").read_bytes()).death
    assert death is not None
    assert (death.kind, death.faulting_function) == ("trap", "xen_intr_disable_source")
    assert [frame.function for frame in death.frames if frame.function.startswith("xencons")] == ["xencons_resume"]


def test_trap_names_the_faulting_function(tmp_path: Path) -> None:
    death = play(tmp_path, TRAP).death
    assert death is not None
    assert death.kind == "trap"
    assert death.message == "Fatal trap 9: general protection fault while in kernel mode"
    assert death.faulting_function == "fpurestore_xrstor3264"
    assert "Fatal trap 9" in death.excerpt


def test_panic_of_a_kernel_without_ddb(tmp_path: Path) -> None:
    """Its backtrace has another format, with only global functions."""
    death = play(tmp_path, (CONSOLES / "freebsd-13.2-pvh-nodb-panic.log").read_bytes()).death
    assert death is not None
    assert (death.kind, death.message) == ("panic", "kdb_sysctl_panic")
    assert [frame.function for frame in death.frames[:4]] == ["kdb_backtrace", "vpanic", "panic", "kdb_trap"]
    assert death.faulting_function == "sbuf_new_for_sysctl"
    assert death.excerpt.startswith("panic: kdb_sysctl_panic\ncpuid = 0"), "the excerpt must not contain input of the harness"


def test_a_reboot_is_a_second_boot(tmp_path: Path) -> None:
    """The stages are those of the current boot."""
    data = (CONSOLES / "freebsd-13.2-pvh-lab-reboot.log").read_bytes()
    reader = play(tmp_path, data)
    assert data.count(b"---<<BOOT>>---") == 2
    assert [stage.name for stage in reader.stages] == ["kernel", "xen", "xenbus", "disk", "mountroot", "rc", "login"]


def test_a_loader_comes_before_the_kernel(tmp_path: Path) -> None:
    reader = play(tmp_path, (CONSOLES / "freebsd-13.2-hvm-lab-loader-login.log").read_bytes())
    names = [stage.name for stage in reader.stages]
    assert (names[0], names[-1]) == ("loader", "login")


def test_wrong_root_in_the_lab(tmp_path: Path) -> None:
    death = play(tmp_path, (CONSOLES / "freebsd-13.2-pvh-lab-wrong-root.log").read_bytes()).death
    assert death is not None
    assert death.message == "no root file system: ufs:/dev/xbd7 failed with error 19"
    assert "Mounting from ufs:/dev/xbd7 failed with error 19" in death.excerpt


def test_a_halt_is_detected() -> None:
    data = (CONSOLES / "freebsd-13.2-pvh-poweroff-halts.log").read_bytes()
    assert re.search(FreeBSDProfile().halted, data, re.MULTILINE)


def test_an_i386_pv_kernel_that_comes_up_in_single_user_mode(tmp_path: Path) -> None:
    """Its lines begin with a CR, and the line of the xen stage is that of the clock."""
    data = (CONSOLES / "freebsd-10.4-i386-pv-single-user.log").read_bytes()
    reader = play(tmp_path, data)
    assert b"\r\n\rMounting local" in data
    assert [stage.name for stage in reader.stages] == ["kernel", "xen", "xenbus", "disk", "mountroot", "rc"]
    assert reader.death is not None
    assert (reader.death.kind, reader.death.stage) == ("single-user", "rc")
    assert reader.death.message == "/bin/sh on /etc/rc terminated abnormally, going to single user mode"
    assert "pid 9 (sh), uid 0: exited on signal 11" in reader.death.excerpt


def test_an_i386_pv_boot_and_its_panic(tmp_path: Path) -> None:
    reader = play(tmp_path, (CONSOLES / "freebsd-10.4-i386-pv-login.log").read_bytes())
    assert [stage.name for stage in reader.stages] == ["kernel", "xen", "xenbus", "disk", "mountroot", "rc", "login"]
    death = play(tmp_path, (CONSOLES / "freebsd-10.4-i386-pv-panic.log").read_bytes()).death
    assert death is not None
    assert (death.kind, death.message, death.faulting_function) == ("panic", "kdb_sysctl_panic", "kernel_sysctl")


def test_a_guest_that_crashes_in_the_pv_shim(tmp_path: Path) -> None:
    """Xen's messages concern a domain, and there is no output of the guest."""
    death = play(tmp_path, (CONSOLES / "freebsd-10.4-i386-pvshim-crash.log").read_bytes(), end="silence").death
    assert death is not None
    assert (death.kind, death.message) == ("crash", "(XEN) Domain 2 (vcpu#0) crashed on cpu#0: d2v0 Unhandled: vec 14, #PF[0000]")
    assert "#PF[0000]" in death.excerpt


def test_lines_that_begin_with_a_cr() -> None:
    assert decode(b"a\r\n\r\r\n\rb\rc\r\r\n\r") == "a\n\nb\rc\n"


def test_an_i386_backtrace_has_arguments() -> None:
    assert frames(
        "vpanic(c02edb88,c0302064) at vpanic+0x151/frame 0xc0302044\nsyscall(c5e9b7a8) at syscall+0x41b/frame 0xc5e9b79c\n",
        FREEBSD.machinery,
    ) == (
        deaths.Frame("vpanic", "0x151"),
        deaths.Frame("syscall", "0x41b"),
    )


def test_wrong_root_lists_the_disks(tmp_path: Path) -> None:
    before, prompt, after = WRONG_ROOT.partition(b"mountroot> ")
    answer = after[: after.index(b"mountroot> ") + len(b"mountroot> ")]
    stream = ReplayStream(before + prompt, end="silence", answers={b"?": answer})
    reader = ConsoleReader(stream, tmp_path / "console.log", tables=FREEBSD).start()
    with pytest.raises(GuestDied) as caught:
        reader.wait_stage("login", Deadline(10))
    death = caught.value.death
    assert death.kind == "mountroot"
    assert death.message == "no root file system: ufs:/dev/xbd7 failed with error 19"
    _, _, devices = dict(death.answers)["?"].partition("List of GEOM managed disk devices:")
    assert devices.split("mountroot>")[0].split() == ["ufs/FBROOT", "ufsid/6b03ae756683071b", "xbd0"]
    reader.stop()


def test_hvm_prompt(tmp_path: Path) -> None:
    reader = play(tmp_path, HVM)
    assert reader.death is not None
    assert reader.death.kind == "mountroot"
    assert reader.stages[0].name == "loader"


@pytest.mark.parametrize("seed", range(12))
def test_chunk_sizes_do_not_matter(tmp_path: Path, seed: int) -> None:
    """The verdict does not depend on the sizes of the chunks."""
    rng = random.Random(seed)
    data = rng.choice([PVH, TRAP])
    sizes = [rng.randint(1, 400) for _ in range(50)]
    reader = play(tmp_path, data, sizes=sizes)
    whole = classify(data[data.index(b"panic: ") - 4000 :]) if data is PVH else classify(data)
    assert whole is not None
    assert reader.death is not None
    assert reader.death.identity.split(" ", 1)[1].split("@")[0] == whole.identity.split(" ", 1)[1].split("@")[0]
    assert reader.stages[-1].name == "login"


@pytest.mark.parametrize(
    "line",
    [b"debug.kdb.panic: 0\r\n", b"# sysctl debug.kdb.panic=1\r\n", b"kern.panic_reboot_wait_time: 15\r\n", b"foodb> x\r\n",
     b"the word panic: \r\n", b"mydb> \r\n", b"mountroot>x\r\n", b"mypanic: no\r\nof the kernel\r\n",
     b"debug.kdb.panic: 0\r\ncpuid = 0\r\n"],
)  # fmt: skip
def test_no_false_alarm(line: bytes) -> None:
    assert classify(b"\n" + line) is None


# -- lines of 14 and 15 according to their sources (sys/kern, sys/amd64, sys/ddb, stand), not recorded ----------------

REPORT = b"""\
cpuid = 0\r
time = 1795562700\r
KDB: stack backtrace:\r
db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe004508faf0\r
vpanic() at vpanic+0x161/frame 0xfffffe004508fb40\r
%s\
sysctl_root_handler_locked() at sysctl_root_handler_locked+0x9c/frame 0xfffffe004508fc20\r
Uptime: 23s\r
"""


@pytest.mark.parametrize("before", [b"debug.kdb.panic: 0", b"root@fbsd:~ # ", b"some program's outpu", b"half a word_", b""])
def test_a_panic_begins_in_the_middle_of_a_line(tmp_path: Path, before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest of 14.1 or later is gone after its uptime. Its death is declared without a line `Automatic reboot`.

    The uptime ends the report, so the tracker does not wait as for a report without an end.
    """
    for name in ("_UNFINISHED_QUIET", "_UNFINISHED_LONGEST"):
        monkeypatch.setattr(boot_tracker, name, 600.0)
    report = REPORT % b"panic() at panic+0x43/frame 0xfffffe004508fba0\r\n"
    for sizes in ([1], [7, 100, 3], [4096]):
        stream = ReplayStream(b"\r\n" + before + b"panic: kdb_sysctl_panic\r\n" + report, end="silence", sizes=sizes)
        reader = ConsoleReader(stream, tmp_path / "console.log", tables=FREEBSD).start()
        with reader.expecting_death() as death:
            seen = death(Deadline(30))
        reader.stop()
        assert (seen.kind, seen.message, seen.faulting_function) == ("panic", "kdb_sysctl_panic", "sysctl_root_handler_locked")
        assert "Automatic reboot" not in seen.excerpt


def test_an_assertion_is_no_faulting_function() -> None:
    """INVARIANTS: KASSERT() calls kassert_panic(), which calls vpanic() (sys/kern/kern_shutdown.c)."""
    report = REPORT % b"kassert_panic() at kassert_panic+0x4a/frame 0xfffffe004508fba0\r\n"
    death = classify(b"panic: mutex xbd not owned at /usr/src/sys/dev/xen/blkfront/blkfront.c:312\r\n" + report)
    assert death is not None
    assert death.faulting_function == "sysctl_root_handler_locked"


def test_a_double_fault() -> None:
    """sys/amd64/amd64/trap.c, dblfault_handler()."""
    data = b"""\
\r
Fatal double fault\r
rip 0xffffffff80b1f0a4 rsp 0xfffffe0045070fd8 rbp 0xfffffe0045071040\r
cpuid = 0; apic id = 00\r
panic: double fault\r
cpuid = 0\r
time = 1795562700\r
KDB: stack backtrace:\r
db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe0010a2fd40\r
vpanic() at vpanic+0x161/frame 0xfffffe0010a2fd90\r
panic() at panic+0x43/frame 0xfffffe0010a2fdf0\r
dblfault_handler() at dblfault_handler+0x1ce/frame 0xfffffe0010a2feb0\r
Xdblfault() at Xdblfault+0xd7/frame 0xfffffe0010a2feb0\r
--- trap 0x17, rip = 0xffffffff80b1f0a4, rsp = 0xfffffe0045070fd8, rbp = 0xfffffe0045071040 ---\r
deep() at deep+0x14/frame 0xfffffe0045071040\r
Uptime: 23s\r
"""
    death = classify(data)
    assert death is not None
    assert (death.kind, death.message, death.faulting_function) == ("trap", "Fatal double fault", "deep")


def test_a_complaint_of_witness_is_no_death() -> None:
    """WITNESS prints a backtrace and continues (sys/kern/subr_witness.c)."""
    data = b"""\
WARNING: WITNESS option enabled, expect reduced performance.\r
lock order reversal:\r
 1st 0xfffff80003a5a5f0 ufs (ufs, lockmgr) @ /usr/src/sys/kern/vfs_lookup.c:1070\r
 2nd 0xfffff80003a5a070 devfs (devfs, lockmgr) @ /usr/src/sys/kern/vfs_mount.c:2304\r
lock order ufs -> devfs attempted at:\r
#0 0xffffffff80c5c9d8 at witness_checkorder+0xbd8\r
#1 0xffffffff80bb6d3c at lockmgr_lock_flags+0x18c\r
"""
    assert classify(data) is None


@pytest.mark.parametrize(
    "line",
    [
        b"BTX loader 1.00  BTX version is 1.02\r\n", b"FreeBSD/x86 bootstrap loader, Revision 3.0\r\n",
        b"FreeBSD/amd64 EFI loader, Revision 3.0\r\n", b"/boot/kernel/kernel text=0x18e2c8 text=0xe0f6a8 data=0x180\r\n",
        b"\x1b[H/boot/kernel/kernel text=0x18e2c8\r\n",
    ],
)  # fmt: skip
def test_a_loader_of_each_firmware(tmp_path: Path, line: bytes) -> None:
    reader = play(tmp_path, b"\r\n" + line + b"---<<BOOT>>---\r\nCopyright (c) 1992-2025 The FreeBSD Project.\r\n")
    assert [stage.name for stage in reader.stages] == ["loader", "kernel"]


def test_every_stage_has_its_literal() -> None:
    """The tracker searches for the literal first, so the pattern never sees a line without it."""
    lines = {
        "firmware": [b'BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)'],
        "loader": [b"BTX loader 1.00", b"FreeBSD/x86 bootstrap loader, R", b"FreeBSD/amd64 EFI loader, R", b"/boot/kernel/kernel text=0x1"],
        "kernel": [b"Copyright (c) 1992-2025 The FreeBSD Project."],
        "xen": [b"XEN: Hypervisor version 4.20 detected.", b'Hypervisor: Origin = "XenVMMXenVMM"', b"Xen reported: 2599.996 MHz processor."],
        "xenbus": [b"xenbusb_front0: <Xen Frontend Devices> on xenstore0"],
        "disk": [b"xbd0: 256MB <Virtual Block Device> at device/vbd/51712 on xenbusb_front0"],
        "mountroot": [b"Trying to mount root from ufs:/dev/gpt/rootfs [rw]...", b"Trying to mount root from zfs:zroot/ROOT/default []..."],
        "rc": [b"Setting hostuuid: 0", b"Starting file system checks:", b"Mounting local filesystems:.", b"Loading kernel modules: if_tap"],
        "login": [b"login: ", b"fbsd login: "],
    }  # fmt: skip
    assert list(lines) == [stage.name for stage in FREEBSD.stages]
    for stage in FREEBSD.stages:
        for line in lines[stage.name]:
            assert stage.literal in line
            assert stage.pattern.search(b"\n" + line), line


def test_a_death_ends_every_wait(tmp_path: Path) -> None:
    stream = ReplayStream(b"", end="silence")
    reader = ConsoleReader(stream, tmp_path / "c.log", tables=FREEBSD).start()
    caught: list[Exception] = []

    def wait() -> None:
        try:
            reader.wait_for(b"never", Deadline(90), "never")
        except GuestDied as exc:
            caught.append(exc)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    stream._chunks.append(b"panic: at the disco\r\ncpuid = 0\r\nUptime: 3s\r\nAutomatic reboot in 15 seconds\r\n")
    begun = time.monotonic()
    for thread in threads:
        thread.join(60)
    assert len(caught) == 4
    assert time.monotonic() - begun < 60, "well before the deadline of 90 s"
    reader.stop()


def test_silence_in_a_stage_is_a_hang(tmp_path: Path) -> None:
    head = PVH[: PVH.index(b"Trying to mount root")]
    reader = ConsoleReader(ReplayStream(head, end="silence"), tmp_path / "c.log", tables=FREEBSD, scale=0.01).start()
    with pytest.raises(GuestDied) as caught:
        reader.wait_stage("login", Deadline(10))
    assert caught.value.death.kind == "hang"
    assert caught.value.death.stage == "disk"
    reader.stop()


def test_end_of_the_console_is_a_death_unless_expected(tmp_path: Path) -> None:
    assert play(tmp_path, b"hello\r\n").death is not None
    reader = ConsoleReader(ReplayStream(b"hello\r\n"), tmp_path / "d.log", tables=FREEBSD)
    reader.expect_end()
    reader.start()
    reader._thread.join(5)
    assert reader.death is None


def test_the_death_is_declared_before_the_console_is_closed(tmp_path: Path) -> None:
    """Otherwise a wait could report a broken console instead of the death."""
    closed: list[bool] = []
    reader = ConsoleReader(
        ReplayStream(b"hello\r\n"), tmp_path / "c", tables=FREEBSD, listener=lambda event: closed.append(reader.closed)
    )
    reader.start().join(5)
    assert (closed, reader.closed) == ([False], True)


def test_a_console_in_use_is_no_death(tmp_path: Path) -> None:
    words = b"\r\nxenconsole: Could not lock /var/lock/xenconsole.2: Resource temporarily unavailable\r\n"
    reader = ConsoleReader(ConsoleStream(ReplayStream(words)), tmp_path / "c", tables=FREEBSD).start()
    with pytest.raises(TransportError, match=r"cannot be read: xenconsole: Could not lock /var/lock/xenconsole.2: .*\n  hint: "):
        reader.wait_stage("login", Deadline(10))
    assert reader.death is None
    reader.close()


def test_a_guest_may_print_messages_of_xenconsole(tmp_path: Path) -> None:
    words = b"starting\r\nxenconsole: Could not lock it: no\r\n"
    reader = ConsoleReader(ConsoleStream(ReplayStream(words)), tmp_path / "c", tables=FREEBSD).start()
    with pytest.raises(GuestDied):
        reader.wait_stage("login", Deadline(10))
    reader.close()


class Busy(ReplayStream):
    """A xenconsole that exits only at the second Ctrl-]."""

    def __init__(self) -> None:
        super().__init__(b"", end="silence")
        self.gone = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.written == b"\x1d\x1d":
            self.gone = True
            super().close()


def test_leave_waits_for_the_end_of_xenconsole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenconsole, "_ESCAPE_SECONDS", 0.2)
    busy = Busy()
    client = ConsoleStream(busy)
    reader = ConsoleReader(client, tmp_path / "c", tables=FREEBSD).start()
    reader.expect_end()
    client.leave()
    assert busy.gone, "xenconsole must exit; otherwise it keeps the console"
    reader.close()


def test_identity_has_no_numbers() -> None:
    one = deaths.Death("panic", "page 0xdeadbeef of 12")
    two = deaths.Death("panic", "page 0xfeedface of 7")
    assert one.identity == two.identity


def test_plain_strips_escape_sequences() -> None:
    assert plain("a\x1b[31mred\x1b]0;t\x07 \x07\x1b7\u202e") == "ared <0x07><0x202e>"
    assert decode(b"a\r\r\nb") == "a\nb"


def test_an_excerpt_omits_the_session() -> None:
    """The excerpt has the output of the guest and of its commands, without prompts and markers of the session."""
    console = (
        "fxh# fxh# fxh-begin-8bfd30dd 0 4dd8a42dc5e3f4f354d79c2014935b5a\r\n77811\r\n\r\nfxh-end-8bfd30dd\r\n"
        "fxh# pid 466 (tail), jid 0, uid 0, was killed: failed to reclaim memory\r\npid 467 (dd)\r\nfxh# "
    )

    assert excerpt(console) == ("77811\n\npid 466 (tail), jid 0, uid 0, was killed: failed to reclaim memory\npid 467 (dd)")


# -- this machine's own faults are not the guest's ------------------------------------------------------------------------


def test_a_full_disk_is_not_the_end_of_the_guest(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to("/dev/full")
    reader = play(tmp_path, PVH)
    assert reader.death is None
    with pytest.raises(InfrastructureError, match=r"cannot be read: \S+console\.log: No space left on device") as error:
        reader.wait_stage("login", Deadline(5))
    assert error.value.hint == "free some space on this machine"


def test_a_bug_of_the_reader_is_not_the_end_of_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(BootTracker, "feed", feed)
    reader = play(tmp_path, PVH)
    assert reader.death is None
    with pytest.raises(HarnessError, match="cannot be read: RuntimeError: a bug") as error:
        reader.wait_stage("login", Deadline(5))
    assert error.value.exit_code == ExitCode.HARNESS


def test_a_disk_that_takes_a_part_of_a_chunk_gets_the_rest(tmp_path: Path) -> None:
    reader = ConsoleReader(ReplayStream(PVH), tmp_path / "console.log", tables=FREEBSD)
    whole = reader._out

    class Slow:
        def write(self, data: memoryview) -> int:
            return whole.write(data[:1000])

        def close(self) -> None:
            whole.close()

    reader._out = Slow()  # type: ignore[assignment]
    reader.start().join(10)
    reader.close()
    assert (tmp_path / "console.log").read_bytes() == PVH


def test_a_console_of_many_gigabytes_is_read_in_parts(tmp_path: Path) -> None:
    """On a sparse file of 2 GB: a case that asks for all of it gets the first part."""
    reader = ConsoleReader(ReplayStream(b""), tmp_path / "console.log", tables=FREEBSD)
    with (tmp_path / "console.log").open("ab") as file:
        file.truncate(2 << 30)
    assert len(reader.since(0)) == MOST
    assert len(reader.since((2 << 30) - 5)) == 5
    reader.close()


def test_a_boot_that_prints_lines_gets_three_times_its_budget() -> None:
    silent = BootTracker(FREEBSD, first_line=9.0, scale=1.0)
    silent.feed(b"x\n", 5.0)
    assert (silent.check(8.5), silent.check(9.5)) == (None, Overrun("start", 9.5))

    slow = BootTracker(FREEBSD, first_line=9.0, scale=1.0)
    for second in range(0, 26, 2):
        slow.feed(b"x\n", float(second))
        assert slow.check(second + 1.0) is None
    assert slow.check(26.0) is None
    assert slow.check(27.5) == Overrun("start", 27.5), "silent since second 24"

    noisy = BootTracker(FREEBSD, first_line=9.0, scale=1.0)
    noisy.feed(b"x\n", 26.9)
    assert noisy.check(27.5) == Overrun("start", 27.5)
