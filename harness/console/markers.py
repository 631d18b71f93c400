# SPDX-License-Identifier: BSD-2-Clause
"""The lines that dying guests print. :mod:`harness.console.deaths` decides which of them count."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.console.kinds import DeathKind
from harness.console.text import XEN_STAMP


@dataclass(frozen=True)
class Marker:
    """A line that a dying guest prints. ``prompt``: the guest waits for input, so no further output will come.

    ``pattern`` cannot match without the bytes ``literal``. If it has groups, they are the message.
    """

    kind: DeathKind
    literal: bytes
    pattern: re.Pattern[bytes]
    prompt: bool = False


def marker(kind: DeathKind, literal: bytes, pattern: bytes, prompt: bool = False) -> Marker:
    """A marker whose ``pattern`` is compiled with MULTILINE."""
    return Marker(kind, literal, re.compile(pattern, re.MULTILINE), prompt)


MARKERS = (
    # Fatal trap 12: page fault while in kernel mode
    marker("trap", b"Fatal ", rb"Fatal (?:double fault|trap \d+: [^\r\n]*)"),
    # panic: mountroot: unable to (re-)mount root.
    # debug.kdb.panic: 0panic: kdb_sysctl_panic        (vpanic() starts no new line, sys/kern/kern_shutdown.c)
    # The machine may die between this word and the message. "debug.kdb.panic: 0" is a sysctl's value. harness.console.evidence
    # decides whether any other line is a panic.
    marker("panic", b"panic: ", rb"panic: (?!\d+\r*$)[^\r\n]+|^\r*panic: (?:\Z|\d*(?=\r*\n\r*cpuid = \d))"),
    # mountroot>
    marker("mountroot", b"mountroot> ", rb"^\r*mountroot> ", True),
    # db>     (not "db:0:kdb.enter.panic>  bt", which is the echo of a script's command)
    marker("ddb", b"db> ", rb"^\r*db> ", True),
    # Enter full pathname of shell or RETURN for /bin/sh:       (sbin/init/init.c: rc failed)
    marker("single-user", b"RETURN for /bin/sh", rb"^\r*Enter full pathname of shell or RETURN for /bin/sh: ", True),
    # run_interrupt_driven_hooks: still waiting after 60 seconds for xenbusb_nop_confighook_cb
    marker("hang", b"run_interrupt_driven_hooks", rb"run_interrupt_driven_hooks: still waiting after \d+ seconds for [^\r\n]*"),
    # (XEN) Domain 2 (vcpu#0) crashed on cpu#0:       (the PV shim's Xen prints on its guest's console)
    # Stamps by console_timestamps=date, datems, boot, raw (xen/drivers/char/console.c, printk_start_of_line()):
    # (XEN) [2024-02-03 04:05:06] Domain 3    [2024-02-03 04:05:06.789]    [   12.345678]    [000000123456789a]
    # (XEN) Domain 3 reported crashed by domain 1 on cpu#0:
    # (XEN) Panic on CPU 0:           (the shim panics; the reason is on the next line)
    marker(
        "crash",
        b"(XEN) ",
        rb"(\(XEN\) )(?:" + XEN_STAMP.encode() + rb" ?)?"
        rb"(Domain \d+ (?:\(vcpu#\d+\) crashed|reported crashed by domain \d+) on cpu#\d+|Panic on CPU \d+(?=:)):?",
    ),
    # [   12.3] Kernel panic - not syncing: sysrq triggered crash
    marker("linux-panic", b"Kernel panic", rb"Kernel panic - not syncing: [^\r\n]*"),
    # [   12.3] BUG: unable to handle page fault for address: 0000000000000010
    # [   12.3] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [xyz:123]
    # [   12.3] kernel BUG at drivers/xyz/xyz.c:44!
    marker("linux-oops", b"BUG", rb"(?<![\w-])BUG: [^\r\n]+|kernel BUG at [^\r\n]+"),
    # arm64:  Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010
    marker("linux-oops", b"Unable to handle kernel ", rb"Unable to handle kernel [^\r\n]+"),
    # [   12.3] divide error: 0000 [#1] SMP          invalid opcode: 0000 [#1]          Oops: 0000 [#1] SMP NOPTI
    # [   12.3] general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP
    # 6.8 and later: Oops: divide error: 0000 [#1]      arm64: Internal error: Oops: 0000000096000004 [#1]      riscv: Oops [#1]
    marker("linux-oops", b" [#", rb"(?:^|(?<=\] )|(?<=\r))[A-Za-z][\w ,./:\x27()-]{2,120} \[#\d+\][^\r\n]*"),
    # [   12.3] traps: PANIC: double fault, error_code: 0x0
    marker("linux-oops", b"PANIC: double fault", rb"PANIC: double fault[^\r\n]*"),
    # [   12.3] rcu: INFO: rcu_sched self-detected stall on CPU         4.x: INFO: rcu_sched detected stalls on CPUs/tasks: { 1}
    # [   12.3] INFO: task xyz:123 blocked for more than 120 seconds.
    marker(
        "linux-oops",
        b"INFO: ",
        rb"INFO: (?:rcu\w* (?:self-)?detected (?:expedited )?stalls? on |task [^\r\n]{1,40} blocked (?:for more than|in I/O wait for) )[^\r\n]+",
    ),
    # [   12.3] NMI watchdog: Watchdog detected hard LOCKUP on cpu 1       6.x: watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 1
    marker("linux-oops", b"hard LOCKUP", rb"Watchdog detected hard LOCKUP[^\r\n]*"),
)
