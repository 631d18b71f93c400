# SPDX-License-Identifier: BSD-2-Clause
"""Decides whether a line that looks like a kernel's death report is one, by the text before and after it."""

from __future__ import annotations

import re
from enum import Enum

# Bytes after a line to search. A guest that prints more than this without a line of a report is alive.
LOOK = 8192
# A guest's output is hostile, so limit the bytes of a line before and after the panic.
_LONGEST = 512
# A line that a living kernel also prints is evidence only within this many lines.
_NEAR = 6


class Evidence(Enum):
    """How certain it is that a line reports a death."""

    CONFIRMED = 0
    """The kernel's report follows."""
    UNDECIDED = 1
    """Nothing follows."""
    WEAK = 2
    """Other output follows, but no sign of life."""
    REFUTED = 3
    """Another program printed the line, or the guest continues."""


# Lines that only a dying kernel prints. Sources: FreeBSD's sys/kern/kern_shutdown.c, subr_kdb.c, subr_trap.c, sys/ddb, and x86's
# trap_fatal().
_SURE = rb"""
    cpuid\ =\ \d | time\ =\ \d{9,}[ \t\r]*$ | KDB:\ (?:enter|reentering): | \[\ thread\ pid\ \d | Stopped\ at\s | db(?::\d+:[\w.]+)?>\s
  | Dumping\ \d+\ out\ of\ | Automatic\ reboot\ in\ | Cannot\ dump\b | fault\ virtual\ address\s | instruction\ pointer\s+=
  | trap\ number\s+= | [re]ip\ (?:=\ )?0x[0-9a-f]{8} | current\ process\s+=
"""
# The same for Linux, after a stamp. Sources: kernel/panic.c, arch/x86/kernel/dumpstack.c, lib/dump_stack.c.
_LINUX_SURE = rb"""
    CPU:\ \d+\ (?:UID:\ \d+\ )?PID:\ \d+ | Kernel\ Offset:\  | ---\[\ end\  | Hardware\ name:\  | Call\ [Tt]race: | RIP:?\s | EIP:?\s
  | Oops\b | \#PF:\  | PGD\  | Modules\ linked\ in: | Rebooting\ in\ \d+\ seconds | Sending\ NMI\  | NMI\ backtrace\ for\ cpu\ 
  | rcu:\ \s | task:\S+\s+state: | IP:\s | (?:\[[0-9a-f]{8,16}\]\ )?\*?(?:pgd|pde|pdpt)\ ?= | Mem\ abort\ info: | Internal\ error:\ 
"""
# Lines that a kernel prints at its end but sometimes also before: evidence only if they follow closely.
_FOLLOWS = rb"""
    KDB:\ (?!debugger|current) | Uptime:\ \d | Rebooting\.\.\. | [\w.$?]+\([^()\r\n]*\)\ at\ [\w.$]+ | \#\d+\ 0x[0-9a-f]+\ at\ | [Ss]yncing\ disks
  | -->\ Press\ a\ key(?!\ on\ the\ console\ to\ reboot\ <) | cpu_reset | (?:Starting|Dump|Textdump)\ (?:dump|complete) | Physical\ memory:\ \d | timeout\ stopping\ cpus
  | No\ known\ reset\ | [ \t]*(?:[re][a-z]{2}|x\d{1,2}|sp|lr|elr|spsr|far|esr)\ ?[:=]\s*(?:0x)?[0-9a-f]{8} | ---\ (?:trap|interrupt)\b
  | -+<<BOOT>>- | Copyright\ \(c\)\ 1992-\d | BTX\ loader\  | SeaBIOS\ \(version | \(XEN\)\ 
"""
# The run-time of a language, FreeBSD's loader (stand/libsa/panic.c), or a living kernel that reports a dead program.
_PROGRAM = rb"""
    goroutine\ (?:\d+|running)\  | runtime\ stack:[ \t\r]*$ | exit\ status\ \d+[ \t\r]*$ | \[signal\ SIG | pid\ \d+\ \(.{1,40}exited\ on\ signal\  | Traceback\ \(most\ recent
  | -->\ Press\ a\ key\ on\ the\ console\ to\ reboot\ <-- | note:\ run\ with\ `RUST_ | \tpanic:\  | Abort\ trap | Segmentation\ fault
"""
# A login prompt, another prompt of a running system, or a shell.
_ALIVE = rb"""
    (?:\S+\ )?login:\  | Enter\ full\ pathname\ of\ shell | mountroot>\  | (?:[\w.@:~/-]+\ ?)?[#$%]\ ?\Z
"""
# The first lines of a report. The log may end in the middle of one.
_BEGUN = (
    b"cpuid = ",
    b"time = ",
    b"KDB: stack backtrace:",
    b"KDB: enter: panic",
    b"Uptime: ",
    b"[ thread pid ",
    b"db> ",
    b"Fatal trap ",
)
_STAMP = rb"(?:<\d{1,2}>)?(?:\[[ ]*\d+\.\d+\][ ]?){0,2}(?:\[[ ]*[A-Z]?\d+(?:@\w+)?\][ ]?)?"
_SIGN = re.compile(
    rb"^[\r]*(?:(?P<sure>%s)|%s(?P<linux>%s)|(?P<follows>%s)|(?P<program>%s)|(?P<alive>%s))"
    % (_SURE, _STAMP, _LINUX_SURE, _FOLLOWS, _PROGRAM, _ALIVE),
    re.MULTILINE | re.VERBOSE,
)

# -- the text before the line -----------------------------------------------------------------------------------------

_DATE = rb"(?:(?:\w{3} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+)(?: [\w.-]+)? )?"
# Line beginnings of programs that quote a panic.
_QUOTING = (
    # savecore 512 - - reboot after        Feb  3 04:05:06 box savecore[512]: reboot after
    rb"\bsavecore\b",
    # agent[41]: level=error msg=
    rb"[\w./-]+\[\d+\]:? .*$",
    # Feb  3 04:05:06 box kernel:          agent:        (but the kernel may print after the prompt "login: ")
    rb"^\s*<?\d*>?" + _DATE + rb"(?!login:|Password:)[A-Za-z][\w./()-]*: *$",
    # 2024-02-03T04:05:06+00:00 box agent 512 - -
    rb"(?:^| )[\w./-]+ (?:\d+|-) \S+ - *$",
    # start.go:41:
    rb"[\w./-]+\.\w+:\d+:(?:\d+:)? *$",
    # ok 3 - a panic        not ok 4 -        === RUN        PASS:        step 4 of 9:
    rb"(?i)^\s*(?:(?:not )?ok \d+|pass(?:ed)?|fail(?:ed)?|skip(?:ped)?|xfail|===|---|\* |- |test(?:ing|s)?\b|case\b|step\b|running\b)",
    # reboot after        the title of PR 1234:        expected
    rb"(?i)\b(?:after|before|previous|last|this|that|the|an?|of|no|with|on|for|by|about|say(?:s|ing)?|said|saw|got|hit|was|is|an?other"
    rb"|expect(?:s|ed|ing)?|simulat\w+|fake|old|title|subject|summary|bug|issue|PR|reason|message|text|error|line|kernel)[ :]+$",
    rb"(?i)\b(?:bug|issue|PR|ticket)[ #]*\w*[/#]?\d+[:,]? *(?:- *)?$",
    # root@box:~ # echo                    + logger -t agent
    rb"\b(?:echo|printf|logger|grep|say|print|puts|write|die|warn|err)\b[^|;]*$",
    rb"^\s*(?://|;|\*)\s*$",
    # +panic: ...       (periodic's daily mail)          [error] panic: ...
    rb"^[+|]+ ?$",
    rb"\[[A-Za-z][\w.-]*\]:? *$",
)
_QUOTING_RE = re.compile(b"|".join(b"(?:%s)" % row.replace(b"(?i)", b"") for row in _QUOTING), re.IGNORECASE)
# Opening quotes and brackets, with those that close them.
_OPENERS = {
    b"[": (b"]",), b"(": (b")",), b"{": (b"}",), b"<": (b">",), b'"': (b'"',), b"'": (b"'",), b"`": (b"`", b"'"),
    "\u201c".encode(): ("\u201d".encode(),), "\u2018".encode(): ("\u2019".encode(),), "\u00ab".encode(): ("\u00bb".encode(),),
}  # fmt: skip
# An apostrophe within a word is no opening quote.
_OPENER = re.compile(rb"(?:^|(?<=[\s=:(,]))(" + b"|".join(map(re.escape, _OPENERS)) + rb")(?=\S)")
# Endings of messages of programs: Go's recovered panics, Perl's line of the script.
_PROGRAM_MESSAGE = re.compile(rb"\[recovered\]|\(recovered\)| at \S+ line \d+\.?$")
_LOGIN = re.compile(rb"^\r*(?:\S+ )?login: ", re.MULTILINE)
_LINUX_STAMP = re.compile(_STAMP + rb"$")
# [   12.3] NMI watchdog: BUG: ...     watchdog: CPU1: Watchdog ...     traps: PANIC: ...     rcu: INFO: ...
_SUBSYSTEM = re.compile(rb"(?:(?:NMI )?watchdog|traps|rcu|Internal error)(?:: CPU\d+)?: $")
_ANY_STAMP = re.compile(rb"\[ *\d+\.\d+\] ?(?:\[ *[A-Z]?\d+(?:@\w+)?\] ?)?$")


def follows(after: bytes) -> tuple[Evidence, bool]:
    """The evidence in ``after``, the text from a line to the next such line; and whether its first lines confirm a death."""
    alive = False
    for sign in _SIGN.finditer(after, 0, LOOK):
        lines = sum(1 for line in after[: sign.start()].split(b"\n") if line.strip())
        if sign["program"] is not None:
            return Evidence.REFUTED, False
        if sign["alive"] is not None:
            alive = True
        elif sign["follows"] is None or (lines < _NEAR and not alive):
            return Evidence.CONFIRMED, lines < 2 and not alive
    if alive or len(after) >= LOOK:
        return Evidence.REFUTED, False
    rest = after.strip(b"\r\n")
    return (Evidence.UNDECIDED if not rest.strip() or any(line.startswith(rest) for line in _BEGUN) else Evidence.WEAK), False


def guest_continues(after: bytes) -> bool:
    """Whether the text after a line shows that the guest continues."""
    return follows(after)[0] is Evidence.REFUTED


def last_login(data: bytes) -> int:
    """Offset of the last login prompt; -1 if there is none."""
    return max((prompt.start() for prompt in _LOGIN.finditer(data)), default=-1)


def assess(lead: bytes, message: bytes, after: bytes) -> Evidence:
    """Evidence for the FreeBSD ``message``. ``lead`` is the part of its line before it; ``after``: see :func:`follows`."""
    found, at_once = follows(after)
    if found is Evidence.REFUTED or at_once:
        return found
    lead, message = lead[-_LONGEST:], message[:_LONGEST]
    if quoted(lead, message) or _PROGRAM_MESSAGE.search(message):
        return Evidence.REFUTED
    # An identifier: debug.kdb.panic, no_panic. A word: some output without a line end, or mypanic.
    if found is not Evidence.CONFIRMED and (
        re.search(rb"\w[._-]$", lead) or (found is Evidence.WEAK and re.search(rb"[A-Za-z]$", lead))
    ):
        return Evidence.REFUTED
    return found


def assess_linux(lead: bytes, message: bytes, after: bytes, *, clear: bool) -> Evidence:
    """Evidence for the Linux ``message``. ``clear``: no program prints such a message at the beginning of a line."""
    found, at_once = follows(after)
    if found is Evidence.REFUTED or at_once:
        return found
    lead, message = _SUBSYSTEM.sub(b"", lead[-_LONGEST:]), message[:_LONGEST]
    if _ANY_STAMP.search(lead) and not quoted(_ANY_STAMP.sub(b"", lead), message):
        return found
    if not lead.strip() or _LINUX_STAMP.fullmatch(lead.strip(b"\r")):
        return found if clear or found is Evidence.CONFIRMED else Evidence.REFUTED
    return Evidence.REFUTED if quoted(lead, message) or not clear else found


def quoted(lead: bytes, message: bytes) -> bool:
    """Whether a line that begins with ``lead`` quotes ``message``, or another program printed it."""
    lead = lead.replace(b"\r", b"")
    if not lead.strip():
        return False
    if _QUOTING_RE.search(lead):
        return True
    for opener, closers in _OPENERS.items():
        # test_drill[panic: one]
        if lead.endswith(opener) and any(closer in message for closer in closers):
            return True
    for opened in _OPENER.finditer(lead + b"p"):
        closers, rest = _OPENERS[opened[1]], lead[opened.end() :]
        if not any(closer in rest for closer in closers) and (not rest or any(closer in message for closer in closers)):
            return True
    return False
