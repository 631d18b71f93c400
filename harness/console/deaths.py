# SPDX-License-Identifier: BSD-2-Clause
"""How a guest dies, read from what it last printed: text in, one structured death out."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from harness.console import prompts
from harness.console.backtrace import Frame, Symbols, frames, guilty, named, unnamed
from harness.console.clean import cleaned
from harness.console.identity import normalise
from harness.console.stages import KERNELS, rarest
from harness.console.standing import LOOK, Standing, goes_on, judge, judge_linux, last_login
from harness.console.text import decode, excerpt, plain

__all__ = [
    "MARKERS", "Death", "Frame", "Symbols", "classify", "frames", "guilty", "mountroot_devices", "nameless", "normalise",
    "report_ended", "retraced", "speaker", "with_names",
]  # fmt: skip


@dataclass(frozen=True)
class Death:
    """What ended a guest. ``identity`` is the same for the same fault in another run: numbers are taken out of it."""

    kind: str
    message: str
    stage: str = ""
    frames: tuple[Frame, ...] = ()
    guilty: str = ""
    excerpt: str = ""
    at: float | None = None
    """Monotonic time at which it was declared."""
    seen: float | None = None
    """Monotonic time of the last byte it was read from."""
    answers: tuple[tuple[str, str], ...] = field(default=())
    """What the dead guest's prompt answered: (command, output)."""
    later: tuple[str, ...] = ()
    """The deaths that the kernel reported after this one, which is their cause or hid them."""
    begin: int = field(default=0, compare=False)
    """Where its report begins, in bytes within the data it was read from."""
    patience: float = field(default=0.0, compare=False)
    """Seconds of silence after which it is one: 0 with the kernel's own report, infinite while the guest prints something else."""

    @property
    def summary(self) -> str:
        where = ""
        if self.guilty:
            where = f" in {self.guilty}()"
            if self.guilty.startswith(("before ", "0x")):
                where = f" in the function {self.guilty.replace('0x', 'at 0x')}"
        stage = f" [stage {self.stage}]" if self.stage else ""
        later = "".join(f"; then {told}" for told in self.later)
        return f"{self.kind}: {self.message}{where}{stage}{later}"

    @property
    def identity(self) -> str:
        place = normalise(self.guilty) if self.guilty.startswith("0x") else self.guilty
        words = f"{self.kind}: {normalise(self.message)} @ {place or '-'}"
        return f"{hashlib.sha256(words.encode()).hexdigest()[:8]} {words}"


def speaker(kind: str) -> str:
    """The source of the excerpt of a death of this kind. A guest that Xen refused has printed nothing itself."""
    return "Xen's tools" if kind == "refused" else "console"


@dataclass(frozen=True)
class Marker:
    """A line that a dying guest prints. ``prompt``: the guest now waits for input, so nothing more will come."""

    kind: str
    literal: bytes
    pattern: re.Pattern[bytes]
    prompt: bool = False


def _marker(kind: str, literal: bytes, pattern: bytes, prompt: bool = False) -> Marker:
    return Marker(kind, literal, re.compile(pattern, re.MULTILINE), prompt)


MARKERS = (
    # Fatal trap 12: page fault while in kernel mode
    _marker("trap", b"Fatal ", rb"Fatal (?:double fault|trap \d+: [^\r\n]*)"),
    # panic: mountroot: unable to (re-)mount root.     It begins wherever the console's line was (sys/kern/kern_shutdown.c, vpanic()):
    # debug.kdb.panic: 0panic: kdb_sysctl_panic
    # The machine may die between this word and the message. "debug.kdb.panic: 0" is a sysctl's value. What else is none is decided
    # by harness.console.standing.
    _marker("panic", b"panic: ", rb"panic: (?!\d+\r*$)[^\r\n]+|^\r*panic: (?:\Z|\d*(?=\r*\n\r*cpuid = \d))"),
    # mountroot>
    _marker("mountroot", b"mountroot> ", rb"^\r*mountroot> ", True),
    # db>     (not "db:0:kdb.enter.panic>  bt": that is a script's echo, and nobody is asked)
    _marker("ddb", b"db> ", rb"^\r*db> ", True),
    # Enter full pathname of shell or RETURN for /bin/sh:       (sbin/init/init.c: rc failed)
    _marker("single-user", b"RETURN for /bin/sh", rb"^\r*Enter full pathname of shell or RETURN for /bin/sh: ", True),
    # run_interrupt_driven_hooks: still waiting after 60 seconds for xenbusb_nop_confighook_cb
    _marker("hang", b"run_interrupt_driven_hooks", rb"run_interrupt_driven_hooks: still waiting after \d+ seconds for [^\r\n]*"),
    # (XEN) Domain 2 (vcpu#0) crashed on cpu#0:       (the PV shim's Xen speaks on its guest's console)
    # console_timestamps=date, datems, boot, raw (xen/drivers/char/console.c, printk_start_of_line()):
    # (XEN) [2024-02-03 04:05:06] Domain 3    [2024-02-03 04:05:06.789]    [   12.345678]    [000000123456789a]
    # (XEN) Domain 3 reported crashed by domain 1 on cpu#0:
    # (XEN) Panic on CPU 0:           (the shim's own death; its reason is on the next line)
    _marker(
        "crash",
        b"(XEN) ",
        rb"(\(XEN\) )(?:\[[ \d.:T-]+\] ?|\[[0-9a-f]{16}\] ?)?"
        rb"(Domain \d+ (?:\(vcpu#\d+\) crashed|reported crashed by domain \d+) on cpu#\d+|Panic on CPU \d+(?=:)):?",
    ),
    # [   12.3] Kernel panic - not syncing: sysrq triggered crash
    _marker("linux-panic", b"Kernel panic", rb"Kernel panic - not syncing: [^\r\n]*"),
    # [   12.3] BUG: unable to handle page fault for address: 0000000000000010
    # [   12.3] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [xyz:123]
    # [   12.3] kernel BUG at drivers/xyz/xyz.c:44!
    _marker("linux-oops", b"BUG", rb"(?<![\w-])BUG: [^\r\n]+|kernel BUG at [^\r\n]+"),
    # arm64:  Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010
    _marker("linux-oops", b"Unable to handle kernel ", rb"Unable to handle kernel [^\r\n]+"),
    # [   12.3] divide error: 0000 [#1] SMP          invalid opcode: 0000 [#1]          Oops: 0000 [#1] SMP NOPTI
    # [   12.3] general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP
    # 6.8 and later: Oops: divide error: 0000 [#1]      arm64: Internal error: Oops: 0000000096000004 [#1]      riscv: Oops [#1]
    _marker("linux-oops", b" [#", rb"(?:^|(?<=\] )|(?<=\r))[A-Za-z][\w ,./:\x27()-]{2,120} \[#\d+\][^\r\n]*"),
    # [   12.3] traps: PANIC: double fault, error_code: 0x0
    _marker("linux-oops", b"PANIC: double fault", rb"PANIC: double fault[^\r\n]*"),
    # [   12.3] rcu: INFO: rcu_sched self-detected stall on CPU         4.x: INFO: rcu_sched detected stalls on CPUs/tasks: { 1}
    # [   12.3] INFO: task xyz:123 blocked for more than 120 seconds.
    _marker(
        "linux-oops",
        b"INFO: ",
        rb"INFO: (?:rcu\w* (?:self-)?detected (?:expedited )?stalls? on |task [^\r\n]{1,40} blocked (?:for more than|in I/O wait for) )[^\r\n]+",
    ),
    # [   12.3] NMI watchdog: Watchdog detected hard LOCKUP on cpu 1       6.x: watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 1
    _marker("linux-oops", b"hard LOCKUP", rb"Watchdog detected hard LOCKUP[^\r\n]*"),
)
# After these nothing more of a report will come. Since 14.0-STABLE 1400507 a FreeBSD guest's panic ends with neither of them: the
# domain is gone after "Uptime: 46s", or after "Dump complete" (xctrl_shutdown_final()), and the report is over when it is quiet.
# Automatic reboot in 15 seconds / Rebooting... / ---[ end Kernel panic
_REPORT_ENDS = re.compile(
    rb"^\r*(?:Automatic reboot in|Rebooting\.\.\.)|Rebooting in \d+ seconds|---\[ end Kernel panic", re.MULTILINE
)

# A guest's output is hostile: so much of a line is a message, and so many words on a line and deaths in a report are told apart.
_LONGEST, _MOST = 4096, 8
# A kernel's report of its own death; the other kinds are prompts and complaints.
_FATAL = {"trap", "panic", "crash", "linux-panic", "linux-oops"}
# Words of Linux that no program prints at the beginning of a line.
_CLEAR = re.compile(
    rb"Kernel panic|BUG: (?:unable to handle|kernel NULL|soft lockup|(?:\S+ )?stack guard page)|kernel BUG at|Unable to handle kernel|[^\r\n]*: [0-9a-f]{4,16} \[#\d"
    rb"|PANIC: double|INFO: |Watchdog detected"
)
# What a Linux may survive: it goes on, unless nothing more comes.
_SURVIVABLE = re.compile(r"BUG: (?!unable to handle|kernel NULL|(?:\S+ )?stack guard page)|INFO: |Watchdog detected")
# Linux's own end after a death that it has reported before (kernel/exit.c, kernel/watchdog.c, kernel/hung_task.c, kernel/rcu/tree_stall.h).
_END_OF_OOPS = re.compile(
    r"not syncing: (?:Fatal exception|Oops|Fatal hardware|softlockup|hung_task|hard LOCKUP|Hard LOCKUP|RCU Stall|panic_on_\w+|Attempted to kill"
    r"|BUG|stack-protector|Machine halted|kernel: )"
)
# A panic of trap_fatal() has the trap's name, or this (sys/amd64/amd64/trap.c, sys/i386/i386/trap.c).
_OWN_PANIC = re.compile(
    r"(?:unknown|reserved|unknown/reserved) trap|(?:double|page|general protection) fault|non-maskable interrupt|trap\b|NMI",
    re.IGNORECASE,
)
# The first words of a firmware and of a loader.
_BOOTS = re.compile(
    rb"FreeBSD/\w+ (?:[\w ]{1,24} )?(?:boot|bootstrap loader|EFI loader)\b|BTX loader \d|BdsDxe: |SeaBIOS \(|>> FreeBSD|GNU GRUB "
)
# Seconds of silence after a panic's line without the kernel's own report, and after what a Linux may survive.
_DOUBT, _LONG_DOUBT = 3.0, 8.0


def report_ended(data: bytes) -> bool:
    return _REPORT_ENDS.search(data) is not None


@dataclass(frozen=True)
class _Hit:
    """A line that reads like a death. ``line`` is where its line begins, ``begin`` and ``end`` where its words do, in bytes."""

    kind: str
    line: int
    begin: int
    end: int
    text: str
    standing: Standing = Standing.OPEN


def classify(data: bytes, stage: str = "", stuck: Callable[[bytes], prompts.Stuck | None] | None = None) -> Death | None:
    """The death that ``data`` (the end of a console) tells of, or None.

    The first that the kernel reports is the cause; a panic that a trap ends in, and the end that Linux announces after an oops,
    are no others. A second panic with another message is a double panic. A panic is more telling than the prompt after it, and a
    prompt is the cause of a panic after it.
    """
    data = cleaned(data)
    found: dict[str, list[str]] = {}
    fatal: list[_Hit] = []
    prompted = len(data)
    for marker in MARKERS:
        if rarest(marker.literal) not in data or marker.literal not in data:
            continue
        matches = marker.pattern.finditer(data)
        if marker.kind in _FATAL:
            fatal += [_hit(marker.kind, data, match) for match in matches]
        elif hits := list(matches):
            found.setdefault(marker.kind, [_shown(match[0]) for match in hits])
            prompted = min(prompted, hits[0].start()) if marker.prompt else prompted
    report = _report(_judged(data, fatal))
    # What is typed at a prompt may end in a panic: an empty line at mountroot's does.
    if report and report[0].begin < prompted:
        return _died(data, report, stage)
    if not found:
        tail = data[data.find(b"\n", max(0, len(data) - (1 << 14))) + 1 if len(data) > 1 << 14 else 0 :]
        ended = (stuck or prompts.stuck)(tail)
        if ended and stuck is None:
            ended = _stuck(data, stage, tail)
        return Death(ended.kind, ended.message, stage, excerpt=excerpt(decode(data))) if ended else None
    text = decode(data)
    kind = next(marker.kind for marker in MARKERS if marker.kind in found)
    message = found[kind][0]
    if kind == "mountroot":
        message = prompts.mountroot(text)
    elif kind == "single-user":
        message = prompts.single_user(text)
    elif kind == "ddb":
        message = "stopped in the kernel debugger"
    trace = frames(decode(data[:prompted])) if kind == "ddb" else ()
    return Death(kind, message, stage, trace, guilty(trace), excerpt(text))


def _stuck(data: bytes, stage: str, tail: bytes) -> prompts.Stuck | None:
    """:func:`prompts.stuck` for the ``tail`` of a console of which only ``data`` is known: behind a kernel's first words a prompt is
    no loader's, and behind a login prompt none counts.
    """
    boot = max((match.start() for match in _BOOTS.finditer(data)), default=-1)
    login = stage == "login" or last_login(data) > boot
    kernel = login or any(data.rfind(words) > boot for words in KERNELS)
    return prompts.stuck(tail, lambda until: not (login if until == "login" else kernel))


def _shown(words: bytes) -> str:
    return plain(words[:_LONGEST].decode("utf-8", "replace")).strip()


def _hit(kind: str, data: bytes, match: re.Match[bytes]) -> _Hit:
    """Where a marker has groups, they are the message."""
    words = b"".join(group or b"" for group in match.groups()) if match.re.groups else match[0]
    return _Hit(kind, data.rfind(b"\n", 0, match.start()) + 1, match.start(), match.end(), _shown(words))


def _judged(data: bytes, hits: list[_Hit]) -> list[_Hit]:
    """``hits`` in the order of time, each with its standing; without those that another one's words contain."""
    hits.sort(key=lambda hit: (hit.begin, -hit.end))
    judged: list[_Hit] = []
    login = last_login(data) if any(_SURVIVABLE.match(hit.text) for hit in hits) else -1
    following: _Hit | None = None
    for number in range(len(hits) - 1, -1, -1):
        hit = hits[number]
        if number and hits[number - 1].end > hit.begin:
            continue
        after = data[hit.end : min(following.line if following else len(data), hit.end + LOOK)]
        if following and following.line >= hit.end and not after.strip():
            # Nothing is between the two: two CPUs die, a console shows each line twice, or a headline is followed by another.
            standing = following.standing
            if standing is not Standing.NONE:
                own = _stand(data, hit, after)
                standing = own[1] if own[1] is Standing.NONE else standing
                hit = own[0]
        else:
            hit, standing = _stand(data, hit, after)
            # What follows ends at another program's words; the guest may go on behind them.
            beyond = data[hit.end : hit.end + LOOK]
            if standing is Standing.WEAK and following and following.standing is Standing.NONE and goes_on(beyond):
                standing = Standing.NONE
        if hit.begin < login and _SURVIVABLE.match(hit.text):
            standing = Standing.NONE
        following = replace(hit, standing=standing)
        judged.append(following)
    return judged[::-1]


def _stand(data: bytes, hit: _Hit, after: bytes) -> tuple[_Hit, Standing]:
    lead, words = data[hit.line : hit.begin], data[hit.begin : hit.end]
    if hit.kind == "crash":
        return hit, judge(lead, words, after) if lead.strip() else Standing.DEATH
    if hit.kind.startswith("linux"):
        return hit, judge_linux(lead, words, after, clear=_CLEAR.match(words) is not None)
    if hit.kind != "panic":
        return hit, judge(lead, words, after)
    # A line may have the word more than once: "debug.kdb.panic: 0panic: kdb_sysctl_panic", a program's quote before the real one.
    begins = [hit.begin]
    while len(begins) < _MOST and (follows := data.find(b"panic: ", begins[-1] + 1, hit.end)) >= 0:
        begins.append(follows)
    for begin, follows in zip(begins, [*begins[1:], hit.end], strict=True):
        # A sysctl's value, and nothing of its own.
        if follows < hit.end and re.fullmatch(rb"panic: \d*", data[begin:follows]):
            continue
        standing = judge(data[hit.line : begin], data[begin : hit.end], after)
        if standing is not Standing.NONE:
            return replace(hit, begin=begin, text=_shown(data[begin : hit.end])), standing
    return hit, Standing.NONE


def _report(hits: list[_Hit]) -> list[_Hit]:
    """The deaths among ``hits``: those that the kernel reports, else the first that it may have begun to."""
    sure = [hit for hit in hits if hit.standing is Standing.DEATH]
    return sure or [hit for hit in hits if hit.standing in (Standing.OPEN, Standing.WEAK)][:1]


def _died(data: bytes, hits: list[_Hit], stage: str) -> Death:
    cause, begin = hits[0], hits[0].begin
    kind, message = cause.kind, cause.text
    end, last = len(data), cause
    others: list[_Hit] = []
    for hit in hits[1:]:
        if len(others) >= _MOST:
            break
        adjacent = not data[last.end : hit.line].strip()
        headline, last = last, hit
        if any(_same(hit, earlier) for earlier in (cause, *others)):
            if not adjacent:
                end = min(end, hit.line)
            continue
        before = (cause, *others)[-1]
        if before.kind == "trap" and hit.kind == "panic" and _is_own(before.text, hit.text):
            continue
        if hit.kind == "linux-oops" and "[#" in hit.text and _awaits_number(headline):
            continue
        end = min(end, hit.line)
        if hit.text.removeprefix("panic: ") == "from debugger" or (kind == "linux-oops" and _END_OF_OOPS.search(hit.text)):
            continue
        others.append(hit)
    later = [hit.text for hit in others]
    if kind == "panic":
        message = message.removeprefix("panic:").strip()
        second = next((hit for hit in others if hit.kind == "panic"), None)
        if second is not None:
            kind, message = "double-panic", f"{message} / {second.text.removeprefix('panic: ')}"
            later.remove(second.text)
    elif kind == "crash":
        own = "Panic on CPU" in message
        reason = prompts.xen_panic(decode(data[cause.end : cause.end + LOOK])) if own else prompts.crash(decode(data[: cause.line]))
        message = ": ".join(filter(None, (message, reason)))
    report = data[cause.line : end]
    # The words before it, on its line, are not its own.
    trace = frames(decode(report[begin - cause.line : 1 << 17]))
    settled = 0.0 if cause.standing is Standing.DEATH else _DOUBT
    if cause.kind == "linux-oops" and _SURVIVABLE.match(cause.text) and len(hits) == 1:
        settled = _LONG_DOUBT
    if cause.standing is Standing.WEAK:
        settled = math.inf
    shown = excerpt(decode(data[-(1 << 16) :]))
    return Death(kind, message, stage, trace, guilty(trace), shown, later=tuple(later[:3]), begin=begin, patience=settled)


def _same(hit: _Hit, earlier: _Hit) -> bool:
    """The same text twice is one death; one of the two may be cut off."""
    one, other = sorted((hit.text, earlier.text), key=len)
    return hit.kind == earlier.kind and len(one) > len("panic: ") and other.startswith(one)


def _awaits_number(hit: _Hit) -> bool:
    """Whether a line such as ``Oops: 0000 [#1]`` behind this headline is of the same report."""
    return hit.kind == "linux-oops" and "[#" not in hit.text and not _SURVIVABLE.match(hit.text)


def _is_own(trap: str, panic: str) -> bool:
    """Whether ``panic`` is what the trap ends in."""
    words = panic.removeprefix("panic: ").strip().lower()
    return words in trap.lower() or _OWN_PANIC.match(words) is not None


def retraced(death: Death, told: str) -> Death:
    """``death`` with the backtrace in ``told`` (the debugger's answer), if its own report has none."""
    trace = frames(told)
    if len(death.frames) > 1 or len(trace) < 1:
        return death
    return replace(death, frames=trace, guilty=guilty(trace))


def with_names(death: Death, symbols: Symbols | None) -> Death:
    """``death`` with the names that its kernel file gives to nameless frames, and to callers at the end of a function."""
    if symbols is None:
        return death
    trace = named(death.frames, symbols)
    return replace(death, frames=trace, guilty=guilty(trace))


def nameless(death: Death) -> bool:
    """Whether :func:`with_names` may say more."""
    return unnamed(death.frames)


# The answer of mountroot's "?":   "  ufs/FBROOT ufsid/6b03ae756683071b xbd0"
def mountroot_devices(answer: str) -> tuple[str, ...]:
    """The disks and partitions that mountroot's ``?`` lists, for example ``("ufs/FBROOT", "xbd0")``."""
    _, _, after = answer.partition("List of GEOM managed disk devices:")
    listed = after.split("mountroot>")[0]
    return tuple(listed.split())
