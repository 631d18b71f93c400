# SPDX-License-Identifier: BSD-2-Clause
"""Whether a line that reads like a kernel's last words is one: who speaks it, and what follows it."""

from __future__ import annotations

import re
from enum import Enum

# How much of what follows a line is looked at, in bytes. A guest that prints more without a word of a report goes on.
LOOK = 8192
# A guest's output is hostile: so much of a line before and behind a panic is looked at, in bytes.
_LONGEST = 512
# A line that a living kernel prints, too, is evidence within so many lines.
_NEAR = 6


class Standing(Enum):
    """``DEATH``: the kernel's own report follows. ``OPEN``: nothing follows. ``WEAK``: something else does, and no sign of life.

    ``NONE``: another program's words, or the guest goes on.
    """

    DEATH = 0
    OPEN = 1
    WEAK = 2
    NONE = 3


# What only a dying kernel prints. FreeBSD's sys/kern/kern_shutdown.c, subr_kdb.c, subr_trap.c and sys/ddb, x86's trap_fatal().
_SURE = rb"""
    cpuid\ =\ \d | time\ =\ \d{9,}[ \t\r]*$ | KDB:\ (?:enter|reentering): | \[\ thread\ pid\ \d | Stopped\ at\s | db(?::\d+:[\w.]+)?>\s
  | Dumping\ \d+\ out\ of\ | Automatic\ reboot\ in\ | Cannot\ dump\b | fault\ virtual\ address\s | instruction\ pointer\s+=
  | trap\ number\s+= | [re]ip\ (?:=\ )?0x[0-9a-f]{8} | current\ process\s+=
"""
# sys/kernel/panic.c, arch/x86/kernel/dumpstack.c, lib/dump_stack.c of Linux; the stamp is before them.
_LINUX_SURE = rb"""
    CPU:\ \d+\ (?:UID:\ \d+\ )?PID:\ \d+ | Kernel\ Offset:\  | ---\[\ end\  | Hardware\ name:\  | Call\ [Tt]race: | RIP:?\s | EIP:?\s
  | Oops\b | \#PF:\  | PGD\  | Modules\ linked\ in: | Rebooting\ in\ \d+\ seconds | Sending\ NMI\  | NMI\ backtrace\ for\ cpu\ 
  | rcu:\ \s | task:\S+\s+state: | IP:\s | (?:\[[0-9a-f]{8,16}\]\ )?\*?(?:pgd|pde|pdpt)\ ?= | Mem\ abort\ info: | Internal\ error:\ 
"""
# What a kernel prints at its end, and now and then in its life: evidence only if it follows closely.
_FOLLOWS = rb"""
    KDB:\ (?!debugger|current) | Uptime:\ \d | Rebooting\.\.\. | [\w.$?]+\([^()\r\n]*\)\ at\ [\w.$]+ | \#\d+\ 0x[0-9a-f]+\ at\ | [Ss]yncing\ disks
  | -->\ Press\ a\ key(?!\ on\ the\ console\ to\ reboot\ <) | cpu_reset | (?:Starting|Dump|Textdump)\ (?:dump|complete) | Physical\ memory:\ \d | timeout\ stopping\ cpus
  | No\ known\ reset\ | [ \t]*(?:[re][a-z]{2}|x\d{1,2}|sp|lr|elr|spsr|far|esr)\ ?[:=]\s*(?:0x)?[0-9a-f]{8} | ---\ (?:trap|interrupt)\b
  | -+<<BOOT>>- | Copyright\ \(c\)\ 1992-\d | BTX\ loader\  | SeaBIOS\ \(version | \(XEN\)\ 
"""
# A language's run-time, FreeBSD's loader (stand/libsa/panic.c), and a kernel that lives: it tells of a program that died, asks for a login, or runs a shell.
_PROGRAM = rb"""
    goroutine\ (?:\d+|running)\  | runtime\ stack:[ \t\r]*$ | exit\ status\ \d+[ \t\r]*$ | \[signal\ SIG | pid\ \d+\ \(.{1,40}exited\ on\ signal\  | Traceback\ \(most\ recent
  | -->\ Press\ a\ key\ on\ the\ console\ to\ reboot\ <-- | note:\ run\ with\ `RUST_ | \tpanic:\  | Abort\ trap | Segmentation\ fault
"""
_ALIVE = rb"""
    (?:\S+\ )?login:\  | Enter\ full\ pathname\ of\ shell | mountroot>\  | (?:[\w.@:~/-]+\ ?)?[#$%]\ ?\Z
"""
# A report that is cut off in its first line.
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

# -- who speaks -------------------------------------------------------------------------------------------------------

_DATE = rb"(?:(?:\w{3} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+)(?: [\w.-]+)? )?"
_SPEAKERS = (
    # savecore 512 - - reboot after        Feb  3 04:05:06 box savecore[512]: reboot after
    rb"\bsavecore\b",
    # agent[41]: level=error msg=
    rb"[\w./-]+\[\d+\]:? .*$",
    # Feb  3 04:05:06 box kernel:          agent:        (but "login: " is a prompt at which the kernel may speak)
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
_SPEAKER = re.compile(b"|".join(b"(?:%s)" % row.replace(b"(?i)", b"") for row in _SPEAKERS), re.IGNORECASE)
_OPENERS = {
    b"[": (b"]",), b"(": (b")",), b"{": (b"}",), b"<": (b">",), b'"': (b'"',), b"'": (b"'",), b"`": (b"`", b"'"),
    "\u201c".encode(): ("\u201d".encode(),), "\u2018".encode(): ("\u2019".encode(),), "\u00ab".encode(): ("\u00bb".encode(),),
}  # fmt: skip
# An apostrophe within a word opens nothing.
_OPENER = re.compile(rb"(?:^|(?<=[\s=:(,]))(" + b"|".join(map(re.escape, _OPENERS)) + rb")(?=\S)")
# What a program's own messages end with: Go's recovered panics, Perl's place in the script.
_PROGRAM_MESSAGE = re.compile(rb"\[recovered\]|\(recovered\)| at \S+ line \d+\.?$")
_LOGIN = re.compile(rb"^\r*(?:\S+ )?login: ", re.MULTILINE)
_LINUX_STAMP = re.compile(_STAMP + rb"$")
# [   12.3] NMI watchdog: BUG: ...     watchdog: CPU1: Watchdog ...     traps: PANIC: ...     rcu: INFO: ...
_SUBSYSTEM = re.compile(rb"(?:(?:NMI )?watchdog|traps|rcu|Internal error)(?:: CPU\d+)?: $")
_ANY_STAMP = re.compile(rb"\[ *\d+\.\d+\] ?(?:\[ *[A-Z]?\d+(?:@\w+)?\] ?)?$")


def follows(after: bytes) -> tuple[Standing, bool]:
    """What the text after a line, up to the next such line, says of it; and whether it says so at once."""
    alive = False
    for sign in _SIGN.finditer(after, 0, LOOK):
        lines = sum(1 for line in after[: sign.start()].split(b"\n") if line.strip())
        if sign["program"] is not None:
            return Standing.NONE, False
        if sign["alive"] is not None:
            alive = True
        elif sign["follows"] is None or (lines < _NEAR and not alive):
            return Standing.DEATH, lines < 2 and not alive
    if alive or len(after) >= LOOK:
        return Standing.NONE, False
    rest = after.strip(b"\r\n")
    return (Standing.OPEN if not rest.strip() or any(line.startswith(rest) for line in _BEGUN) else Standing.WEAK), False


def goes_on(after: bytes) -> bool:
    """Whether the guest lives on in the text after a line, whatever is quoted in between."""
    return follows(after)[0] is Standing.NONE


def last_login(data: bytes) -> int:
    """Where the guest asks for a login the last time; -1 if it does not."""
    return max((prompt.start() for prompt in _LOGIN.finditer(data)), default=-1)


def judge(lead: bytes, message: bytes, after: bytes) -> Standing:
    """The standing of FreeBSD's ``message``. ``lead`` is what its line begins with, ``after`` as in :func:`follows`."""
    found, at_once = follows(after)
    if found is Standing.NONE or at_once:
        return found
    lead, message = lead[-_LONGEST:], message[:_LONGEST]
    if quoted(lead, message) or _PROGRAM_MESSAGE.search(message):
        return Standing.NONE
    # An identifier: debug.kdb.panic, no_panic. A word: some output without a line end, or mypanic.
    if found is not Standing.DEATH and (
        re.search(rb"\w[._-]$", lead) or (found is Standing.WEAK and re.search(rb"[A-Za-z]$", lead))
    ):
        return Standing.NONE
    return found


def judge_linux(lead: bytes, message: bytes, after: bytes, *, clear: bool) -> Standing:
    """The standing of Linux's ``message``. ``clear``: no program prints such words at the beginning of a line."""
    found, at_once = follows(after)
    if found is Standing.NONE or at_once:
        return found
    lead, message = _SUBSYSTEM.sub(b"", lead[-_LONGEST:]), message[:_LONGEST]
    if _ANY_STAMP.search(lead) and not quoted(_ANY_STAMP.sub(b"", lead), message):
        return found
    if not lead.strip() or _LINUX_STAMP.fullmatch(lead.strip(b"\r")):
        return found if clear or found is Standing.DEATH else Standing.NONE
    return Standing.NONE if quoted(lead, message) or not clear else found


def quoted(lead: bytes, message: bytes) -> bool:
    """Whether a line that begins with ``lead`` quotes ``message``, or is another program's."""
    lead = lead.replace(b"\r", b"")
    if not lead.strip():
        return False
    if _SPEAKER.search(lead):
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
