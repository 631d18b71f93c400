# SPDX-License-Identifier: BSD-2-Clause
"""Check whether a host can run guests: one script collects the facts in dom0, pure functions turn them into checks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.transport import Transport
from harness.xen import firmware, gdbsx, listing, pygrub

OK, WARN, FAIL = "ok", "warn", "fail"

OLDEST, NEWEST = (4, 14), (4, 22)
_SKEW = 5.0
_SPACE = 2048
_NUMBER = re.compile(r"[0-9]{1,15}")
# /dev/vda         2000000 500000 1500000      25% /
_DF = re.compile(r"^.*\s[0-9]+\s+[0-9]+\s+(?P<free>[0-9]{1,15})\s+[0-9-]+%?\s+(?P<mount>/\S*)", re.MULTILINE)

# Collected in one round trip. The standard error of a tool goes to a separate section, so that it cannot spoil a table or a value.
SCRIPT = r"""
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
exec 3>&1
ask() { name=$1; shift; echo "%$name"; errors=$("$@" 2>&1 >&3 3>&-); echo; echo "%$name stderr"; printf '%s\n' "$errors"; }
echo '%user'; id -u
echo '%uname'; uname -sr
echo '%clock'; date +%s
echo '%tools'; for t in xl xenstore-read python3 losetup lvs zfs; do p=$(command -v $t) && echo "$t $p"; done
for p in /usr/lib/xen*/bin /usr/libexec/xen/bin /usr/local/libexec/xen/bin /usr/local/lib/xen/bin; do
  for t in xenconsole xenctx; do [ -x "$p/$t" ] && echo "$t $p/$t"; done
done
"""
SCRIPT += gdbsx.PROBE
SCRIPT += r"""
ask python python3 -S -E -c 'import sys; print(*sys.version_info[:3], sep=".")'
ask info xl info
ask list xl list
ask store xenstore-read /local/domain/0/name
echo '%console'; { pidof xenconsoled || pgrep -x xenconsoled; } 2>/dev/null
[ -c /dev/ptmx ] && ls /dev/pts >/dev/null 2>&1 && echo pts
echo '%links'; if [ -d /sys/class/net ]; then for b in /sys/class/net/*/bridge; do b=${b%/bridge}; echo "${b##*/} $(cat $b/operstate)"; done
else ifconfig -g bridge; fi
echo '%disk'; d=/var/lib/fxh; [ -d $d ] || d=/var/lib; [ -d $d ] || d=/var; df -Pk $d | tail -n 1; [ -w $d ] && echo writable
echo '%leases'; for f in /var/lib/fxh/leases/*.json; do [ -f "$f" ] || continue
r=${f##*/*-}; if ! command -v flock >/dev/null || ! flock -n "$f" true; then echo "${r%.json}"; fi; done
echo '%pygrub'
"""
SCRIPT += pygrub.PROBE
SCRIPT += r"""
echo '%firmware'; set -- "$(xl info 2>/dev/null | sed -n 's/^xen_version *: *\([0-9]*\.[0-9]*\).*/\1/p')"
"""
SCRIPT += firmware.PROBE


@dataclass(frozen=True)
class Check:
    """One prerequisite. ``status`` is ok, warn or fail; ``hint`` says how to fix it if it is not ok."""

    name: str
    status: str
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Facts:
    """The collected facts: sections of the output, paths of tools, the host's configuration, and the controller's clock (s)."""

    sections: Mapping[str, str]
    tools: Mapping[str, str]
    config: HostConfig
    now: float


def examine(config: HostConfig, connect: Callable[[], Transport]) -> tuple[Check, ...]:
    """Run all checks of a host. A failure to reach it becomes a failed check, not an exception."""
    begun = time.monotonic()
    try:
        transport = connect()
    except HarnessError as exc:
        return (Check("ssh", FAIL, exc.message, exc.hint or "try ssh -v to the host"),)
    try:
        seconds = time.monotonic() - begun
        sent = time.time()
        done = transport.run(["sh", "-c", SCRIPT], Deadline(60), check=False)
        return (Check("ssh", OK, f"{transport.name}, {seconds:.2f} s"), *evaluate(done.text, config, (sent + time.time()) / 2))
    except HarnessError as exc:
        return (Check("ssh", FAIL, exc.message, exc.hint),)
    finally:
        transport.close()


def evaluate(text: str, config: HostConfig, now: float) -> tuple[Check, ...]:
    """The checks from the output of :data:`SCRIPT`. ``now`` is the controller's clock, in seconds since the epoch."""
    parts = sections(text)
    tools = dict(line.split(" ", 1) for line in reversed(parts.get("tools", "").splitlines()) if " " in line)
    facts = Facts(parts, tools, config, now)
    checks = (_user, _tools, _xen, _daemons, _bridge, _disk, _clock, _leftovers)
    return tuple(found for check in checks for found in check(facts))


def sections(text: str) -> dict[str, str]:
    """Split the output of :data:`SCRIPT` at its ``%name`` lines."""
    found: dict[str, str] = {}
    for part in re.split(r"^%", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        found[name.strip()] = body.strip()
    return found


def _user(facts: Facts) -> Iterator[Check]:
    if facts.sections.get("user") == "0":
        yield Check("root", OK, facts.sections.get("uname", ""))
    else:
        yield Check(
            "root",
            FAIL,
            f"the login is user {facts.sections.get('user', '?')}",
            "xl needs root: use root@HOST, or User root in ~/.ssh/config",
        )


def _tools(facts: Facts) -> Iterator[Check]:
    linux = not facts.sections.get("uname", "").startswith("FreeBSD")
    packages = {
        "xl": "install Xen's tools (Debian: xen-utils; FreeBSD: pkg install xen-tools)",
        "xenstore-read": "install Xen's tools (Debian: xenstore-utils)",
        "python3": "install Python 3.7 or later: leases and pygrub need it",
    }
    if linux and facts.config.storage == "file":
        packages["losetup"] = "install util-linux"
    if facts.config.storage.startswith("lvm:"):
        packages["lvs"] = "install lvm2, or set another storage in fxh.toml"
    if facts.config.storage.startswith("zvol:"):
        packages["zfs"] = "install ZFS, or set another storage in fxh.toml"
    for tool, hint in packages.items():
        yield Check(tool, OK, facts.tools[tool]) if tool in facts.tools else Check(tool, FAIL, "missing", hint)
    version = facts.sections.get("python", "")
    match = re.search(r"^3\.(\d{1,3})\.", version, re.MULTILINE)
    if "python3" in facts.tools and not (match and int(match[1]) >= 7):
        detail = (version or _error_line(facts.sections, "python") or "?").splitlines()[-1][:100]
        yield Check("python3 version", FAIL, detail, "install Python 3.7 or later: leases need it")
    yield from _pygrub(dict(line.split(" ", 1) for line in facts.sections.get("pygrub", "").splitlines() if " " in line))
    aids = [f"{tool} {facts.tools[tool]}" for tool in ("xenctx", "gdbsx") if tool in facts.tools]
    detail = ", ".join(aids) or "neither xenctx nor gdbsx"
    if "gdbsx-off" in facts.tools:
        detail += f"; this Xen does not answer {facts.tools['gdbsx-off']}"
    hint = "install xenctx or gdbsx to debug guests that --keep failed keeps; nothing else needs them"
    yield Check("debug aids", OK if aids else WARN, detail, "" if aids else hint)


def _pygrub(found: dict[str, str]) -> Iterator[Check]:
    if "pygrub" not in found:
        yield Check(
            "pygrub", WARN, "missing: cases of PV guests that boot from their disk are skipped", "install xen-utils with pygrub"
        )
        return
    yield Check("pygrub", OK, found["pygrub"])
    danger = "pygrub parses the disks of guests as root:"
    if "runas" not in found:
        yield Check(
            "pygrub user", WARN, f"{danger} it has no restricted mode", "update Xen to 4.18 or later, or apply the fix of XSA-443"
        )
    elif "user" not in found:
        hint = f"useradd --system --no-create-home --uid 131072 {pygrub.USERS[0]} (pygrub runs with this uid plus the domid)"
        yield Check("pygrub user", WARN, f"{danger} user {' or '.join(pygrub.USERS)} is missing", hint)
    else:
        yield Check("pygrub user", OK, f"restricted, as {found['user']}")


def _error_line(parts: Mapping[str, str], name: str) -> str:
    """The most informative line of a tool's standard error, or of its section if standard error is empty."""
    return listing.informative(parts.get(f"{name} stderr", "") or parts.get(name, ""))[:120]


def _complaint(name: str, errors: str) -> Check:
    """The check for an xl that answered, but printed ``errors`` to standard error."""
    hint = "xl answered despite these messages; read dmesg and /var/log/xen on the host"
    return Check(name, WARN, f"xl complains: {listing.informative(errors)[:120]}", hint)


def _xen(facts: Facts) -> Iterator[Check]:
    try:
        info = listing.parse_info(facts.sections.get("info", ""))
    except ValueError:
        detail = _error_line(facts.sections, "info") or "no output"
        yield Check("xl info", FAIL, detail, "check that the host is booted under Xen and that xenstored runs")
        return
    if errors := facts.sections.get("info stderr", ""):
        yield _complaint("xl info", errors)
    if OLDEST <= info.number <= NEWEST:
        yield Check("Xen", OK, info.xen_version)
    else:
        yield Check("Xen", WARN, info.xen_version, "Xen 4.14 to 4.22 are supported; report problems with this version")
    types = info.guest_types
    if not info.x86:
        kind = (
            "an ARM host"
            if re.match("aarch64|arm", info.machine or "".join(info.caps).partition("xen-3.0-")[2])
            else "not an x86 host"
        )
        what = ", ".join(filter(None, (info.machine, *info.caps)))
        yield Check("architecture", FAIL, f"{kind} ({what}): the guests are amd64 and i386", "use a host with an x86-64 CPU")
    elif "pvh" in types:
        yield Check("guest types", OK, ", ".join(types))
    else:
        yield Check("guest types", WARN, f"{', '.join(types)}: no PVH, no HVM", "enable VT-x or SVM in the firmware")
    if "hvm" in types:
        words = {word: rest for word, _, rest in (line.partition(" ") for line in facts.sections.get("firmware", "").splitlines())}
        if why := firmware.missing(words):
            yield Check("UEFI", WARN, f"{why}: cases of UEFI guests are skipped", firmware.HINT)
        elif "ovmf" in words and "ovmf-xen" not in words:
            yield Check("UEFI", WARN, f"{words['ovmf']} {firmware.NO_OVMF_XEN}", firmware.HINT)
        elif "ovmf" in words:
            yield Check("UEFI", OK, words["ovmf"])
    rows = {}
    try:
        rows = {row.name: row for row in listing.parse_list(facts.sections.get("list", ""))}
        if errors := facts.sections.get("list stderr", "") or listing.complaints(facts.sections.get("list", "")):
            yield _complaint("xl list", errors)
    except ValueError as exc:
        yield Check(
            "xl list", FAIL, _error_line(facts.sections, "list") or str(exc), "report this: fxh cannot parse the output of this xl"
        )
    leased = sum(row.memory for name, row in rows.items() if name.startswith("fxh-"))
    room = facts.config.memory or info.free_memory + leased
    dom0 = rows["Domain-0"].memory if "Domain-0" in rows else 0
    if room >= 576:
        yield Check("memory", OK, f"{room} MiB for guests, dom0 has {dom0}")
    else:
        hint = "boot Xen with dom0_mem=2048M,max:2048M" if dom0 > info.total_memory / 2 else "destroy unused domains (xl list)"
        yield Check("memory", FAIL, f"{room} of {info.total_memory} MiB for guests, dom0 has {dom0}; a guest needs 512", hint)


def _daemons(facts: Facts) -> Iterator[Check]:
    if "Domain-0" in facts.sections.get("store", "").splitlines():
        yield Check("xenstore", OK, "answers")
    else:
        yield Check(
            "xenstore",
            FAIL,
            _error_line(facts.sections, "store") or "no answer",
            "start xencommons; if xenstored died, reboot the host, because it cannot be restarted",
        )
    lines = facts.sections.get("console", "").splitlines()
    if any(line[:1].isdigit() for line in lines):
        yield Check("xenconsoled", OK, "runs")
    else:
        yield Check("xenconsoled", FAIL, "does not run: no console can be read", "run xenconsoled --log=all, or restart xencommons")
    if "xenconsole" in facts.tools and "pts" in lines:
        yield Check("console", OK, facts.tools["xenconsole"])
    else:
        what = "no xenconsole" if "xenconsole" not in facts.tools else "no /dev/pts"
        yield Check("console", FAIL, f"{what}: xl console cannot work", "install xen-utils, and mount -t devpts devpts /dev/pts")


def _bridge(facts: Facts) -> Iterator[Check]:
    # xenbr0 up
    rows = [line.split() for line in facts.sections.get("links", "").splitlines()]
    bridges = {row[0]: row[1] if len(row) > 1 else "" for row in rows if row and row[0] != "*"}
    if facts.config.bridge not in bridges:
        have = ", ".join(bridges) or "none"
        yield Check(
            "bridge",
            FAIL,
            f"no {facts.config.bridge}; bridges of the host: {have}",
            f"create it (docs/hosts.md), or set hosts.{facts.config.name or 'NAME'}.bridge in fxh.toml",
        )
    elif bridges[facts.config.bridge] == "down":
        yield Check("bridge", WARN, f"{facts.config.bridge} is down", f"ip link set {facts.config.bridge} up")
    else:
        yield Check("bridge", OK, facts.config.bridge)


def _disk(facts: Facts) -> Iterator[Check]:
    text = facts.sections.get("disk", "")
    found = _DF.search(text)
    if "writable" not in text.split():
        yield Check("disk", FAIL, "/var/lib is not writable", "remount it, or look for disk errors in dmesg")
    elif found is None:
        yield Check("disk", WARN, f"df prints {text.strip()[:100]!r}: free space is unknown", "run df -Pk /var/lib on the host")
    else:
        free = int(found["free"]) >> 10
        detail = f"{free} MiB free at {found['mount']}"
        if free >= _SPACE:
            yield Check("disk", OK, detail)
        else:
            yield Check("disk", FAIL if free < 64 else WARN, detail, "run fxh clean HOST --yes, or remove files")


def _clock(facts: Facts) -> Iterator[Check]:
    clock = facts.sections.get("clock", "")
    skew = int(clock) - facts.now if _NUMBER.fullmatch(clock) else float("inf")
    # date prints whole seconds.
    if abs(skew + 0.5) <= _SKEW + 0.5:
        yield Check("clock", OK, f"within {_SKEW:.0f} s of this machine's")
    else:
        yield Check(
            "clock", WARN, f"{skew:+.0f} s from this machine's: times in its logs do not match", "run an NTP client on the host"
        )


def _leftovers(facts: Facts) -> Iterator[Check]:
    # 00000012-1a2b3c.json is the lease of run 1a2b3c, and fxh-1a2b3c-1-control a domain of it. Its agent keeps the file locked.
    owned = tuple(f"fxh-{run}-" for run in facts.sections.get("leases", "").split())
    names = re.findall(r"^(fxh-\S+)", facts.sections.get("list", ""), re.MULTILINE)
    orphans = [name for name in names if not name.startswith(owned)]
    zombies = re.findall(r"^\(null\)\s+(\d+)", facts.sections.get("list", ""), re.MULTILINE)
    if zombies:
        yield Check(
            "zombies",
            WARN,
            f"{len(zombies)} domains are stuck in dying state: {', '.join(zombies)}",
            "a backend still holds their memory: reboot the host at a convenient time",
        )
    if orphans:
        yield Check("fxh domains", WARN, f"no living run owns {', '.join(orphans)}", "run fxh clean HOST --yes")
    else:
        yield Check("fxh domains", OK, f"{', '.join(names)}: see fxh hosts" if names else "none")
