# SPDX-License-Identifier: BSD-2-Clause
"""Complaints: messages of a kernel, the hypervisor or dom0 that report a problem without ending the guest.

A complaint has an identity that is the same in every run: source (empty for the guest), kind, and the message without numbers. A
run compares the identities with those of its baseline, so it does not report a message that every boot prints.

To add a kind, add a row with a sample to :data:`KINDS`; a test feeds each sample to :func:`complaints`.
Sources: FreeBSD sys/kern/subr_witness.c, kern_intr.c, kern_tc.c, sys/dev/xen, sys/xen/xenbus/xenbus.c; Linux kernel/panic.c,
kernel/hung_task.c, kernel/rcu/tree_stall.h, drivers/net/xen-netback, drivers/block/xen-blkback; Xen xen/common/grant_table.c.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.safetext import plain

GUEST, XEN, DOM0 = "guest", "xen", "dom0"


@dataclass(frozen=True)
class Kind:
    """``pattern`` matches within a line, since a kernel message may follow other output without a newline.

    Its named groups, if it has any, make the identity; otherwise the matched text does. ``sample`` matches it.
    """

    name: str
    sources: tuple[str, ...]
    sample: str
    pattern: str


@dataclass(frozen=True)
class Complaint:
    """``message`` is the first line, ``detail`` the lines that belong to it. ``line`` counts from 1."""

    kind: str
    source: str
    message: str
    identity: str
    line: int
    detail: tuple[str, ...] = ()
    count: int = 1
    """How often this identity occurred in the text."""


_LOCK = r"[ \t]{0,8}1st \S+ (?P<first>[^(\n]*?) \([^\n]*\n[ \t]{0,8}2nd \S+ (?P<second>[^(\n]*?) \("
_FRONTEND = r"(?:xn|xbd|xenbusb_front|xenbusb_back|xctrl|xenballoon|gntdev|evtchn|granttable|xenstore|xenpv)\d+"

KINDS = (
    Kind(
        "lock order reversal", (GUEST,),
        "lock order reversal: (sleepable after non-sleepable)\n 1st 0xffffffff80e7ca58 dev mtx (devd, sleep mutex) @ kern/a.c:571\n"
        " 2nd 0xffffffff80fa0d00 umareclaim (umareclaim, sx) @ vm/b.c:3395",
        rf"lock order reversal:[^\n]*\n(?:[^\n]*\n)??{_LOCK}",
    ),
    Kind(
        "lock held while sleeping", (GUEST,),
        'uma_zalloc_debug: zone "malloc-16" with the following non-sleepable locks held:\nexclusive sleep mutex xn (xn, sleep mutex) r = 0',
        r"^(?P<what>[^\n]*?) with the following (?:non-sleepable |exclusive )?locks held:(?:\n[^\n]* (?:mutex|lock|rm|sx|rw) (?P<lock>\S+) \()?",
    ),
    Kind(
        "duplicate lock", (GUEST,), 'acquiring duplicate lock of same type: "xbd"', r'acquiring duplicate lock of same type: "(?P<lock>[^"\n]*)"'
    ),
    Kind("malloc may sleep", (GUEST,), "malloc(M_WAITOK) in interrupt context", r"malloc\(M_WAITOK\)[^\n]*"),
    Kind(
        "interrupt storm", (GUEST,), 'interrupt storm detected on "irq256:"; throttling interrupt source',
        r'interrupt storm detected on "(?P<irq>[^"\n]*)"',
    ),
    Kind(
        "clock went backwards", (GUEST,), "calcru: runtime went backwards from 12 usec to 3 usec for pid 0 (kernel)",
        r"calcru: (?:runtime went backwards|negative runtime)",
    ),
    Kind("time counter", (GUEST,), "Timecounter XENTIMER is broken: 3 errors", r"[Tt]imecounter [^\n]*(?:broken|unstable|errors)[^\n]*"),
    Kind("timeout", (GUEST,), "xbd0: watchdog timeout -- resetting", rf"(?:{_FRONTEND}|vtnet\d+|ada\d+|em\d+|re\d+): [^\n]*(?:watchdog|timed? ?out)[^\n]*"),
    Kind(
        "device error", (GUEST,), "xbd0: Error 5 reading ring-ref", rf"{_FRONTEND}: (?![^\n]*(?:watchdog|timed? ?out))[^\n]*\b(?:[Ee]rror|[Ff]ailed|[Ff]atal|WARNING|Bad)\b[^\n]*"
    ),
    Kind("frontend error", (GUEST,), "xn_rxeof: WARNING: response is -1!", r"(?:xn_\w+|xbd_\w+|xnb_\w+): (?:WARNING|Bad|cons \d+ frags|nfrags)[^\n]*"),
    Kind(
        "bus error", (GUEST,), "xenbusb_front0: xenbus_dev_fatal: xbd0: 12 allocating shared ring",
        r"xenbus(?:_dev)?_(?:fatal|error)[^\n]*",
    ),
    Kind("kernel warning", (GUEST,), "WARNING: / was not properly dismounted", r"^WARNING: (?!CPU: |possible )[^\n]*"),
    Kind(
        "Linux WARNING", (GUEST, DOM0), "WARNING: CPU: 0 PID: 12 at net/core/skbuff.c:123 skb_warn_bad_offload+0x5/0x10",
        r"WARNING: CPU: \d+ PID: \d+ at (?P<place>\S+?):\d+ (?P<function>[\w.]+)",
    ),
    Kind(
        "Linux BUG", (GUEST, DOM0), "BUG: sleeping function called from invalid context at mm/slab.h:304",
        r"BUG: (?:sleeping function called|scheduling while atomic|workqueue lockup|soft lockup|Bad (?:page|rss-counter)|MAX_LOCKDEP)[^\n]*",
    ),
    Kind(
        "Linux hung task", (GUEST, DOM0), "INFO: task kworker/0:1:23 blocked for more than 120 seconds.",
        r"INFO: task (?P<task>[^\s:/]+)[^\n]* blocked for more than \d+ seconds",
    ),
    Kind(
        "Linux RCU stall", (GUEST, DOM0), "rcu: INFO: rcu_sched self-detected stall on CPU", r"rcu: INFO: \w+ (?:self-)?detected (?:expedited )?stall"
    ),
    Kind("Linux lockdep", (GUEST, DOM0), "WARNING: possible circular locking dependency detected", r"WARNING: possible (?:circular|recursive|irq)[^\n]*"),
    # Xen's loader passes the symbols of a kernel without boot loader (libelf; FreeBSD sys/x86/xen/pv.c, xen_pvh_parse_symtab()).
    Kind(
        "backtrace without names", (GUEST,), "KDB: stack backtrace:\n#0 0xffffffff804a4861 at ??+0\n#1 0xffffffff804a4321 at ??+0",
        r"(?P<what>KDB: stack backtrace):(?:\n(?:#\d+ 0x[0-9a-f]+ at \?\?|\?\?\(\) at (?:0x[0-9a-f]+|\?\?))[^\n]*){2}",
    ),
    Kind("blkfront", (GUEST,), "blkfront: xvda: write: op failed", r"blkfront: [^\n]*(?:fail|error|Bad|bad)[^\n]*"),
    Kind("netfront", (GUEST,), "net eth0: rx->offset: 0, size: -1", r"net eth\d+: (?:rx->offset|Invalid|Bad|Missing|Need more|bad)[^\n]*"),
    Kind(
        "grant table", (GUEST, DOM0), "xen:grant_table: WARNING: g.e. 0x25 still in use!",
        r"(?:gnttab\w*:|xen:grant_table:)[^\n]*(?:still in use|leaking|deferring|[Ff]ail|[Ee]rror|[Bb]ad)[^\n]*",
    ),
    # A debug build prints file and line. It reports each growth of a table, and each grant that a domain leaves mapped when it ends.
    Kind(
        "Xen grant table", (XEN,), "(XEN) common/grant_table.c:3801:d0v1 Bad grant reference 0x1 from d4",
        r"(?:grant_table\.c:\d+:\S+ (?!Expanding|Grant release)|d\d+v\d+ (?=Bad (?:grant|ref|flags|handle|frame|gfn)|Could not pin))[^\n]*",
    ),
    Kind("netback", (DOM0,), "vif vif-3-0 vif3.0: Guest Rx stalled", r"vif (?:vif-\d+-\d+ )?vif\d+\.\d+: (?:Guest Rx stalled|fatal|[Tt]oo|Invalid|Malformed|Cross|Packet)[^\n]*"),
    Kind("blkback", (DOM0,), "xen-blkback: invalid buffer -- could not remap it", r"xen-?blkback: (?![^\n]*using \d+ queues)(?!backend/vbd[^\n]*: (?:prepare|using))[^\n]*"),
    Kind("xenbus", (DOM0,), "vif vif-3-0: 22 mapping shared-frames", r"(?:vif|vbd) (?:vif|vbd)-\d+-\d+: (?:-?\d+ \w|failed|[Ee]rror)[^\n]*"),
    Kind("Xen WARN", (XEN,), "Xen WARN at arch/x86/x.c:12", r"Xen WARN at (?P<place>[^\s:]+)"),
    Kind("Xen rejects", (XEN,), "(XEN) d3 attempted to change d0's CR4 flags 1 -> 2", r"d\d+(?:v\d+)? (?:attempted|tried)[^\n]*"),
)  # fmt: skip

_PATTERNS = {kind.name: re.compile(kind.pattern, re.MULTILINE) for kind in KINDS}
# Every pattern has one of these words; most lines have none.
_HINT = re.compile(
    r"lock|M_WAITOK|KDB: s|storm|calcru|imecounter|xn|xbd|xen|WARN|BUG|INFO|net eth|grant|gntt|v(?:if|bd) v|d\d+|time|[Ff]ail|[Ee]rror|Bad"
)
#  1st 0x..    #0 0xffffffff805638a1 at witness_checkorder+0xbe1     lock order devd -> umareclaim attempted at:
# [    0.854109]  <TASK>     [    0.854109]  ? rest_init+0xb0/0xb0     [    0.854109]  native_smp_prepare_cpus+0x23/0xb0
_BELONGS = re.compile(
    r"(?:\[ *\d+\.\d+\] )?\s*(?:1st |2nd |#\d+ |\[?<|(?:\? )?[\w.]+\+0x|lock order \S+ ->|RIP: |Call Trace|exclusive |shared )"
)
# Characters that are searched at once, and such pieces at each end of a line.
_PIECE, _ENDS = 400, 5
# Identities of one text. A guest that writes more is hostile.
_MOST = 200
# 0xffffffff80e7ca58   deadbeefdeadbeef   12
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,16}\b|\d+")
# Lines of witness's backtrace and of Linux's warning that belong to a complaint.
_DETAIL = 12
_IDENTITY = 120


def complaints(text: str, source: str = GUEST) -> tuple[Complaint, ...]:
    """The complaints in ``text``, one per identity, in the order of their first line. ``text`` has no escape sequences."""
    lines = text.replace("\r", "").split("\n")
    found: dict[str, Complaint] = {}
    for number, line in enumerate(lines):
        if not _HINT.search(line):
            continue
        # A message may be glued to other output, and a guest may write megabytes without a newline.
        for begin in _pieces(len(line)):
            piece = "\n".join([line[begin : begin + _PIECE], *(follower[:_PIECE] for follower in lines[number + 1 : number + 4])])
            hit = _match(piece, source)
            if hit is None:
                continue
            kind, match = hit
            identity = _identity(kind, match, source)
            if identity in found:
                found[identity] = replace(found[identity], count=found[identity].count + 1)
                continue
            message = plain(piece.split("\n", 1)[0][match.start() :].strip())
            if len(found) >= _MOST:
                return tuple(found.values())
            followers = (
                plain(follower[:_PIECE]) for follower in lines[number + 1 : number + 1 + _DETAIL] if _BELONGS.match(follower)
            )
            found[identity] = Complaint(kind.name, source, message, identity, number + 1, tuple(followers))
    return tuple(found.values())


def _pieces(length: int) -> Iterator[int]:
    """Where the searched parts of a line begin: of a very long line only its ends, where a message may be glued to it."""
    places = range(0, length, _PIECE)
    return iter(places) if len(places) <= 2 * _ENDS else itertools.chain(places[:_ENDS], places[-_ENDS:])


def _match(piece: str, source: str) -> tuple[Kind, re.Match[str]] | None:
    """The first row that matches the first line of ``piece``; rows are in order of precedence."""
    first = piece.partition("\n")[0]
    for kind in KINDS:
        match = _PATTERNS[kind.name].search(piece) if source in kind.sources else None
        if match is not None and match.start() < max(1, len(first)):
            return kind, match
    return None


def _identity(kind: Kind, match: re.Match[str], source: str) -> str:
    named = [value for value in match.groupdict().values() if value]
    words = " / ".join(named) if named else match[0].split("\n", 1)[0]
    return f"{'' if source == GUEST else f'{source} '}{kind.name}: {' '.join(_VARIABLE.sub('#', plain(words)).split())}"[:_IDENTITY]
