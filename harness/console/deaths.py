# SPDX-License-Identifier: BSD-2-Clause
"""Reads the cause of death from the last output of a guest: bytes in, one :class:`Death` out."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from harness.console import prompts, reasons
from harness.console.backtrace import Frame, Symbols, faulting_function, frames, named, unnamed
from harness.console.clean import cleaned
from harness.console.evidence import LOOK, Evidence, assess, assess_linux, guest_continues, last_login
from harness.console.identity import normalise
from harness.console.kinds import DeathKind
from harness.console.stages import rarest
from harness.console.tables import ConsoleTables
from harness.console.text import decode, excerpt
from harness.safetext import plain


@dataclass(frozen=True)
class Death:
    """The end of a guest. ``stage`` is the last stage that it reached."""

    kind: DeathKind
    message: str
    stage: str = ""
    frames: tuple[Frame, ...] = ()
    faulting_function: str = ""
    """See :func:`harness.console.backtrace.faulting_function`."""
    excerpt: str = ""
    at: float | None = None
    """Monotonic time (s) at which the guest was declared dead."""
    seen: float | None = None
    """Monotonic time (s) of the report's last byte."""
    answers: tuple[tuple[str, str], ...] = field(default=())
    """The output of the dead guest's debugger: (command, output)."""
    nameless: int = field(default=0, compare=False)
    """Number of ``frames`` that the kernel printed without a name."""
    later: tuple[str, ...] = ()
    """Further deaths that the kernel reported after this one; this one is or hides their cause."""
    begin: int = field(default=0, compare=False)
    """Offset (bytes) of the report within the data that was classified."""
    patience: float = field(default=0.0, compare=False)
    """Seconds of silence that confirm it: 0 if the kernel's report does, infinite while the guest prints other output."""

    @property
    def summary(self) -> str:
        """One line: kind, message, faulting function, stage and later deaths."""
        where = ""
        if function := self.faulting_function:
            where = f" in {function}()"
            if function.startswith(("before ", "0x")):
                where = f" in the function {function.replace('0x', 'at 0x')}"
        stage = f" [stage {self.stage}]" if self.stage else ""
        later = "".join(f"; then {message}" for message in self.later)
        return f"{self.kind}: {self.message}{where}{stage}{later}"

    @property
    def identity(self) -> str:
        """A hash and the text it is made from. Equal faults have equal identities, because numbers are replaced by N."""
        place = self.faulting_function
        if place.startswith("0x"):
            place = normalise(place)
        words = f"{self.kind}: {normalise(self.message)} @ {place or '-'}"
        return f"{hashlib.sha256(words.encode()).hexdigest()[:8]} {words}"


def speaker(kind: str) -> str:
    """The source of the excerpt of a death of this kind. A guest that Xen refused has printed nothing itself."""
    return "Xen's tools" if kind == "refused" else "console"


# The last line of a report. Since 14.0-STABLE 1400507 a FreeBSD panic prints none of them: the domain is gone after "Uptime: 46s"
# or "Dump complete" (xctrl_shutdown_final()), so silence ends the report.
# Automatic reboot in 15 seconds / Rebooting... / ---[ end Kernel panic
_REPORT_ENDS = re.compile(
    rb"^\r*(?:Automatic reboot in|Rebooting\.\.\.)|Rebooting in \d+ seconds|---\[ end Kernel panic", re.MULTILINE
)

# A guest's output is hostile, so limit the bytes of a message, and the panics in a line and deaths in a report.
_LONGEST, _MOST = 4096, 8
# Kinds that a kernel or Xen reports. The other kinds are prompts and messages.
_FATAL = {"trap", "panic", "crash", "linux-panic", "linux-oops"}
# Messages of Linux that no program prints at the beginning of a line.
_CLEAR = re.compile(
    rb"Kernel panic|BUG: (?:unable to handle|kernel NULL|soft lockup|(?:\S+ )?stack guard page)|kernel BUG at|Unable to handle kernel|[^\r\n]*: [0-9a-f]{4,16} \[#\d"
    rb"|PANIC: double|INFO: |Watchdog detected"
)
# Messages after which Linux may continue: they count only if no further output follows.
_SURVIVABLE = re.compile(r"BUG: (?!unable to handle|kernel NULL|(?:\S+ )?stack guard page)|INFO: |Watchdog detected")
# Linux panics with these after a death that it has already reported (kernel/exit.c, kernel/watchdog.c, kernel/hung_task.c,
# kernel/rcu/tree_stall.h).
_END_OF_OOPS = re.compile(
    r"not syncing: (?:Fatal exception|Oops|Fatal hardware|softlockup|hung_task|hard LOCKUP|Hard LOCKUP|RCU Stall|panic_on_\w+|Attempted to kill"
    r"|BUG|stack-protector|Machine halted|kernel: )"
)
# The panic message of trap_fatal() is the trap's name, or one of these (sys/amd64/amd64/trap.c, sys/i386/i386/trap.c).
_TRAP_PANIC = re.compile(
    r"(?:unknown|reserved|unknown/reserved) trap|(?:double|page|general protection) fault|non-maskable interrupt|trap\b|NMI",
    re.IGNORECASE,
)
# The first output of a firmware or loader.
_BOOTS = re.compile(
    rb"FreeBSD/\w+ (?:[\w ]{1,24} )?(?:boot|bootstrap loader|EFI loader)\b|BTX loader \d|BdsDxe: |SeaBIOS \(|>> FreeBSD|GNU GRUB "
)
# Seconds of silence that confirm a panic without a kernel's report, and a message that Linux may survive.
_DOUBT, _LONG_DOUBT = 3.0, 8.0


def report_ended(data: bytes) -> bool:
    """Whether ``data`` contains the last line of a report."""
    return _REPORT_ENDS.search(data) is not None


@dataclass(frozen=True)
class _Hit:
    """A match of a marker. ``line`` is the offset of its line, ``begin`` and ``end`` those of the match (bytes)."""

    kind: DeathKind
    line: int
    begin: int
    end: int
    text: str
    evidence: Evidence = Evidence.UNDECIDED


def classify(
    data: bytes, tables: ConsoleTables, stage: str = "", stuck: Callable[[bytes], prompts.Stuck | None] | None = None
) -> Death | None:
    """The death that ``data`` (the end of a console) reports, or None. ``stuck`` replaces :func:`prompts.stuck`.

    The first death that the kernel reports is the cause. The panic that ends a trap belongs to the trap, and the panic that ends
    an oops to the oops. A second panic with another message is a double panic. A panic counts rather than the prompt after it,
    and a prompt rather than the panic after it.
    """
    data = cleaned(data)
    found: dict[str, list[str]] = {}
    fatal: list[_Hit] = []
    prompt_at = len(data)
    for marker in tables.all_markers:
        if rarest(marker.literal) not in data or marker.literal not in data:
            continue
        matches = marker.pattern.finditer(data)
        if marker.kind in _FATAL:
            fatal += [_hit(marker.kind, data, match) for match in matches]
        elif hits := list(matches):
            found.setdefault(marker.kind, [_shown(match[0]) for match in hits])
            prompt_at = min(prompt_at, hits[0].start()) if marker.prompt else prompt_at
    report = _select(_assess_all(data, fatal))
    # An answer at a prompt may cause a panic: an empty line at the mountroot prompt does.
    if report and report[0].begin < prompt_at:
        return _build(data, report, stage, tables)
    if not found:
        tail = data[data.find(b"\n", max(0, len(data) - (1 << 14))) + 1 if len(data) > 1 << 14 else 0 :]
        ended = (stuck or prompts.stuck)(tail)
        if ended and stuck is None:
            ended = _stuck(data, stage, tail, tables)
        return Death(ended.kind, ended.message, stage, excerpt=excerpt(decode(data))) if ended else None
    text = decode(data)
    kind = next(marker.kind for marker in tables.all_markers if marker.kind in found)
    message = found[kind][0]
    if kind == "mountroot":
        message = reasons.mountroot(text)
    elif kind == "single-user":
        message = reasons.single_user(text)
    elif kind == "ddb":
        message = "stopped in the kernel debugger"
    trace = frames(decode(data[:prompt_at]), tables.machinery) if kind == "ddb" else ()
    return Death(kind, message, stage, trace, faulting_function(trace, tables.machinery), excerpt(text))


def _stuck(data: bytes, stage: str, tail: bytes, tables: ConsoleTables) -> prompts.Stuck | None:
    """:func:`prompts.stuck` for the ``tail`` of ``data``, without a tracker that knows the stages.

    A prompt after a kernel's first output is not the loader's. After a login prompt no prompt counts.
    """
    boot = max((match.start() for match in _BOOTS.finditer(data)), default=-1)
    login = stage == "login" or last_login(data) > boot
    kernel = login or any(data.rfind(words) > boot for words in tables.kernel_literals)
    return prompts.stuck(tail, lambda until: not (login if until == "login" else kernel))


def _shown(words: bytes) -> str:
    return plain(words[:_LONGEST].decode("utf-8", "replace")).strip()


def _hit(kind: DeathKind, data: bytes, match: re.Match[bytes]) -> _Hit:
    words = b"".join(group or b"" for group in match.groups()) if match.re.groups else match[0]
    return _Hit(kind, data.rfind(b"\n", 0, match.start()) + 1, match.start(), match.end(), _shown(words))


def _assess_all(data: bytes, hits: list[_Hit]) -> list[_Hit]:
    """``hits`` in the order of the output, each with its evidence, without those inside another one."""
    hits.sort(key=lambda hit: (hit.begin, -hit.end))
    assessed: list[_Hit] = []
    login = last_login(data) if any(_SURVIVABLE.match(hit.text) for hit in hits) else -1
    following: _Hit | None = None
    for number in range(len(hits) - 1, -1, -1):
        hit = hits[number]
        if number and hits[number - 1].end > hit.begin:
            continue
        after = data[hit.end : min(following.line if following else len(data), hit.end + LOOK)]
        if following and following.line >= hit.end and not after.strip():
            # Adjacent lines share their evidence: two CPUs die, a console shows each line twice, or a report has two headlines.
            evidence = following.evidence
            if evidence is not Evidence.REFUTED:
                hit, own = _assess(data, hit, after)
                evidence = own if own is Evidence.REFUTED else evidence
        else:
            hit, evidence = _assess(data, hit, after)
            # ``after`` ends at the message of another program, but the guest may continue after that.
            beyond = data[hit.end : hit.end + LOOK]
            if evidence is Evidence.WEAK and following and following.evidence is Evidence.REFUTED and guest_continues(beyond):
                evidence = Evidence.REFUTED
        if hit.begin < login and _SURVIVABLE.match(hit.text):
            evidence = Evidence.REFUTED
        following = replace(hit, evidence=evidence)
        assessed.append(following)
    return assessed[::-1]


def _assess(data: bytes, hit: _Hit, after: bytes) -> tuple[_Hit, Evidence]:
    """``hit``, reduced to the panic that counts in its line, and its evidence. ``after``: the text up to the next hit."""
    lead, words = data[hit.line : hit.begin], data[hit.begin : hit.end]
    if hit.kind == "crash":
        return hit, assess(lead, words, after) if lead.strip() else Evidence.CONFIRMED
    if hit.kind.startswith("linux"):
        return hit, assess_linux(lead, words, after, clear=_CLEAR.match(words) is not None)
    if hit.kind != "panic":
        return hit, assess(lead, words, after)
    # A line may have the word twice: "debug.kdb.panic: 0panic: kdb_sysctl_panic", or a program's quote before the real panic.
    begins = [hit.begin]
    while len(begins) < _MOST and (follows := data.find(b"panic: ", begins[-1] + 1, hit.end)) >= 0:
        begins.append(follows)
    for begin, follows in zip(begins, [*begins[1:], hit.end], strict=True):
        # The value of a sysctl.
        if follows < hit.end and re.fullmatch(rb"panic: \d*", data[begin:follows]):
            continue
        evidence = assess(data[hit.line : begin], data[begin : hit.end], after)
        if evidence is not Evidence.REFUTED:
            return replace(hit, begin=begin, text=_shown(data[begin : hit.end])), evidence
    return hit, Evidence.REFUTED


def _select(hits: list[_Hit]) -> list[_Hit]:
    """The confirmed deaths, or else the first that is not refuted."""
    confirmed = [hit for hit in hits if hit.evidence is Evidence.CONFIRMED]
    return confirmed or [hit for hit in hits if hit.evidence is not Evidence.REFUTED][:1]


def _build(data: bytes, hits: list[_Hit], stage: str, tables: ConsoleTables) -> Death:
    """The death of which ``hits`` are the reports in ``data``."""
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
        if before.kind == "trap" and hit.kind == "panic" and _ends_trap(before.text, hit.text):
            continue
        if hit.kind == "linux-oops" and "[#" in hit.text and _precedes_number(headline):
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
        if "Panic on CPU" in message:
            reason = reasons.xen_panic(decode(data[cause.end : cause.end + LOOK]))
        else:
            reason = reasons.crash(decode(data[: cause.line]))
        message = ": ".join(filter(None, (message, reason)))
    report = data[cause.line : end]
    trace = frames(decode(report[begin - cause.line : 1 << 17]), tables.machinery)
    patience = 0.0 if cause.evidence is Evidence.CONFIRMED else _DOUBT
    if cause.kind == "linux-oops" and _SURVIVABLE.match(cause.text) and len(hits) == 1:
        patience = _LONG_DOUBT
    if cause.evidence is Evidence.WEAK:
        patience = math.inf
    shown = excerpt(decode(data[-(1 << 16) :]))
    function = faulting_function(trace, tables.machinery)
    return Death(kind, message, stage, trace, function, shown, later=tuple(later[:3]), begin=begin, patience=patience)


def _same(hit: _Hit, earlier: _Hit) -> bool:
    """Whether both hits have the same text, one of them perhaps cut off: that is one death."""
    one, other = sorted((hit.text, earlier.text), key=len)
    return hit.kind == earlier.kind and len(one) > len("panic: ") and other.startswith(one)


def _precedes_number(hit: _Hit) -> bool:
    """Whether a line such as ``Oops: 0000 [#1]`` after this headline belongs to the same report."""
    return hit.kind == "linux-oops" and "[#" not in hit.text and not _SURVIVABLE.match(hit.text)


def _ends_trap(trap: str, panic: str) -> bool:
    """Whether ``panic`` is the panic of the trap's own handler."""
    words = panic.removeprefix("panic: ").strip().lower()
    return words in trap.lower() or _TRAP_PANIC.match(words) is not None


def with_backtrace(death: Death, output: str, tables: ConsoleTables) -> Death:
    """``death`` with the backtrace in the debugger's ``output``, if its own report has none."""
    trace = frames(output, tables.machinery)
    if len(death.frames) > 1 or len(trace) < 1:
        return death
    return replace(death, frames=trace, faulting_function=faulting_function(trace, tables.machinery))


def with_names(death: Death, symbols: Symbols | None, tables: ConsoleTables) -> Death:
    """``death`` with the names from its kernel file, for frames without a name and for calls at the end of a function."""
    death = replace(death, nameless=sum(not frame.function for frame in death.frames))
    if symbols is None:
        return death
    trace = named(death.frames, symbols)
    return replace(death, frames=trace, faulting_function=faulting_function(trace, tables.machinery))


def lacks_names(death: Death) -> bool:
    """Whether :func:`with_names` may add a name."""
    return unnamed(death.frames)
