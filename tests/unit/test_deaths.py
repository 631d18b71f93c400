# SPDX-License-Identifier: BSD-2-Clause
"""Tests which lines are a death, which of several is the cause, and the faulting function. The consoles are synthetic."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from played import EITHER, FREEBSD, LINUX, classify

from harness.console import deaths
from harness.console.backtrace import faulting_function, frames
from harness.console.identity import normalise
from harness.console.machinery import Row
from harness.console.reader import ConsoleReader
from harness.transport.replay import ReplayStream
from harness.xen import elfsymbols

CONSOLES = Path(__file__).parent.parent / "consoles"
BT = (
    "KDB: stack backtrace:\n"
    "db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe0011110000\n"
    "vpanic() at vpanic+0x151/frame 0xfffffe0011110020\n"
    "panic() at panic+0x43/frame 0xfffffe0011110040\n"
)
KERNEL = "cpuid = 1\ntime = 1700000000\n"
BOOT = "Setting hostuuid: 1-2-3.\n"
LOGIN = "\nFreeBSD/amd64 (box) (xc0)\n\nlogin: "


def f(*functions: str) -> str:
    """A backtrace of DDB with these functions, innermost first."""
    return "".join(f"{name}() at {name}+0x1{n:x}/frame 0xfffffe00111101{n:x}0\n" for n, name in enumerate(functions))


def console(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def stamped(*lines: str) -> str:
    return "".join(f"[   12.34{n:04}] {line}\n" for n, line in enumerate(lines))


def play(tmp_path: Path, data: bytes, **options: object) -> ConsoleReader:
    tables = options.pop("tables", FREEBSD)
    scale = options.pop("scale", 1.0)
    reader = ConsoleReader(
        ReplayStream(data, **options), tmp_path / "c.log", tables=tables, scale=scale  # type: ignore[arg-type]
    )  # fmt: skip
    reader.start()
    until = time.monotonic() + 60
    while reader._thread.is_alive() and reader.death is None and time.monotonic() < until:
        reader.join(0.02)
    reader.expect_end() if reader.death else None
    reader.close()
    return reader


def verdict(text: str) -> tuple[str, str, str]:
    death = classify(console(text))
    return (death.kind, death.message, death.faulting_function) if death else ("", "", "")


# -- A: lines that look like a death but are none ---------------------------------------------------------------------

OTHERS = {
    "A1": "savecore 512 - - reboot after panic: xyz: queue 7 is gone\nsavecore 512 - - writing core to /var/crash/vmcore.3\n",
    "savecore of 8 to 11": "savecore: reboot after panic: xyz: queue 7 is gone\nsavecore: writing core to /var/crash/vmcore.3\n",
    "savecore by syslog": "Feb  3 04:05:06 box savecore[512]: reboot after panic: page fault\n",
    "syslog tells of the boot before": "Feb  3 04:05:06 box kernel: panic: xyz: queue 7 is gone\nFeb  3 04:05:06 box kernel: cpuid = 1\n",
    "a daemon": "agentd[812]: panic: no such collector\nStarting cron.\n",
    "a daemon without a pid": "agentd: panic: no such collector\n",
    "a daemon, RFC 5424": "2024-02-03T04:05:06.070809+00:00 box agentd 812 - - panic: no such collector\n",
    "A3": 'panic: no such collector: "disks"\n\ngoroutine 1 [running]:\nmain.start(0xc0000a2000)\n\t/build/agent/start.go:41 +0x1c5\nexit status 2\n',
    "Go, a nil pointer": "panic: runtime error: invalid memory address or nil pointer dereference\n"
    "[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x4a1]\n\ngoroutine 7 [running]:\n",
    "Go, a second panic": "panic: first words [recovered]\n\tpanic: second words\n\ngoroutine 7 [running]:\n",
    "Go, its run-time": "panic: agent gone\n\nruntime stack:\nruntime.throw({0x1, 0x2})\n\t/usr/local/go/src/runtime/panic.go:1023 +0x5c\n",
    "Go of 1.23": "panic: no such collector\n\ngoroutine 1 gp=0xc0000061c0 m=0 mp=0x5b3e80 [running]:\nmain.start()\n",
    "a level in brackets": "[error] panic: no such collector\n",
    "an exception": "RuntimeError: panic: no such collector\n",
    "a structured log": 'level=error msg="panic: no such collector"\n',
    "the daily mail": "box kernel log messages:\n+panic: xyz: queue 7 is gone\n+cpuid = 1\n+KDB: stack backtrace:\n",
    "Perl": "panic: no arena at /usr/local/bin/collect line 41.\n",
    "a program that the kernel buries": "panic: cannot go on\npid 612 (agentd), jid 0, uid 0: exited on signal 6 (core dumped)\n",
    "A5": "step 4 of 9 [panic: drill without a guest] skipped\n",
    "a test's name": "ok 7 - panic: is answered\nnot ok 8 - panic: twice\n",
    "pytest": "test_drill.py::test_it[panic: one-2] PASSED\n",
    "a title": "hit 'panic: xyz: queue 7 is gone' bug, see the list\n",
    "a title in double quotes": 'Known: "panic: xyz: queue 7 is gone" (2 reports)\n',
    "a title in typographic quotes": "Known: “panic: xyz: queue 7 is gone”\n",
    "a title in brackets": "known bugs (panic: xyz: queue 7 is gone, trap 12)\n",
    "a report's subject": "Subject: panic: xyz: queue 7 is gone\nbug 1234 - panic: xyz again\n",
    "prose": "the last reboot was after a panic: see /var/crash\n",
    "a typed command": "root@box:~ # echo panic: xyz\npanic: xyz\nroot@box:~ # ",
    "a trace of sh": "+ logger -t drill panic: xyz\n",
    "a source line": "drill/start.c:41: panic: is not called here\n",
    "a script, and rc continues": "panic: no configuration found\nStarting cron.\nStarting sshd.\n",
    "nothing but rc's next words": "panic: no configuration found\n",
    "a sysctl": "debug.kdb.panic: 0\nkern.panic_reboot_wait_time: 15\n",
    "another word": "mypanic: no\nno-panic: yes\nmachdep.panic: off\n",
    "a trap's name in quotes": "expected 'Fatal trap 12: page fault while in kernel mode' in the log\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ConsoleReader]]:
    """Three readers for each row: one chunk, small chunks, and 0.6 s of silence before `login:`. All run at the same time."""
    directory, readers = tmp_path_factory.mktemp("others"), {}
    for number, (name, words) in enumerate(OTHERS.items()):
        data = console(BOOT + words + LOGIN)
        readers[name] = [
            ConsoleReader(ReplayStream(data, end="silence", **options), directory / f"{number}-{n}", tables=FREEBSD).start()  # type: ignore[arg-type]
            for n, options in enumerate(({}, {"sizes": (9,)}, {"sizes": (len(console(BOOT + words)), 4096), "pace": 0.6}))
        ]
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(reader.stage == "login" for row in readers.values() for reader in row):
        time.sleep(0.05)
    time.sleep(2)
    for row in readers.values():
        for reader in row:
            reader.close()
    return readers


@pytest.mark.parametrize("name", OTHERS)
def test_quotes_of_programs_are_no_death(others: dict[str, list[ConsoleReader]], name: str) -> None:
    assert classify(console(BOOT + OTHERS[name] + LOGIN)) is None
    for reader in others[name]:
        assert reader.death is None
        assert [stage.name for stage in reader.stages] == ["rc", "login"]


NAMED = [name for name in OTHERS if name not in ("a script, and rc continues", "nothing but rc's next words")]


@pytest.mark.parametrize("name", NAMED)
def test_quotes_with_a_program_s_name_are_no_death_in_silence(tmp_path: Path, name: str) -> None:
    assert classify(console(BOOT + OTHERS[name])) is None
    assert play(tmp_path, console(BOOT + OTHERS[name])).death.kind == "eof"  # type: ignore[union-attr]


def test_a_real_panic_after_a_quoted_one(tmp_path: Path) -> None:
    for quote in ("A1", "A3", "A5", "a script, and rc continues"):
        text = BOOT + OTHERS[quote] + "panic: xyz: queue 8 is gone\n" + KERNEL + BT + f("xyz_drain") + "Uptime: 9s\n"
        assert verdict(text) == ("panic", "xyz: queue 8 is gone", "xyz_drain")
        death = play(tmp_path, console(text), end="silence").death if quote == "A1" else play(tmp_path, console(text)).death
        assert death is not None
        assert (death.message, death.faulting_function) == ("xyz: queue 8 is gone", "xyz_drain")
        assert "queue 8 is gone" in death.excerpt


def test_a_panic_at_a_login_prompt_is_one() -> None:
    for before in ("login: ", "box login: root\nPassword:", "root@box:~ # ", "$ "):
        assert verdict(before + "panic: xyz: queue 7 is gone\n" + KERNEL)[:2] == ("panic", "xyz: queue 7 is gone")


# -- B: deaths that begin or end without a line end -------------------------------------------------------------------

BEFORE = {
    "B1": "Loading kernel modules:.",
    "B2": "copied 40 blocks",
    "a word and a blank": "Setting hostname ",
    "a number": "debug.kdb.panic: 0",
    "an underscore": "half a word_",
    "a percentage": "fsck 20%",
    "a bracket": "[##########",
    "a daemon's line": "agentd[812]: writing",
    "a prompt": "root@box:~ # ",
    "a dot after a word": "Starting devd.",
    "dots": "Waiting for a disk....",
}  # fmt: skip
FOLLOWS = {
    "cpuid": "cpuid = 1\n",
    "time": "time = 1700000000\n",
    "backtrace": BT,
    "uptime": "Uptime: 9s\n",
    "debugger": "KDB: enter: panic\n[ thread pid 1 tid 2 ]\nStopped at      kdb_enter+0x37: movq $0,0x1(%rip)\n",
    "prompt": "db> ",
    "reboot": "Automatic reboot in 15 seconds - press a key on the console to abort\n",
    "dump": "Dumping 80 out of 500 MB:..20%",
    "registers": "  x0: ffffa00000123456\n  x1: 0000000000000010\n",
    "stack without DDB": "#0 0xffffffff804e7cd5 at xyz_drain+0x65\n",
}  # fmt: skip


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("after", FOLLOWS.values(), ids=FOLLOWS)
def test_a_panic_after_output_without_a_line_end(before: str, after: str) -> None:
    kind, message, _ = verdict(BOOT + before + "panic: xyz: queue 7 is gone\n" + after)
    assert (kind, message) == ("panic", "xyz: queue 7 is gone")


def test_the_reader_finds_a_panic_after_a_word(tmp_path: Path) -> None:
    """The message directly follows other output (B2)."""
    data = console(BOOT + "copied 40 blockspanic: xyz: queue 7 is gone\n" + KERNEL + BT + f("xyz_drain") + "Uptime: 9s\n")
    for options in ({}, {"end": "silence"}, {"sizes": (1,)}):
        death = play(tmp_path, data, **options).death
        assert death is not None
        assert (death.kind, death.message, death.faulting_function, death.stage) == (
            "panic",
            "xyz: queue 7 is gone",
            "xyz_drain",
            "rc",
        )


CUT = {
    "B3": ("panic: xyz: queue 7 is go", "panic", "xyz: queue 7 is go"),
    "behind dots": ("waiting....panic: xyz: queue 7 is go", "panic", "xyz: queue 7 is go"),
    "behind a word": ("copied 40 blockspanic: xyz: queue 7 is go", "panic", "xyz: queue 7 is go"),
    "with its line end": ("panic: xyz: queue 7 is gone\n", "panic", "xyz: queue 7 is gone"),
    "before its message": ("panic: ", "panic", ""),
    "a trap": ("\nFatal trap 12: page fault while in ker", "trap", "Fatal trap 12: page fault while in ker"),
    "in the line after it": ("panic: xyz: queue 7 is gone\ncpuid", "panic", "xyz: queue 7 is gone"),
    "Linux": ("[   12.345678] Kernel panic - not syncing: xyz: que", "linux-panic", "Kernel panic - not syncing: xyz: que"),
    "Linux, an oops": ("[   12.345678] BUG: kernel NULL pointer derefere", "linux-oops", "BUG: kernel NULL pointer derefere"),
}  # fmt: skip


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], ConsoleReader]:
    directory = tmp_path_factory.mktemp("cut")
    readers = {
        (name, end): ConsoleReader(ReplayStream(console(BOOT + row[0]), end=end), directory / f"{n}-{end}", tables=FREEBSD).start()
        for n, (name, row) in enumerate(CUT.items())
        for end in ("eof", "silence")
    }
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(reader.death for reader in readers.values()):
        time.sleep(0.05)
    for reader in readers.values():
        reader.close()
    return readers


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("end", ["eof", "silence"])
def test_a_death_whose_line_has_no_end(cut: dict[tuple[str, str], ConsoleReader], name: str, end: str) -> None:
    death = cut[name, end].death
    assert death is not None
    assert (death.kind, death.message, death.stage) == (CUT[name][1], CUT[name][2], "rc")


def test_a_line_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    """The line arrives in pieces, 0.6 s apart, and turns out to be another program's."""
    data = console(BOOT) + b"panic: no such coll" + console("ector\n\ngoroutine 1 [running]:\n" + LOGIN)
    sizes = (len(console(BOOT)) + 19, 10, 4096)
    reader = play(tmp_path, data, sizes=sizes, pace=0.6)
    assert reader.death is not None
    assert (reader.death.kind, reader.stage) == ("eof", "login")


@pytest.mark.parametrize(
    "stamp", ["", "[2024-02-03 04:05:06] ", "[2024-02-03 04:05:06.789] ", "[   12.345678] ", "[0000001234567890] ", "[000000123456789a] "]
)  # fmt: skip
@pytest.mark.parametrize(
    "words", ["Domain 3 (vcpu#0) crashed on cpu#1:", "Domain 3 reported crashed by domain 1 on cpu#0:"]
)  # fmt: skip
def test_xen_reports_a_crash(tmp_path: Path, stamp: str, words: str) -> None:
    """With each format of console_timestamps, message and identity contain no time (B4)."""
    death = play(tmp_path, console(f"(XEN) {stamp}{words}\n"), end="silence").death
    assert death is not None
    assert (death.kind, death.message) == ("crash", f"(XEN) {words.removesuffix(':')}")


@pytest.mark.parametrize("stamp", ["", "[2024-02-03 04:05:06.789] ", "[   12.345678] "])
def test_xen_reports_its_own_panic(tmp_path: Path, stamp: str) -> None:
    """The Xen of the PV shim panics."""
    lines = ("", "*" * 40, "Panic on CPU 0:", "Could not build d1", "*" * 40, "", "Reboot in five seconds...")
    death = play(tmp_path, console("".join(f"(XEN) {stamp}{line}\n" for line in lines)), end="silence").death
    assert death is not None
    assert (death.kind, death.message) == ("crash", "(XEN) Panic on CPU 0: Could not build d1")


def test_a_message_of_xen_after_output_without_a_line_end() -> None:
    assert verdict("half a word(XEN) Domain 3 (vcpu#0) crashed on cpu#1:\n")[0] == "crash"


@pytest.mark.parametrize("message", ["", "42"])
def test_a_panic_whose_message_says_nothing(message: str) -> None:
    text = BOOT + f"panic: {message}\n" + KERNEL + BT + f("xyz_drain")
    assert verdict(text) == ("panic", message, "xyz_drain")


def test_a_prompt_is_judged_by_the_boot_before_it() -> None:
    kernel = "Copyright (c) 1992-2021 The FreeBSD Project.\n"
    for text in (
        LOGIN + "root\nPassword:",
        LOGIN + "root\nroot@box:~ # echo OK; cat\nOK ",
        LOGIN + "root\nbox # geli attach x\nEnter passphrase: ",
    ):
        assert classify(console(kernel + BOOT + text)) is None
        assert classify(console(text)) is None
    again = LOGIN + "FreeBSD/amd64 EFI loader, Revision 3.0\ncan't load 'kernel'\nOK "
    assert verdict(kernel + again)[:2] == ("loader", "loader stopped: can't load 'kernel'")
    assert classify(b"root\r\nPassword:", "login") is None


# -- C: several deaths in one report ----------------------------------------------------------------------------------

TRAP = "\nFatal trap 12: page fault while in kernel mode\ncpuid = 1; apic id = 01\nfault virtual address\t= 0x10\ninstruction pointer\t= 0x20:0xffffffff80b1f0a4\n"
PANIC = "panic: xyz: queue 7 is gone\ncpuid = 1\n"
DUMP = "Uptime: 9s\nDumping 80 out of 500 MB:..20%\n"
SEVERAL = {
    "C1": (PANIC + BT + f("xyz_drain") + DUMP + TRAP + BT + f("trap_fatal", "calltrap", "xyz_dump"),
           "panic", "xyz: queue 7 is gone", "xyz_drain", ("Fatal trap 12: page fault while in kernel mode",)),
    "C2, the same text twice": (PANIC + BT + f("xyz_drain") + "Uptime: 9s\n" + PANIC + BT + f("xyz_other"),
                                "panic", "xyz: queue 7 is gone", "xyz_drain", ()),
    "each line twice": ("".join(2 * (line + "\n") for line in (PANIC + BT + f("xyz_drain", "xyz_close")).splitlines()),
                        "panic", "xyz: queue 7 is gone", "xyz_drain", ()),
    "C3": (PANIC + BT + f("xyz_drain") + "KDB: enter: panic\ndb> panic\npanic: from debugger\ncpuid = 1\n" + BT + f("db_panic", "db_command"),
           "panic", "xyz: queue 7 is gone", "xyz_drain", ()),
    "a trap, then the debugger's panic": (TRAP + "KDB: enter: page fault\nStopped at      xyz_poll+0x1a:  movl (%rax),%ebx\ndb> panic\npanic: from debugger\ncpuid = 0\n",
                                          "trap", "Fatal trap 12: page fault while in kernel mode", "xyz_poll", ()),
    "a trap and its own panic": (TRAP + "panic: page fault\ncpuid = 1\n" + BT + f("trap_fatal", "trap_pfault", "trap", "calltrap", "xyz_poll"),
                                 "trap", "Fatal trap 12: page fault while in kernel mode", "xyz_poll", ()),
    "a trap, its panic, then another": (TRAP + "panic: page fault\ncpuid = 1\n" + BT + f("trap_fatal", "calltrap", "xyz_poll") + DUMP
                                        + "panic: bufs: still dirty\ncpuid = 1\n" + BT + f("xyz_sync"),
                                        "trap", "Fatal trap 12: page fault while in kernel mode", "xyz_poll", ("panic: bufs: still dirty",)),
    "a double panic": (PANIC + BT + f("xyz_drain") + "panic: bufs: still dirty\ncpuid = 1\n" + BT + f("xyz_sync"),
                       "double-panic", "xyz: queue 7 is gone / bufs: still dirty", "xyz_drain", ()),
    "C1, and the trap's own panic": (PANIC + BT + f("xyz_drain") + DUMP + TRAP + "panic: page fault\ncpuid = 1\n" + BT + f("trap_fatal", "calltrap", "xyz_dump"),
                                     "panic", "xyz: queue 7 is gone", "xyz_drain", ("Fatal trap 12: page fault while in kernel mode",)),
    "a panic without a trace, then a trap with one": (PANIC + TRAP + BT + f("trap_fatal", "calltrap", "xyz_dump"),
                                                      "panic", "xyz: queue 7 is gone", "", ("Fatal trap 12: page fault while in kernel mode",)),
    "a complaint before it": ("lock order reversal:\n" + BT.split("vpanic")[0] + f("witness_checkorder", "xyz_attach") + PANIC + BT + f("xyz_drain"),
                              "panic", "xyz: queue 7 is gone", "xyz_drain", ()),
    "the debugger shows other threads": (PANIC + BT + f("xyz_drain") + "db> bt 100\nTracing pid 100 tid 7\n" + f("sched_switch", "mi_switch", "xyz_idle"),
                                         "panic", "xyz: queue 7 is gone", "xyz_drain", ()),
    "a panic, then Xen's words": (PANIC + BT + f("xyz_drain") + "(XEN) Domain 3 (vcpu#0) crashed on cpu#1:\n",
                                  "panic", "xyz: queue 7 is gone", "xyz_drain", ("(XEN) Domain 3 (vcpu#0) crashed on cpu#1",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_the_first_death_is_the_cause(tmp_path: Path, name: str) -> None:
    text, *wanted = SEVERAL[name]
    for death in (classify(console(text)), play(tmp_path, console(text), sizes=(97,)).death):
        assert death is not None
        assert [death.kind, death.message, death.faulting_function, death.later] == wanted
    for message in wanted[3]:
        assert f"; then {message}" in death.summary
        assert message not in death.identity


# -- D: the faulting function -----------------------------------------------------------------------------------------

GUILTY = {
    "KASAN": (f("__asan_load8_noabort", "xyz_drain"), "xyz_drain"),
    "KMSAN": (f("kmsan_report_hook", "kmsan_copyout", "xyz_ioctl"), "xyz_ioctl"),
    "KMSAN's warning": (f("__msan_warning", "xyz_ioctl"), "xyz_ioctl"),
    "KASAN's copies": (f("kasan_report", "__asan_storeN_noabort", "kasan_memcpy", "xyz_rx"), "xyz_rx"),
    "KCSAN": (f("kcsan_access", "__tsan_write4", "xyz_tx"), "xyz_tx"),
    "UBSan": (f("Report", "HandleOverflow", "__ubsan_handle_add_overflow", "xyz_sum"), "xyz_sum"),
    "an assertion": (f("__mtx_assert", "xyz_drain"), "xyz_drain"),
    "a lock": (f("__mtx_lock_flags", "xyz_drain"), "xyz_drain"),
    "rwlock": (f("__rw_wlock_hard", "_rw_wlock_cookie", "xyz_drain"), "xyz_drain"),
    "a lock in freed memory": (f("trap_fatal", "trap_pfault", "trap", "calltrap", "rw_wowned", "xyz_drain"), "xyz_drain"),
    "a callout": (f("trap_fatal", "trap_pfault", "trap", "calltrap", "callout_lock", "_callout_stop_safe", "xyz_stop"), "xyz_stop"),
    "an epoch": (f("epoch_block_handler_preempt", "ck_epoch_synchronize_wait", "epoch_wait_preempt", "xyz_free"), "xyz_free"),
    "a vnode's rename": (f("vop_rename_pre", "VOP_RENAME_APV", "xyz_rename"), "xyz_rename"),
    "UMA": (f("slab_alloc_item", "zone_import", "cache_alloc_retry", "uma_zalloc_arg", "m_getm2", "xyz_rx"), "xyz_rx"),
    "bus_dma": (f("_busdma_dflt_lock", "xyz_load"), "xyz_load"),
    "destroyed": (f("lock_destroy", "sx_destroy", "xyz_detach"), "xyz_detach"),
    "witness": (f("witness_unlock", "__mtx_unlock_flags", "xyz_intr"), "xyz_intr"),
    "rmlock": (f("_rm_assert", "_rm_rlock_debug", "xyz_lookup"), "xyz_lookup"),
    "lockmgr": (f("lockmgr_xlock_hard", "__lockmgr_args", "vop_stdlock", "VOP_LOCK1_APV", "_vn_lock", "xyz_vget"), "xyz_vget"),
    "a sleep": (f("sleepq_add", "_sleep", "xyz_wait"), "xyz_wait"),
    "a sleeping thread": (f("propagate_priority", "turnstile_wait", "__mtx_lock_sleep", "__mtx_lock_flags", "xyz_tick"), "xyz_tick"),
    "double fault": (f("dblfault_handler", "Xdblfault") + "--- trap 0x17, rip = 0x1, rsp = 0x2, rbp = 0x3 ---\n" + f("xyz_recurse"), "xyz_recurse"),
    "NMI": (f("trap_fatal", "trap", "nmi_calltrap", "xyz_spin"), "xyz_spin"),
    "NMI to the debugger": (f("nmi_call_kdb", "nmi_call_kdb_smp", "trap", "nmi_calltrap", "xyz_spin"), "xyz_spin"),
    "machine check": (f("mca_intr", "mchk_calltrap", "xyz_spin"), "xyz_spin"),
    "INVARIANTS": (f("kassert_panic", "xyz_hole"), "xyz_hole"),
    "ZFS": (f("spl_panic", "xyz_hole"), "xyz_hole"),
    "vnodes": (f("vop_panic", "xyz_hole"), "xyz_hole"),
    "a count": (f("_refcount_update_saturated", "xyz_hole"), "xyz_hole"),
    "a subsystem's assertion": (f("vm_page_assert_locked", "xyz_page"), "xyz_page"),
    "a vnode's assertion": (f("vfs_badlock", "assert_vop_elocked", "vop_lookup_debugpre", "xyz_lookup"), "xyz_lookup"),
    "a copy": (f("trap_fatal", "trap_pfault", "trap", "calltrap", "memmove_erms", "m_copydata", "xyz_send"), "xyz_send"),
    "a copy to a program": (f("vm_fault", "vm_fault_trap", "trap_pfault", "trap", "calltrap", "copyout_nosmap_erms", "uiomove_faultflag", "xyz_read"), "xyz_read"),
    "a text": (f("trap_fatal", "trap_pfault", "trap", "calltrap", "strlen", "kvprintf", "vsnprintf", "snprintf", "xyz_name"), "xyz_name"),
    "a double free": (f("uma_dbg_free", "uma_zfree_arg", "free", "xyz_detach"), "xyz_detach"),
    "used after free": (f("mtrash_ctor", "item_ctor", "malloc", "xyz_alloc"), "xyz_alloc"),
    "a smashed stack": (f("__stack_chk_fail", "xyz_parse"), "xyz_parse"),
    "arm64": ("data_abort() at data_abort+0x1c8\ndo_el1h_sync() at do_el1h_sync+0x8c\nhandle_el1h_sync() at handle_el1h_sync+0x68\n--- exception, esr 0x96000004\nxyz_poll() at xyz_poll+0x10\n", "xyz_poll"),
    "arm64's innermost frame": ("KDB: stack backtrace:\ndb_trace_self() at db_trace_self\ndb_trace_self_wrapper() at db_trace_self_wrapper+0x38\nvpanic() at vpanic+0x1a4\npanic() at panic+0x48\nxyz_poll() at xyz_poll+0x10\n", "xyz_poll"),
    "on purpose": (f("kdb_sysctl_panic", "sysctl_root_handler_locked"), "kdb_sysctl_panic"),
    "a driver of a like name": (f("trapeze_attach", "panicky_attach"), "trapeze_attach"),
    "all of it is machinery": (f("trap_fatal", "calltrap"), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", GUILTY)
def test_the_faulting_function_is_no_machinery(name: str) -> None:
    trace, wanted = GUILTY[name]
    assert verdict("panic: xyz\ncpuid = 1\n" + BT + trace)[2] == wanted
    assert verdict(TRAP + "panic: page fault\ncpuid = 1\n" + BT + trace)[2] == wanted


@pytest.mark.parametrize("row", EITHER.machinery.rows, ids=lambda row: row.what)
def test_each_row_of_the_machinery_has_samples(row: Row) -> None:
    for sample in row.samples.split():
        assert re.fullmatch(row.pattern, sample), sample
        assert sample in EITHER.machinery


INNOCENT = (
    "xyz_drain xyz_lock xyz_trap xbd_attach xn_rxeof blkif_open netfront_probe tcp_input ip_output soreceive_generic ffs_write bufwrite "
    "vm_map_delete vm_page_free_toq pmap_remove_pages sysctl_root_handler_locked kdb_sysctl_panic fpurestore_xrstor3264 device_attach "
    "sbuf_new_for_sysctl kernel_sysctl amd64_syscall fast_syscall_common ithread_loop fork_exit zfs_write zio_execute dmu_tx_assign "
    "sysrq_handle_crash __handle_sysrq tcp_v4_rcv xennet_poll blkfront_probe ext4_writepages do_syscall_64 kthread rmdir_it stripe_io "
    "copyright locker_open"
)


def test_functions_that_do_something_are_no_machinery() -> None:
    assert [function for function in INNOCENT.split() if function in EITHER.machinery] == []


NEXT = "xyz_next_function() at xyz_next_function/frame 0xfffffe0011110060\n"


def test_a_return_address_at_a_function_s_first_byte() -> None:
    """The frame names the function after the caller of panic(). The caller's own caller must not be blamed (D7)."""
    death = classify(console("panic: xyz: no memory\n" + KERNEL + BT + NEXT + f("device_attach")))
    assert death is not None
    assert [(frame.function, frame.before) for frame in death.frames[-3:]] == [
        ("panic", False), ("xyz_next_function", True), ("device_attach", False)
    ]  # fmt: skip
    assert death.faulting_function == "before xyz_next_function"
    assert death.summary == "panic: xyz: no memory in the function before xyz_next_function"
    stack = "#1 0xffffffff804a4861 at vpanic+0x151\n#2 0xffffffff804a4703 at panic+0x43\n#3 0xffffffff80311200 at xyz_next_function+0\n#4 0xffffffff80311400 at device_attach+0x43\n"
    assert verdict("panic: xyz: no memory\n" + KERNEL + "KDB: stack backtrace:\n" + stack)[2] == "before xyz_next_function"


def test_a_trap_at_a_function_s_first_byte_is_that_function_s() -> None:
    trace = (
        BT
        + f("trap_fatal", "trap", "calltrap")
        + "--- trap 0xc, rip = 0xffffffff80311200, rsp = 0x1, rbp = 0x2 ---\n"
        + NEXT
        + f("xyz_caller")
    )
    assert verdict(TRAP + "panic: page fault\ncpuid = 1\n" + trace)[2] == "xyz_next_function"


NAMELESS = "??() at 0xffffffff80311111/frame 0xffffffff81400000\n??() at 0xffffffff80311321/frame 0xffffffff81400010\n"


def test_nameless_frames_keep_their_address() -> None:
    """Frames without a name have their address (D6)."""
    death = classify(console("panic: xyz\n" + KERNEL + "KDB: stack backtrace:\n" + NAMELESS))
    assert death is not None
    assert [frame.name for frame in death.frames] == ["0xffffffff80311111", "0xffffffff80311321"]
    assert death.faulting_function == "", "the first frame may be the debugger's own"
    death = classify(console("panic: xyz\n" + KERNEL + BT + NAMELESS + f("device_attach")))
    assert death is not None
    assert death.faulting_function == "0xffffffff80311111"
    assert death.summary == "panic: xyz in the function at 0xffffffff80311111"
    assert death.identity.endswith("panic: xyz @ N")


def elf(functions: dict[str, int], text: int = 0xFFFFFFFF80311000, size: int = 0x1000) -> bytes:
    """A kernel file with functions only: section 1 is the code, 2 the symbols, 3 their names."""
    import struct

    names = b"\0" + b"".join(name.encode() + b"\0" for name in functions)
    rows = [struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)]
    rows += [
        struct.pack("<IBBHQQ", names.index(b"\0" + name.encode() + b"\0") + 1, 0x12, 0, 1, at, 0) for name, at in functions.items()
    ]
    symbols = b"".join(rows)
    at = 64
    sections = [
        (0,) * 10,
        (0, 1, 6, text, 0, size, 0, 0, 16, 0),
        (0, 2, 0, 0, at, len(symbols), 3, 1, 8, 24),
        (0, 3, 0, 0, at + len(symbols), len(names), 0, 0, 1, 0),
    ]
    head = (
        b"\x7fELF\2\1\1"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, at + len(symbols) + len(names), 0, 64, 0, 0, 64, 4, 0)
    )
    return head + symbols + names + b"".join(struct.pack("<IIQQQQIIQQ", *section) for section in sections)


FUNCTIONS = {"db_trace_self_wrapper": 0xFFFFFFFF80311100, "xyz_attach": 0xFFFFFFFF80311300, "xyz_next_function": 0xFFFFFFFF80311400, "panic": 0xFFFFFFFF80311500}  # fmt: skip


def test_a_kernel_file_names_frames(tmp_path: Path) -> None:
    symbols = elfsymbols.functions(elf(FUNCTIONS))
    assert symbols is not None
    assert symbols.at(0xFFFFFFFF803113FF) == ("xyz_attach", 0xFFFFFFFF80311300)
    assert symbols.at(0xFFFFFFFF80311000) is None
    assert symbols.at(0xFFFFFFFF80312000) is None
    for trace, wanted in ((BT + NEXT + f("device_attach"), "xyz_attach"), ("KDB: stack backtrace:\n" + NAMELESS, "xyz_attach")):
        data = console("panic: xyz\n" + KERNEL + trace + "Uptime: 3s\n")
        asked: list[int] = []
        reader = ConsoleReader(
            ReplayStream(data), tmp_path / "c.log", tables=FREEBSD, symbols=lambda asked=asked: asked.append(1) or symbols  # type: ignore[misc]
        )  # fmt: skip
        reader.start().join(10)
        reader.close()
        assert reader.death is not None
        assert (reader.death.faulting_function, asked) == (wanted, [1])
        assert not any(frame.before or not frame.function for frame in reader.death.frames)
        assert reader.death.nameless == (2 if NAMELESS in trace else 0), "the kernel itself printed these without a name"


def test_a_damaged_kernel_file_names_nothing() -> None:
    whole = elf(FUNCTIONS)
    rng = random.Random(1)
    for _ in range(300):
        at = rng.randrange(len(whole))
        elfsymbols.functions(whole[:at])
        elfsymbols.functions(whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :])
    assert elfsymbols.functions(b"") is None


@pytest.mark.parametrize(
    ("line", "wanted"),
    [("Stopped at      xyz_drain+0x10:\tmovq\t$0,0x1234(%rip)", "xyz_drain"), ("Stopped at      xyz_drain:\tpushq\t%rbp", "xyz_drain"),
     ("Stopped at xyz_drain+0x10: undefined", "xyz_drain"), ("Stopped at      kdb_enter+0x37: movq $0,0x1(%rip)", ""),
     ("Stopped at      0xffffffff80311111:\tmovl (%rax),%ebx", "")],
)  # fmt: skip
def test_where_the_debugger_stopped(line: str, wanted: str) -> None:
    """Without a backtrace, the line `Stopped at` gives the function (D5)."""
    death = classify(console(TRAP + f"[ thread pid 1 tid 2 ]\n{line}\ndb> "))
    assert death is not None
    assert (death.faulting_function, len(death.frames)) == (wanted, 1)
    traced = deaths.with_backtrace(
        death, "bt\r\nTracing pid 1 tid 2\r\n" + f("kdb_enter", "xyz_deep", "xyz_outer") + "db> ", FREEBSD
    )
    assert (traced.faulting_function, len(traced.frames)) == ("xyz_deep", 3)


# -- I: Linux ---------------------------------------------------------------------------------------------------------

REST = ("CPU: 1 PID: 7 Comm: xyz Not tainted 6.1.0 #1", "RIP: 0010:xyz_poll+0x1a/0x90", "Call Trace:", " <IRQ>", " caller_of_xyz+0x2b/0x1b0",
        " </IRQ>", "---[ end trace 0000000000000000 ]---")  # fmt: skip
FATAL = "Kernel panic - not syncing: Fatal exception in interrupt"
OOPSES = {
    "I1": (("BUG: kernel NULL pointer dereference, address: 0000000000000010", "Oops: 0000 [#1] SMP NOPTI"), "BUG: kernel NULL pointer dereference, address: 0000000000000010"),
    "4.x, NULL": (("BUG: unable to handle kernel NULL pointer dereference at 0000000000000010", "IP: xyz_poll+0x1a/0x90", "PGD 0 P4D 0", "Oops: 0000 [#1] SMP"), "BUG: unable to handle kernel NULL pointer dereference at 0000000000000010"),
    "I4": (("BUG: unable to handle page fault for address: ffff888000000010", "#PF: supervisor read access in kernel mode", "Oops: 0000 [#1] PREEMPT SMP"), "BUG: unable to handle page fault for address: ffff888000000010"),
    "I2 BUG()": (("------------[ cut here ]------------", "kernel BUG at drivers/xyz/xyz.c:44!", "invalid opcode: 0000 [#1] SMP"), "kernel BUG at drivers/xyz/xyz.c:44!"),
    "BUG() of 6.8": (("kernel BUG at drivers/xyz/xyz.c:44!", "Oops: invalid opcode: 0000 [#1] PREEMPT SMP NOPTI"), "kernel BUG at drivers/xyz/xyz.c:44!"),
    "I2 divide": (("divide error: 0000 [#1] SMP",), "divide error: 0000 [#1] SMP"),
    "divide of 6.8": (("Oops: divide error: 0000 [#1] SMP",), "Oops: divide error: 0000 [#1] SMP"),
    "general protection": (("general protection fault: 0000 [#1] SMP",), "general protection fault: 0000 [#1] SMP"),
    "general protection of 5.6": (("general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP",), "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP"),
    "general protection of 6.8": (("Oops: general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP",), "Oops: general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP"),
    "stack segment": (("stack segment: 0000 [#1] SMP",), "stack segment: 0000 [#1] SMP"),
    "alignment": (("alignment check: 0000 [#1] SMP",), "alignment check: 0000 [#1] SMP"),
    "int3": (("int3: 0000 [#1] SMP",), "int3: 0000 [#1] SMP"),
    "page table": (("Corrupted page table at address 7f0000000010", "Bad pagetable: 000f [#1] SMP"), "Bad pagetable: 000f [#1] SMP"),
    "arm64": (("Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010", "Mem abort info:", "Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP"), "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010"),
    "double fault": (("traps: PANIC: double fault, error_code: 0x0", "double fault: 0000 [#1] SMP"), "PANIC: double fault, error_code: 0x0"),
    "I3 soft lockup": (("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [xyz:7]", "Modules linked in: xyz"), "BUG: soft lockup - CPU#1 stuck for 22s! [xyz:7]"),
    "soft lockup of 4.4": (("NMI watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [xyz:7]",), "BUG: soft lockup - CPU#1 stuck for 22s! [xyz:7]"),
    "RCU stall": (("rcu: INFO: rcu_sched self-detected stall on CPU", "rcu: \t1-....: (5250 ticks this GP) idle=0/1/0x4", "NMI backtrace for cpu 1"), "INFO: rcu_sched self-detected stall on CPU"),
    "RCU stall of 4.x": (("INFO: rcu_sched detected stalls on CPUs/tasks: { 1} (detected by 0, t=5252 jiffies)",), "INFO: rcu_sched detected stalls on CPUs/tasks: { 1} (detected by 0, t=5252 jiffies)"),
    "RCU stall, expedited": (("rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-...D } 21 jiffies s: 5 root: 0x2/.",), "INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-...D } 21 jiffies s: 5 root: 0x2/."),
    "hung task": (("INFO: task xyz:77 blocked for more than 120 seconds.", "      Not tainted 6.1.0 #1", "task:xyz             state:D stack:0     pid:77"), "INFO: task xyz:77 blocked for more than 120 seconds."),
    "hard lockup": (("NMI watchdog: Watchdog detected hard LOCKUP on cpu 1",), "Watchdog detected hard LOCKUP on cpu 1"),
    "KASAN": (("BUG: KASAN: slab-use-after-free in xyz_poll+0x1a/0x90", "Read of size 8 at addr ffff888000000010 by task xyz/7"), "BUG: KASAN: slab-use-after-free in xyz_poll+0x1a/0x90"),
    "a stack's guard page": (("BUG: TASK stack guard page was hit at 0000000012345678 (stack is 0000000012345678..0000000012349678)", "stack guard page: 0000 [#1] PREEMPT SMP"), "BUG: TASK stack guard page was hit at 0000000012345678 (stack is 0000000012345678..0000000012349678)"),
    "i386": (("BUG: kernel NULL pointer dereference, address: 00000010", "*pde = 00000000", "Oops: 0000 [#1] SMP"), "BUG: kernel NULL pointer dereference, address: 00000010"),
    "i386, PAE": (("BUG: kernel NULL pointer dereference, address: 00000010", "*pdpt = 0000000012345001 *pde = 0000000000000000", "Oops: 0000 [#1] SMP"), "BUG: kernel NULL pointer dereference, address: 00000010"),
    "arm64 of 4.x": (("Unable to handle kernel paging request at virtual address ffff000000000010", "[ffff000000000010] pgd=0000000000000000", "Internal error: Oops: 96000004 [#1] SMP"), "Unable to handle kernel paging request at virtual address ffff000000000010"),
    "scheduling while atomic": (("BUG: scheduling while atomic: xyz/7/0x00000002",), "BUG: scheduling while atomic: xyz/7/0x00000002"),
}  # fmt: skip


@pytest.mark.parametrize("name", OOPSES)
def test_linux_s_oops_is_the_cause(name: str) -> None:
    headline, message = OOPSES[name]
    for end in ((), (FATAL,), ("Kernel panic - not syncing: Fatal exception",)):
        text = stamped("xyz: link is up", *headline, *REST, *end)
        assert verdict(text) == ("linux-oops", message, "xyz_poll")
    bare = "".join(line + "\n" for line in (*headline, *REST))
    assert verdict(bare) == ("linux-oops", message, "xyz_poll"), (
        "lines without stamps must give the same result, since a collector's prefix may include the stamp"
    )


def test_several_oopses() -> None:
    twice = classify(console(stamped(*OOPSES["I1"][0], *REST, *(line.replace("#1", "#2") for line in OOPSES["I1"][0]), *REST)))
    other = classify(console(stamped(*OOPSES["I1"][0], *REST, *(line.replace("#1", "#2") for line in OOPSES["I4"][0]), *REST)))
    assert twice is not None
    assert other is not None
    assert (twice.message, twice.later) == (OOPSES["I1"][1], ())
    assert (other.message, other.later) == (OOPSES["I1"][1], (OOPSES["I4"][1],))


def test_an_init_that_is_killed() -> None:
    lines = ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", "CPU: 0 PID: 1 Comm: init", "Call Trace:",
             " dump_stack+0x1/0x2", " panic+0x1/0x2", " do_exit.cold+0x1/0x2", " do_group_exit+0x1/0x2", " xyz_signal+0x1/0x2")  # fmt: skip
    assert verdict(stamped("init[1]: segfault at 0 ip 0 sp 0 error 4", *lines)) == ("linux-panic", lines[0], "xyz_signal")


@pytest.mark.parametrize("name", OOPSES)
def test_linux_s_oops_is_seen_by_the_reader(tmp_path: Path, name: str) -> None:
    headline, message = OOPSES[name]
    data = console(stamped("Linux version 6.1.0", *headline, *REST, FATAL))
    death = play(tmp_path, data, tables=LINUX, sizes=(61,)).death
    assert death is not None
    assert (death.kind, death.message, death.faulting_function, death.stage) == ("linux-oops", message, "xyz_poll", "kernel")


@pytest.mark.parametrize("name", ["I3 soft lockup", "RCU stall", "hung task", "KASAN"])
def test_linux_may_survive_a_stall(tmp_path: Path, name: str) -> None:
    data = console(stamped("Linux version 6.1.0", *OOPSES[name][0], *REST) + "\ncontrol login: ")
    assert classify(data) is None
    reader = ConsoleReader(ReplayStream(data, end="silence"), tmp_path / "c.log", tables=LINUX).start()
    reader.join(1.0)
    assert reader.death is None
    reader.close()


def test_a_stall_is_a_death_in_silence(tmp_path: Path) -> None:
    data = console(stamped("Linux version 6.1.0", *OOPSES["I3 soft lockup"][0], *REST))
    death = play(tmp_path, data, tables=LINUX, end="silence").death
    assert death is not None
    assert death.faulting_function == "xyz_poll"


LINUX_OTHERS = {
    "a unit": "systemd[1]: drill.service: BUG: kernel NULL pointer dereference, address: 0\n",
    "a title": "[   12.345678] drill: known: 'BUG: soft lockup - CPU#1 stuck' is expected\n",
    "a title of a panic": "hit 'Kernel panic - not syncing: xyz' again\n",
    "a step": "step 4 of 9 [Kernel panic - not syncing: drill] skipped\n",
    "a program's own": "BUG: the configuration has no section\n",
    "a debug line": "DEBUG: unable to handle\n",
    "a warning": stamped("WARNING: CPU: 0 PID: 1 at drivers/xyz/xyz.c:4 xyz_poll+0x1a/0x90"),
    "a list's mark": "see note [#1]: later\n",
}  # fmt: skip


@pytest.mark.parametrize("words", LINUX_OTHERS.values(), ids=LINUX_OTHERS)
def test_quotes_of_programs_are_no_death_of_linux(words: str) -> None:
    assert classify(console(words)) is None
    assert classify(console(words + "\ncontrol login: ")) is None


FORMS = {
    "I5 printk's caller": "[   12.3][    T7]  xyz_poll+0x1a/0x90\n",
    "a caller on a CPU": "[   12.345678][    C1]  xyz_poll+0x1a/0x90\n",
    "I5 up to 4.10": "[   12.3]  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90\n",
    "up to 4.10, a guess before it": "[   12.3]  [<ffffffff81aabbcc>] ? xyz_old+0x1/0x9\n[   12.3]  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90 [xyz]\n",
    "I5 RIP": "RIP: 0010:xyz_poll+0x1a/0x90\n",
    "RIP up to 4.9": "[   12.3] RIP: 0010:[<ffffffff81aabbcc>]  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90 [xyz]\n",
    "RIP as Xen PV": "[   12.3] RIP: e030:xyz_poll+0x1a/0x90\n",
    "EIP": "[   12.3] EIP: xyz_poll+0x1a/0x90\n",
    "pc of arm64": "[   12.3] pc : xyz_poll+0x1a/0x90 [xyz]\n[   12.3] lr : xyz_other+0x1/0x9\n",
    "of a module": "[   12.345678]  xyz_poll+0x1a/0x90 [xyz]\n",
    "with the build's ID": "[   12.345678]  xyz_poll+0x1a/0x90 [xyz 0123456789abcdef0123456789abcdef01234567]\n",
    "arm64 of 6.13": "[   12.345678]  xyz_poll+0x1a/0x90 [xyz] (P)\n[   12.345678]  show_it+0x1/0x9 (C)\n",
    "a guess": "[   12.345678]  ? xyz_old+0x1/0x9\n[   12.345678]  xyz_poll+0x1a/0x90\n",
    "without stamps": " xyz_poll+0x1a/0x90\n",
    "with a collector's stamp": "[ 1012.345678] [   12.345678]  xyz_poll+0x1a/0x90\n",
    "with a priority": "<4>[   12.345678]  xyz_poll+0x1a/0x90\n",
    "4.4, the first of an interrupt's stack": "[   12.345678]  <IRQ>  [<ffffffff81aabbcc>] xyz_poll+0x1a/0x90\n",
    "a hung task's of 4.15": "[   12.345678] [<0>] xyz_poll+0x1a/0x90\n",
    "a copy of a function": "[   12.345678]  xyz_poll.isra.0+0x1a/0x90\n",
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_frames_of_linux(text: str) -> None:
    trace = frames(text, EITHER.machinery)
    assert faulting_function(trace, EITHER.machinery) == "xyz_poll"
    assert trace[0].offset == "0x1a"


LINUX_GUILTY = {
    "a copy": ((" memcpy_erms+0x6/0x10", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "KASAN": ((" dump_stack_lvl+0x33/0x42", " print_report+0xc5/0x620", " kasan_report+0xab/0xe0", " __asan_load8+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "UBSAN": ((" dump_stack_lvl+0x33/0x42", " ubsan_epilogue+0x5/0x40", " __ubsan_handle_shift_out_of_bounds+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "KCSAN": ((" kcsan_report+0x1/0x2", " __tsan_write4+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "KMSAN": ((" kmsan_internal_report+0x1/0x2", " __msan_warning+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a spinlock": ((" native_queued_spin_lock_slowpath+0x6/0x10", " _raw_spin_lock_irqsave+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a mutex": ((" __mutex_lock.constprop.0+0x6/0x10", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a list": ((" __list_del_entry_valid_or_report.cold+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a count": ((" refcount_warn_saturate+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a freed object": ((" kfree+0x1/0x2", " kfree_skb_reason+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a packet's end": ((" skb_panic+0x1/0x2", " skb_over_panic+0x1/0x2", " skb_put+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "other CPUs": ((" smp_call_function_many_cond+0x1/0x2", " on_each_cpu_cond_mask+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a wait": ((" __schedule+0x1/0x2", " schedule+0x1/0x2", " schedule_timeout+0x1/0x2", " wait_for_completion+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a checked copy": ((" usercopy_abort+0x1/0x2", " __check_heap_object+0x1/0x2", " __check_object_size+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "NMI": ((" dump_stack+0x1/0x2", " nmi_panic+0x1/0x2", " watchdog_overflow_callback+0x1/0x2", " nmi_handle+0x1/0x2", " exc_nmi+0x1/0x2", " end_repeat_nmi+0x1/0x2", " xyz_send+0x2b/0x1b0"), "xyz_send"),
    "a stall": ((" rcu_dump_cpu_stacks+0x1/0x2", " rcu_sched_clock_irq+0x1/0x2", " update_process_times+0x1/0x2", " tick_sched_handle+0x1/0x2", " __hrtimer_run_queues+0x1/0x2", " hrtimer_interrupt+0x1/0x2", " sysvec_apic_timer_interrupt+0x1/0x2", " asm_sysvec_apic_timer_interrupt+0x1/0x2", "RIP: 0010:xyz_send+0x5/0x10"), "xyz_send"),
    "on purpose": ((" dump_stack_lvl+0x33/0x42", " vpanic+0x1/0x2", " panic+0x1/0x2", " sysrq_handle_crash+0x16/0x20", " __handle_sysrq+0x1/0x2"), "sysrq_handle_crash"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINUX_GUILTY)
def test_linux_s_faulting_function_is_no_machinery(name: str) -> None:
    lines, wanted = LINUX_GUILTY[name]
    assert verdict(stamped("Kernel panic - not syncing: xyz", "CPU: 1 PID: 7 Comm: xyz", "Call Trace:", *lines)) == (
        "linux-panic", "Kernel panic - not syncing: xyz", wanted
    )  # fmt: skip


# -- J: identities ----------------------------------------------------------------------------------------------------

ALIKE = [
    ("mutex xyz not owned at /usr/src/sys/dev/xyz/xyz.c:7", "mutex xyz not owned at /jobs/881/freebsd-src/sys/dev/xyz/xyz.c:9"),
    ("Lock xyz @ /usr/src/sys/sys/refcount.h:1.", "Lock xyz @ /home/u/sys/tree-2/sys/sys/refcount.h:20."),
    ("kernel BUG at ../fs/xyz/xyz.c:3!", "kernel BUG at fs/xyz/xyz.c:4!"),
    ("xyz @ @/dev/xyz/xyz.c:3", "xyz @ /usr/src/sys/dev/xyz/xyz.c:4"),
    ("xyz @ ../../../kern/vfs_xyz.c:3", "xyz @ /usr/src/sys/kern/vfs_xyz.c:4"),
    ("xyz @ /usr/src/sys/amd64/compile/XYZ/../../../kern/vfs_xyz.c:3", "xyz @ sys/kern/vfs_xyz.c:4"),
    ("kernel BUG at /build/linux-6.1/drivers/xyz/xyz.c:44!", "kernel BUG at drivers/xyz/xyz.c:45!"),
    ("addr: c000", "addr: 1a000"),
    ("addr: beef", "addr: 1a000"),
    ("address = 0XC000", "address = 0xffffffff80311111"),
    ("page FF00 of 1A", "page 12 of 3"),
    ("no 7f here", "no 12 here"),
    ("xyz: 00:16:3e:aa:bb:cc", "xyz: 00:16:3e:00:00:01"),
    ("pool 6ba7b810-9dad-11d1-80b4-00c04fd430c8", "pool 12345678-aaaa-bbbb-cccc-ddddeeeeffff"),
    ("mode 0755 of 0b11", "mode 0o17 of 12"),
    ("xbd0: request 12", "xbd1: request 3"),
    ("page 0xdeadbeef of 12", "page 0xfeedface of 7"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_identities_that_are_the_same(one: str, other: str) -> None:
    assert deaths.Death("panic", one).identity == deaths.Death("panic", other).identity


DIFFERENT = [
    ("xbd0: gone", "xn0: gone"), ("da0: gone", "ada0: gone"), ("bad header", "dead header"), ("xyz at sys/dev/a/x.c:1", "xyz at sys/dev/b/x.c:1"),
    ("add failed", "face failed"), ("cd0: bad", "fd0: bad"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_identities_that_differ(one: str, other: str) -> None:
    assert deaths.Death("panic", one).identity != deaths.Death("panic", other).identity


KEPT = {
    "Fatal trap 12: page fault while in kernel mode": "Fatal trap N: page fault while in kernel mode",
    "no root file system: ufs:/dev/xbd7 failed with error 19": "no root file system: ufs:/dev/xbdN failed with error N",
    "Kernel panic - not syncing: sysrq triggered crash": "Kernel panic - not syncing: sysrq triggered crash",
    "(XEN) Domain 2 (vcpu#0) crashed on cpu#0": "(XEN) Domain N (vcpu#N) crashed on cpu#N",
    "no progress after stage rc for 180 s": "no progress after stage rc for N s",
    "ada10: da3 bce0 cd0": "adaN: daN bceN cdN",
    "run_interrupt_driven_hooks: still waiting after 60 seconds for xenbusb_nop_confighook_cb":
        "run_interrupt_driven_hooks: still waiting after N seconds for xenbusb_nop_confighook_cb",
}  # fmt: skip


@pytest.mark.parametrize("message", KEPT)
def test_identities_in_the_history(message: str) -> None:
    assert normalise(message) == KEPT[message]


# -- hostile output ----------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20
HOSTILE = {
    "panics": b"".join(b"panic: number %d\r\n" % n for n in range(MEGABYTE // 16)),
    "panics on one line": b"panic: " * (MEGABYTE // 7) + b"\r\n",
    "a long word before one": b"a" * MEGABYTE + b"panic: xyz\r\n",
    "a path without an end": b"panic: " + b"a/" * (MEGABYTE // 2) + b"\r\ncpuid = 0\r\n",
    "colons": b"panic: " + b"a:" * (MEGABYTE // 2) + b"\r\ncpuid = 0\r\n",
    "openers": b"[ ( ' " * (MEGABYTE // 6) + b"panic: xyz\r\n",
    "oopses": b"".join(b"[   12.345678] BUG: number %d\r\n" % n for n in range(MEGABYTE // 28)),
    "numbers of oopses": b"xyz [#1] [#2] [#3 " * (MEGABYTE // 18),
    "words of a headline": b"a" * 120 + b"\r\n[   12.345678] " + b"a b, " * (MEGABYTE // 5) + b" [#1]\r\n",
    "stamps": b"panic: x\r\ncpuid = 0\r\n" + b"[   12.3] " * (MEGABYTE // 10),
    "frames": b"panic: x\r\ncpuid = 0\r\n" + b"x() at x/frame 0x1\r\n" * (MEGABYTE // 20),
    "a frame without an end": b"panic: x\r\ncpuid = 0\r\n" + b"x" * MEGABYTE + b"(",
    "stacks of a stack": b"panic: x\r\ncpuid = 0\r\n" + b"<<IRQ>> " * (MEGABYTE // 8),
    "colons of an address": b"panic: a::" + b"a" * 900 + b"g\r\ncpuid = 0\r\n",
    "groups of an address": b"panic: " + b"a:" * 400 + b"g\r\ncpuid = 0\r\n",
    "a register without an end": b"[   12.3] BUG: x\r\nRIP" + b" " * 60000 + b"\r\n",
    "empty lines": b"panic: x\r\n" + b"\n" * 100000,
    "an init without an end": b"init: " * 10000 + b"\r\nEnter full pathname of shell or RETURN for /bin/sh: ",
    "a loader's brackets": b"(" + b"@" * 16000 + b"\nOK ",
    "empty lines before a prompt": b"\n" * MEGABYTE + b"mountroot> ",
    "carriage returns": b"\r" * MEGABYTE + b"panic: x\r\ncpuid = 0\r\n",
    "bytes": random.Random(7).randbytes(MEGABYTE).replace(b"x", b"panic: "),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_output_takes_no_time(name: str) -> None:
    begun = time.process_time()
    death = classify(HOSTILE[name])
    assert death is None or (len(death.summary) < 10000 and len(death.identity) < 10000)
    assert time.process_time() - begun < 3.0


def test_two_quoted_panics_do_not_make_a_death() -> None:
    """The second quote follows the first one directly, and then the guest continues."""
    assert verdict("panic: foo\nbar\npanic: baz\nqux\n\nFreeBSD/amd64 (box) (xc0)\n\nlogin: ") == ("", "", "")
    assert verdict("panic: foo\ncpuid = 0\npanic: baz\ncpuid = 0\nUptime: 9s\n")[0] == "double-panic"


# -- cuts -------------------------------------------------------------------------------------------------------------

RECORDED = {path.stem: path.read_bytes() for path in sorted(CONSOLES.glob("*.log"))}
PLAYED = {name: console(BOOT + text[0] + "Uptime: 9s\n") for name, text in SEVERAL.items()}
PLAYED |= {name: console(stamped("Linux version 6.1.0", *rows[0], *REST, FATAL)) for name, rows in OOPSES.items()}
REPLAYS = list((RECORDED | PLAYED).items())


def outcome(tmp_path: Path, data: bytes, sizes: tuple[int, ...]) -> tuple[object, ...]:
    reader = play(tmp_path, data, sizes=sizes)
    death = reader.death
    assert death is not None
    return death.identity, death.stage, death.later, death.frames, [stage.name for stage in reader.stages]


@pytest.mark.parametrize("seed", range(50))
def test_chunk_sizes_do_not_change_a_verdict(tmp_path: Path, seed: int) -> None:
    """Each of 50 seeds cuts the recorded and synthetic consoles in ten ways."""
    assert len(REPLAYS) >= 40
    rng = random.Random(seed)
    for n in range(10):
        name, data = REPLAYS[(seed * 10 + n) % len(REPLAYS)]
        sizes = tuple(rng.randint(1, rng.choice((3, 40, 400, 4000))) for _ in range(50))
        assert outcome(tmp_path, data, sizes) == outcome(tmp_path, data, (1 << 16,)), name
