"""What xl prints, as values: text in, frozen dataclasses out."""

from __future__ import annotations

import re
from dataclasses import dataclass

REASONS = {"-": "poweroff", "r": "reboot", "s": "suspend", "c": "crash", "w": "watchdog", "S": "soft-reset"}
# Reason codes as in the log of xl and in xen/include/public/sched.h.
REASON_CODES = ("poweroff", "reboot", "suspend", "crash", "watchdog", "soft-reset")


@dataclass(frozen=True)
class DomainState:
    """One row of ``xl list``: memory in MiB, ``time`` in seconds of virtual CPU time; ``state`` the six letters."""

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
        """Why it is shut down (xen tools/xl/xl_info.c:469): poweroff, reboot, ... or "" while it is not."""
        return REASONS.get(self.state[4], "unknown") if self.shutdown else ""


# fxh-1a2b-1                                   3   512     1     -b----      25.4
_ROW = re.compile(r"^(\S.*?|)\s+(\d+)\s+(\d+)\s+(\d+)\s+([r-][b-][p-][s-][-rscwS?][d-])\s+([\d.]+)\s*$")


def parse_list(text: str) -> tuple[DomainState, ...]:
    """The rows of ``xl list``; a domain on its way out has the name ``(null)``. Raises ValueError for an unknown row."""
    rows = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("Name "):
            continue
        match = _ROW.match(line)
        if not match:
            raise ValueError(f"a row of `xl list` that is not understood: {line!r}")
        name, domid, memory, vcpus, state, seconds = match.groups()
        rows.append(DomainState(name, int(domid), int(memory), int(vcpus), state, float(seconds)))
    return tuple(rows)


@dataclass(frozen=True)
class HostInfo:
    """``xl info``: memory in MiB. ``caps`` are Xen's (``xen-3.0-x86_64``, ``hvm-3.0-x86_64``, ...)."""

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
    def guest_types(self) -> tuple[str, ...]:
        """Of pv, pv32, pvh and hvm those that this Xen can run; each from its capability strings."""
        types = []
        if "xen-3.0-x86_64" in self.caps:
            types.append("pv")
        if "xen-3.0-x86_32p" in self.caps:
            types.append("pv32")
        if any(cap.startswith("hvm-3.0") for cap in self.caps):
            types += ["pvh", "hvm"]
        return tuple(types)


def parse_info(text: str) -> HostInfo:
    """``xl info``. Raises ValueError when it lacks what every Xen prints."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        # free_memory            : 1762
        key, colon, value = line.partition(":")
        if colon:
            values[key.strip()] = value.strip()
    try:
        version = f"{values['xen_major']}.{values['xen_minor']}{values['xen_extra']}"
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
        raise ValueError(f"`xl info` lacks or garbles {exc}: {text[:200]!r}") from None


@dataclass(frozen=True)
class ShutdownEvent:
    """What xl's log says of a domain that went down (xen tools/xl/xl_vmcontrol.c:1079)."""

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


# xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel
# xc: error: panic: xg_dom_core.c:536: xc_dom_chk_alloc_pages: segment kernel too large (0x..) > 0x..) pages): Out of memory
# xc: error: panic: xg_dom_core.c:205: failed to open file '(null)': Bad address: Internal error
# libxl: error: libxl_bootloader.c:753:bootloader_finished: Domain 4:bootloader failed - consult logfile /var/log/xen/bootloader.4.log
# xl: libxl_dom.c:964: libxl__domain_firmware: Assertion `info->type == LIBXL_DOMAIN_TYPE_HVM' failed.
_REFUSED = re.compile(
    r"^xc: error: panic: [^:\n]+:\d+: (.*(?:: Invalid kernel$|segment \S+ too large|zero length file|failed to open file '\(null\)').*)"
    r"|Domain \d+:(bootloader failed)(?: - consult logfile (\S+))?"
    r"|^xl: (\S+:\d+: .* Assertion .* failed)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Refusal:
    """Why the toolstack built no domain: for what the guest is, not for what the host lacks. ``log`` is its bootloader's."""

    why: str
    log: str = ""


def parse_refusal(text: str) -> Refusal | None:
    """From what xl says, or its log: the last there is. Xen's sources are tools/libs/guest/xg_dom_*.c and libxl_bootloader.c."""
    last = None
    for match in _REFUSED.finditer(text):
        last = Refusal(match[1] or match[2] or f"xl aborts: {match[4]}", match[3] or "")
    return last
