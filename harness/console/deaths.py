"""How a guest dies, read from what it last printed: text in, one structured death out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from harness.console import prompts
from harness.console.clean import cleaned
from harness.console.text import decode, excerpt, plain


@dataclass(frozen=True)
class Frame:
    """One line of a backtrace; ``offset`` is as printed, for example ``0x2b``."""

    function: str
    offset: str = ""


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

    @property
    def summary(self) -> str:
        where = f" in {self.guilty}()" if self.guilty else ""
        stage = f" [stage {self.stage}]" if self.stage else ""
        return f"{self.kind}: {self.message}{where}{stage}"

    @property
    def identity(self) -> str:
        words = f"{self.kind}: {normalise(self.message)} @ {self.guilty or '-'}"
        return f"{hashlib.sha256(words.encode()).hexdigest()[:8]} {words}"


def speaker(identity: str) -> str:
    """Whose words the excerpt of a death with this identity is: a guest that Xen refused has said nothing itself."""
    return "Xen's tools" if identity.partition(" ")[2].startswith("refused:") else "console"


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
    _marker("trap", b"Fatal ", rb"^\r*Fatal (?:double fault|trap \d+: [^\r\n]*)"),
    # panic: mountroot: unable to (re-)mount root.   Also glued: "debug.kdb.panic: 0panic: kdb_sysctl_panic"; not
    # "debug.kdb.panic: 0" (a dot before), not "Kernel panic - not syncing", not a word such as "mypanic:", unless the next line
    # is vpanic()'s (sys/kern/kern_shutdown.c): a panic begins wherever the console's line was.
    # rootpanic: page fault
    # cpuid = 0                                       (SMP kernels)
    # time = 1764512345                               (12 and later)
    _marker(
        "panic",
        b"panic: ",
        rb"(?:(?<![\w.])|(?<=\d))panic: (?!\d+\r*$)[^\r\n]+"
        rb"|panic: (?!\d+\r*$|[^\r\n]*panic: )[^\r\n]+(?=\r*\n\r*(?:cpuid|time) = \d+\r*$)",
    ),
    # mountroot>
    _marker("mountroot", b"mountroot> ", rb"^\r*mountroot> ", True),
    # db>     (not "db:0:kdb.enter.panic>  bt": that is a script's echo, and nobody is asked)
    _marker("ddb", b"db> ", rb"^\r*db> ", True),
    # Enter full pathname of shell or RETURN for /bin/sh:       (sbin/init/init.c: rc failed)
    _marker("single-user", b"RETURN for /bin/sh", rb"^\r*Enter full pathname of shell or RETURN for /bin/sh: ", True),
    # run_interrupt_driven_hooks: still waiting after 60 seconds for xenbusb_nop_confighook_cb
    _marker("hang", b"run_interrupt_driven_hooks", rb"run_interrupt_driven_hooks: still waiting after \d+ seconds for [^\r\n]*"),
    # (XEN) Domain 2 (vcpu#0) crashed on cpu#0:       (the PV shim's Xen speaks on its guest's console)
    _marker("crash", b"(XEN) ", rb"^\r*\(XEN\) (?:\[[ \d.]+\] )?Domain \d+ \(vcpu#\d+\) crashed on cpu#\d+"),
    # [   12.3] Kernel panic - not syncing: sysrq triggered crash
    _marker("linux-panic", b"Kernel panic", rb"Kernel panic - not syncing: [^\r\n]*"),
    # [   12.3] BUG: unable to handle page fault for address: 0000000000000010     Oops: 0002 [#1]
    _marker(
        "linux-oops",
        b": ",
        rb"\] (?:BUG: (?:unable to handle|kernel NULL)[^\r\n]*|Oops: [^\r\n]*|general protection fault[^\r\n]*)",
    ),
)
# After these nothing more of a report will come. Since 14.0-STABLE 1400507 a FreeBSD guest's panic ends with neither of them: the
# domain is gone after "Uptime: 46s", or after "Dump complete" (xctrl_shutdown_final()), and the report is over when it is quiet.
# Automatic reboot in 15 seconds / Rebooting... / ---[ end Kernel panic
_REPORT_ENDS = re.compile(
    rb"^\r*(?:Automatic reboot in|Rebooting\.\.\.)|Rebooting in \d+ seconds|---\[ end Kernel panic", re.MULTILINE
)

# vpanic() at vpanic+0x151/frame 0xfffffe0045071d60     i386: vpanic(c02edb88,c0302064) at vpanic+0x151/frame 0xc0302044
_FREEBSD_FRAME = re.compile(r"^([\w.$]+)\([^()\n]*\) at [\w.$]+\+(0x[0-9a-f]+)(?:/frame 0x[0-9a-f]+)?\s*$", re.MULTILINE)
# Without DDB:  #1 0xffffffff804a4861 at vpanic+0x151
_FREEBSD_STACK = re.compile(r"^#\d+ 0x[0-9a-f]+ at ([\w.$?]+)\+(0x[0-9a-f]+|0)\s*$", re.MULTILINE)
# [   12.3]  sysrq_handle_crash+0x16/0x20
_LINUX_FRAME = re.compile(r"^\[[ \d.]+\](?: \[[ \w]+\])?\s+([\w.]+)\+(0x[0-9a-f]+)/0x[0-9a-f]+\s*$", re.MULTILINE)
_FRAMES = (_FREEBSD_FRAME, _FREEBSD_STACK, _LINUX_FRAME)
# X_db_symbol_values stands for db_trace_self_wrapper in a kernel that knows its global symbols alone: no loader gave it others.
# What every panic passes through; the frame after these is the one to look at.
_MACHINERY = re.compile(
    r"^(?:db_trace_self\w*|X_db_symbol_values|db_trace_thread|db_fetch_ksymtab|kdb_(?:backtrace|enter|trap|reenter\w*|break)"
    r"|vpanic|panic|kassert_panic|trap_\w+|trap|calltrap|Xpage\w*|Xdblfault|dblfault_handler"
    r"|dump_stack\w*|show_stack|__die\w*|die|oops_\w+|page_fault_oops|exc_\w+|asm_exc_\w+|crash_kexec|no_context|bad_area\w*"
    r"|do_user_addr_fault)$"
)


def report_ended(data: bytes) -> bool:
    return _REPORT_ENDS.search(data) is not None


def normalise(message: str) -> str:
    """Without what differs from run to run: addresses, numbers, names with numbers in them keep their letters."""
    return re.sub(r"\s+", " ", re.sub(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,}\b|\d+", "N", message)).strip()


def frames(text: str) -> tuple[Frame, ...]:
    """The backtrace in ``text``, FreeBSD's or Linux's, innermost first."""
    found = next((hits for form in _FRAMES if (hits := form.findall(text))), [])
    return tuple(Frame(function, offset) for function, offset in found)


def guilty(trace: tuple[Frame, ...]) -> str:
    """The first function that is not the panic's own machinery, or ``""``."""
    return next((frame.function for frame in trace if not _MACHINERY.match(frame.function)), "")


def classify(data: bytes, stage: str = "") -> Death | None:
    """The death that ``data`` (the end of a console) tells of, or None.

    A trap is more telling than the panic it ends in, and a panic more than the prompt after it; a second panic
    with another message while the first is being reported is a double panic.
    """
    data = cleaned(data)
    found: dict[str, list[str]] = {}
    for marker in MARKERS:
        if marker.literal in data:
            hits = [plain(match[0].decode("utf-8", "replace")).strip() for match in marker.pattern.finditer(data)]
            if hits:
                found.setdefault(marker.kind, hits)
    if not found:
        ended = prompts.stuck(data)
        return Death(ended.kind, ended.message, stage, excerpt=excerpt(decode(data))) if ended else None
    text = decode(data)
    trace = frames(text)
    kind = next(marker.kind for marker in MARKERS if marker.kind in found)
    if kind in ("mountroot", "ddb") and "panic" in found:
        kind = "panic"
    message = found[kind][0]
    panics = [hit.removeprefix("panic: ") for hit in found.get("panic", [])]
    if kind == "panic":
        message = panics[0]
        if len(panics) > 1:
            kind, message = "double-panic", " / ".join(panics[:2])
    elif kind == "mountroot":
        message = prompts.mountroot(text)
    elif kind == "single-user":
        message = prompts.single_user(text)
    elif kind == "crash":
        reason = prompts.crash(text.partition(message)[0])
        message = f"{message}: {reason}" if reason else message
    elif kind == "ddb":
        message = "stopped in the kernel debugger"
    return Death(kind, message, stage, trace, guilty(trace), excerpt(text))


# The answer of mountroot's "?":   "  ufs/FBROOT ufsid/6b03ae756683071b xbd0"
def mountroot_devices(answer: str) -> tuple[str, ...]:
    """The disks and partitions that mountroot's ``?`` lists, for example ``("ufs/FBROOT", "xbd0")``."""
    _, _, after = answer.partition("List of GEOM managed disk devices:")
    listed = after.split("mountroot>")[0]
    return tuple(listed.split())
