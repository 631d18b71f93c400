# SPDX-License-Identifier: BSD-2-Clause
"""Parses the output of xl: text in, frozen dataclasses out."""

from __future__ import annotations

import re
from dataclasses import dataclass

REASONS = {"-": "poweroff", "r": "reboot", "s": "suspend", "c": "crash", "w": "watchdog", "S": "soft-reset"}
# The codes in xl's log, in order (xen/include/public/sched.h).
REASON_CODES = ("poweroff", "reboot", "suspend", "crash", "watchdog", "soft-reset")


@dataclass(frozen=True)
class DomainState:
    """One row of ``xl list``. Memory is in MiB, ``time`` is virtual CPU time in seconds, ``state`` has six letters."""

    name: str
    domid: int
    memory: int
    vcpus: int
    state: str
    time: float

    @property
    def running(self) -> bool:
        return self.state[0] == "r"

    @property
    def blocked(self) -> bool:
        return self.state[1] == "b"

    @property
    def paused(self) -> bool:
        return self.state[2] == "p"

    @property
    def shutdown(self) -> bool:
        return self.state[3] == "s"

    @property
    def dying(self) -> bool:
        return self.state[5] == "d"

    @property
    def reason(self) -> str:
        """The reason of its shutdown (xen tools/xl/xl_info.c:469): poweroff, reboot, ...; "" if it is not shut down."""
        return REASONS.get(self.state[4], "unknown") if self.shutdown else ""


# fxh-1a2b-1                                   3   512     1     -b----      25.4
_ROW = re.compile(r"^(\S.*?|)\s+(\d+)\s+(\d+)\s+(\d+)\s+([r-][b-][p-][s-][-rscwS?][d-])\s+([\d.]+)\s*$")


# Name                                        ID   Mem VCPUs	State	Time(s)
_HEADER = re.compile(r"Name\s+ID\s+Mem\s.*")
# Five columns after a name, and the last is a number: a row of an unknown format rather than a message.
_LIKE_A_ROW = re.compile(r"\s\d+\s+\d+\s+\d+\s+\S+\s+[\d.]+\s*$")


def parse_list(text: str) -> tuple[DomainState, ...]:
    """The rows of ``xl list``. A domain that is being destroyed has the name ``(null)``.

    Messages before, between and after the rows are skipped; :func:`complaints` returns them. Raises ValueError for a text without
    a table, and for a row of an unknown format.
    """
    rows = []
    for line in text.splitlines():
        if match := _ROW.match(line):
            name, domid, memory, vcpus, state, seconds = match.groups()
            rows.append(DomainState(name, int(domid), int(memory), int(vcpus), state, float(seconds)))
        elif _LIKE_A_ROW.search(line):
            raise ValueError(f"cannot parse a row of `xl list`: {line!r}")
    if not rows and text.strip() and not _HEADER.search(text):
        raise ValueError(f"the output of `xl list` has no table: {informative(text)!r}")
    return tuple(rows)


def complaints(text: str) -> str:
    """The lines outside the table, in output of ``xl list`` that includes standard error."""
    lines = [line for line in _HEADER.sub("", text).splitlines() if line.strip()]
    return "\n".join(line for line in lines if not _ROW.match(line) and not _LIKE_A_ROW.search(line))


# The level of a message of libxl:
#   libxl: error: libxl_device.c:1258:device_hotplug_child_death_cb: Domain 3:script: losetup: /x.img: cannot open
#   libxl: warning: libxl_create.c:89: Domain 3:defaulting to ...
_LEVEL = re.compile(r"^\S+: (error|warning|info|notice|progress|verbose|detail|debug): ")
# Errors that are consequences of another error, which is printed before them or instead of them.
#   libxl: error: libxl_exec.c:117:libxl_report_child_exitstatus: /etc/xen/scripts/block add [811] exited with error status 1
#   xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel
#   Failed to parse config: Invalid argument
_CONSEQUENCE = re.compile(
    r"no loader found|xc_dom_(?:parse_image|boot_mem_init|boot_image|build_image|mem_init|rambase_init|find_loader) failed"
    r"|cannot \(re-\)build domain|exited with error status|[Uu]nable to (?:add|remove|destroy|attach) |Destruction of domain failed"
    r"|Non-exist[ae]nt domain|(?:libxl_\w+|domain creation|[Dd]evice \w+) failed\.?(?: \(rc=-?\d+\))?\s*$|[Ff]ailed to parse (?:config|the)"
    r"|cannot init xl context|bad (?:bootloader|dm) |[Cc]ould not (?:create|destroy|clean up|unwind)|is an invalid domain identifier"
    r"|: (?:failed|error)\s*$"
)
# Usual output before an error:  Parsing config from /x.cfg      WARNING: ignoring device_model directive.
_USUAL = re.compile(r"(Parsing config (?:from|file) |Waiting for domain |Loading new save file )|(?i:warning: )")
_ORDER = {"error": 0, "": 0, "consequence": 1, "warning": 2}


def informative(text: str) -> str:
    """The most informative line of the messages of xl, libxl and libxc after a failure; "" if there is none.

    The order is: errors, their consequences, warnings, other lines. Of equal lines the first counts.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip(" \t:")]

    def rank(line: str) -> int:
        level = match[1] if (match := _LEVEL.match(line)) else ""
        if not level and (usual := _USUAL.match(line)):
            return 3 if usual[1] else _ORDER["warning"]
        return _ORDER.get("consequence" if level in ("error", "") and _CONSEQUENCE.search(line) else level, 3)

    return min(lines, key=rank, default="")


@dataclass(frozen=True)
class HostInfo:
    """The output of ``xl info``, with memory in MiB. ``caps`` are ``xen-3.0-x86_64``, ``hvm-3.0-x86_64``, ..."""

    xen_version: str
    caps: tuple[str, ...]
    virt_caps: tuple[str, ...]
    total_memory: int
    free_memory: int
    cpus: int
    kernel: str
    command_line: str
    values: tuple[tuple[str, str], ...]

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor version: (4, 22) for 4.22-unstable and for 4.22.1-pre."""
        values = dict(self.values)
        return int(values["xen_major"]), int(values["xen_minor"])

    @property
    def machine(self) -> str:
        """The architecture of dom0's kernel, as printed by uname: ``x86_64``, ``amd64``, ``aarch64``."""
        return dict(self.values).get("machine", "")

    @property
    def build_id(self) -> str:
        """The GNU build-id of the hypervisor in hex; "" if it has none, or before Xen 4.7."""
        found = dict(self.values).get("build_id", "")
        return found if re.fullmatch(r"[0-9a-f]+", found) else ""

    @property
    def x86(self) -> bool:
        """Whether Xen runs x86 guests; an ARM host has ``xen-3.0-aarch64`` among its capabilities."""
        known = " ".join(self.caps) or self.machine
        return not known or any(name in known for name in ("x86_", "amd64", "i386", "i686"))

    @property
    def guest_types(self) -> tuple[str, ...]:
        """Those of pv, pv32, pvh and hvm that this Xen supports, by its capability strings."""
        types = []
        if "xen-3.0-x86_64" in self.caps:
            types.append("pv")
        if "xen-3.0-x86_32p" in self.caps:
            types.append("pv32")
        if any(cap.startswith("hvm-3.0") for cap in self.caps):
            types += ["pvh", "hvm"]
        return tuple(types)


def parse_info(text: str) -> HostInfo:
    """Parse ``xl info``. Messages among the rows are skipped. Raises ValueError if a required row is missing or malformed."""
    # free_memory            : 1762
    values = dict(re.findall(r"^([a-z]\w*) *: ?(.*?)\s*$", text, re.MULTILINE))
    try:
        # 4.20.5-pre (Debian), 4.22-unstable and 4.22-rc1 (development): the part after the minor number has no fixed format.
        version = f"{int(values['xen_major'])}.{int(values['xen_minor'])}{values.get('xen_extra', '')}"
        return HostInfo(
            xen_version=version,
            caps=tuple(values["xen_caps"].split()),
            virt_caps=tuple(values.get("virt_caps", "").split()),
            total_memory=int(values["total_memory"]),
            free_memory=int(values["free_memory"]),
            cpus=int(values["nr_cpus"]),
            kernel=values.get("release", ""),
            command_line=values.get("xen_commandline", ""),
            values=tuple(values.items()),
        )
    except (KeyError, ValueError) as exc:
        raise ValueError(f"`xl info`: missing or malformed {exc}: {text[:200]!r}") from None


@dataclass(frozen=True)
class ShutdownEvent:
    """A shutdown of a domain in xl's log (xen tools/xl/xl_vmcontrol.c:1079)."""

    domid: int
    reason: str
    action: str


# Domain 2 has shut down, reason code 1 0x1
# Action for shutdown reason code 1 is restart
_SHUTDOWN = re.compile(
    r"Domain (\d+) has shut down, reason code (\d+) 0x[0-9a-f]+\n(?:Action for shutdown reason code \d+ is (\S+))?"
)


def parse_log(text: str) -> tuple[ShutdownEvent, ...]:
    """The shutdowns in ``/var/log/xen/xl-<name>.log``, oldest first."""
    return tuple(
        ShutdownEvent(int(domid), REASON_CODES[int(code)] if int(code) < len(REASON_CODES) else code, action or "")
        for domid, code, action in _SHUTDOWN.findall(text)
    )


# libxl: error: libxl_create.c:1695:domcreate_rebuild_done: Domain 4:cannot (re-)build domain: -3
_FAILED = re.compile(r"^libxl: error: [^ ]+ Domain (\d+):", re.MULTILINE)


def failed_domids(text: str) -> frozenset[int]:
    """The domids for which ``/var/log/xen/xl-<name>.log`` has an error. A domain that xl failed to build is named only there."""
    return frozenset(map(int, _FAILED.findall(text)))


# xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel
# xc: error: panic: xg_dom_core.c:536: xc_dom_chk_alloc_pages: segment kernel too large (0x..) > 0x..) pages): Out of memory
# xc: error: panic: xg_dom_core.c:205: failed to open file '(null)': Bad address: Internal error
# libxl: error: libxl_bootloader.c:753:bootloader_finished: Domain 4:bootloader failed - consult logfile /var/log/xen/bootloader.4.log
# xl: libxl_dom.c:964: libxl__domain_firmware: Assertion `info->type == LIBXL_DOMAIN_TYPE_HVM' failed.
# xc: error: panic: xg_dom_bzimageloader.c:617: xc_try_zstd_decode: ZSTD decompress support unavailable
_REFUSED = re.compile(
    r"^xc: error: panic: [^:\n]+:\d+: (.*(?:: Invalid kernel$|decompress support unavailable|segment \S+ too large|zero length file"
    r"|failed to open file '\(null\)').*)"
    r"|Domain \d+:(bootloader failed)(?: - consult logfile (\S+))?"
    r"|^xl: (\S+:\d+: .* Assertion .* failed)",
    re.MULTILINE,
)
# xc_dom_find_loader() prints this after each loader has printed its reason.
_NO_LOADER = "no loader found"
# The log continues after these lines when the toolstack builds the domain again.
#   Domain 2 has shut down, reason code 1 0x1
_NEXT_BUILD = re.compile(r"^(?:Domain \d+ has shut down|Waiting for domain|Parsing config from)\b", re.MULTILINE)


@dataclass(frozen=True)
class Refusal:
    """Why the toolstack refused to build the domain, if the guest is the cause. ``log`` is the path of its bootloader's log."""

    why: str
    log: str = ""


def parse_refusal(text: str) -> Refusal | None:
    """The refusal of the last build in xl's output or log; None if there is none. Of several reasons the first counts.

    Sources: xen tools/libs/guest/xg_dom_*.c and libxl_bootloader.c.
    """
    # Some messages of libxc contain a line end.
    whole = text.replace("\n: ", ": ")
    tries = [list(_REFUSED.finditer(part)) for part in _NEXT_BUILD.split(whole)]
    found = next((matches for matches in reversed(tries) if matches), None)
    if found is None:
        return None
    match = next((match for match in found if _NO_LOADER not in match[0]), found[0])
    return Refusal(match[1] or match[2] or f"xl aborts: {match[4]}", match[3] or "")
