# SPDX-License-Identifier: BSD-2-Clause
"""The reasons that a console printed before a boot ended: pure functions of the text before a prompt or message."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.safetext import plain

# Lines of conserver: [-- MARK -- Sat Feb  3 04:00:00 2024]     [-- console up -- ...]
_MARK = r"^\[-- .* --\]$"
# Type '?' for a list of commands, 'help' for more detailed help.     Hit [Enter] to boot immediately, or any other key for ...
# Booting [/boot/kernel/kernel]...     /boot/kernel/kernel text=0x18e2c8     BIOS drive C: is disk0     Loading /boot/loader.conf
_LOADER_HELP = re.compile(
    rf"{_MARK}|^(?:Type '\?'|Hit \[Enter\]|Booting \[|Booting in |Autoboot|Loading |Startup|BTX |BIOS |Consoles: |FreeBSD/|>> FreeBSD"
    r"|/\S+ (?:text|data|size)=|\([^@]*@.*\)$|OK\b|Welcome to |Starting the BTX|Relocating|Building the boot|Looking up|EFI |Image base"
    r"|Command line arguments|Load (?:Path|Device)|Default: |boot:|[-+|/_`'., ()\\]+$)"
)
_GRUB_HELP = re.compile(
    rf"{_MARK}|GNU GRUB|Minimal BASH-like|TAB lists|Anywhere else|completions|Entering rescue mode|Welcome to GRUB|ESC at any time|^grub"
)
_LINUX_HELP = re.compile(
    rf"{_MARK}|^(?:Give root password|\(or |Press Enter|Cannot open access|Enter 'help'|BusyBox|Built-in shell|Type |You are in|Entering "
    r"|Generating|or \"|after logging in|See |Welcome to emergency)"
)
_ONLY_MARKS = re.compile(_MARK)
# Search this many lines above a prompt for a reason, and cut the reason at this many characters.
_NEAR, _REASON = 4, 200
_COMPLAINT = re.compile(
    r"(?i)error|fail|can(?:'|no)t|unable|not found|\bno\b|unknown|invalid|missing|don't know|panic|abort|refus|denied|corrupt|\bbad\b"
    r"|wrong|incorrect|unavailable|does not exist|gave up|giving up"
)


def _above(before: str, skip: re.Pattern[str] = _ONLY_MARKS) -> str:
    """The last complaint among the nearest lines above a prompt, or else the last line. Skips help and blank lines."""
    lines = [line.strip() for line in plain(before).splitlines()]
    near = [line for line in lines if line and not skip.search(line)][-_NEAR:]
    return (_complaint(near) or "".join(near[-1:]))[:_REASON]


def _complaint(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if _COMPLAINT.search(line)), "")


# Takes the text before a prompt and the line of the prompt. Returns the reason, or "".
Reason = Callable[[str, str], str]


def nothing(before: str, own: str) -> str:
    return ""


def loader(before: str, own: str) -> str:
    return _above(before, _LOADER_HELP)


def grub(before: str, own: str) -> str:
    return _above(before, _GRUB_HELP)


def linux(before: str, own: str) -> str:
    return _above(before, _LINUX_HELP)


def own(before: str, own: str) -> str:
    return own.strip()[:_REASON]


def fsck(before: str, own: str) -> str:
    return _above(before) or own.strip()


# Configuring Disk Encryption for ada0p3.        (libexec/rc/rc.d/geli)
_GELI = re.compile(r"Configuring Disk Encryption for (\S+?)\.?$", re.MULTILINE)
# GELI Passphrase for disk0p3:     Enter passphrase for 'tank/home':     Please unlock disk xvda3_crypt:
_PASSPHRASE_FOR = re.compile(r"(?i)passphrase for ([^:]+)|unlock disk ([^:]+)")


def encrypted(before: str, own: str) -> str:
    asked = _PASSPHRASE_FOR.search(own)
    if asked:
        return (asked[1] or asked[2]).strip("' ")[:_REASON]
    return next(reversed(_GELI.findall(plain(before))), "")[:_REASON]


# BdsDxe: failed to load Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x4,0x0)/Sata(0x0,0xFFFF,0x0): Not Found
_UEFI_SAID = re.compile(r"BdsDxe: (failed to (?:load|start) .+)")
# Boot failed: not a bootable disk     Boot from Hard Disk 0 failed: could not read the boot disk     gptboot: No /boot/loader on 0:ad(0p2)
_BIOS_SAID = re.compile(
    r"^((?:Boot(?:ing)? (?:from .+ )?failed: |gptboot: |ZFS: ).+|.*read error.*)$", re.MULTILINE | re.IGNORECASE
)


def firmware(before: str, own: str) -> str:
    """The results for the disks that the firmware tried last."""
    text = plain(before)
    return "; ".join(line.strip() for line in (_UEFI_SAID.findall(text) or _BIOS_SAID.findall(text))[-4:])


# Mounting from ufs:/dev/xbd7 failed with error 19.        (9 and later)
_MOUNT_FAILED = re.compile(r"Mounting from (\S+) failed with error (\d+)")
# Trying to mount root from ufs:/dev/ad4s1a []...          (up to 8 only this line names the device)
_MOUNT_TRIED = re.compile(r"Trying to mount root from ([^\s\[]\S*)|^[ \t]*vfs\.root\.mountfrom=(\S+)", re.MULTILINE)


def mountroot(text: str) -> str:
    """The message for a ``mountroot>`` prompt: the root file system that the kernel could not mount."""
    head, text = "no root file system", plain(text)
    if failed := _MOUNT_FAILED.findall(text):
        return f"{head}: {failed[-1][0]} failed with error {failed[-1][1]}"
    tried = [one or other for one, other in _MOUNT_TRIED.findall(text)]
    return f"{head}: {tried[-1]}" if tried else head


# Nov 25 21:26:48 init: /bin/sh on /etc/rc terminated abnormally, going to single user mode           (8 to 11)
# 2024-02-03T04:05:06.070809+00:00 - init 1 - - /bin/sh on /etc/rc terminated abnormally, going to single user mode     (12 and later)
_INIT_SAID = re.compile(
    r"\binit(?:(?:\[\d+\])?:| (?:\d+|-) \S+ (?:-|\[[^\]\n]*\])) (.{0,200}?(?:going to|entering) single[- ]user(?: mode)?)"
)
# 2024-02-03T04:05:06.070809+00:00 - init 1 - - can't exec /bin/sh for /etc/rc: No such file or directory
_INIT_CANNOT_EXEC = re.compile(
    r"\binit(?:(?:\[\d+\])?:| (?:\d+|-) \S+ (?:-|\[[^\]\n]*\])) (can't exec .{1,200}? for /etc/rc: .{1,80})$", re.MULTILINE
)
# ERROR: ABORTING BOOT (sending SIGTERM to parent)!        (libexec/rc/rc.subr, stop_boot(); the reason is in the lines before)
_ABORTED = re.compile(r"^ERROR: ABORTING BOOT", re.MULTILINE)
# /dev/xbd0: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.  (sbin/fsck_ffs)
_INCONSISTENT = re.compile(r"^(\S+: UNEXPECTED [A-Z ]*INCONSISTENCY; RUN fsck.*?)\.?$", re.MULTILINE | re.IGNORECASE)


def single_user(text: str) -> str:
    """The message for init's shell prompt: init's message, then the reason why rc ended, if it was printed."""
    return _init_said(plain(text)) or "came up in single user mode"


def _init_said(text: str) -> str:
    said = [words.strip() for words in _INIT_SAID.findall(text)[-1:]]
    said += [words.strip() for words in _INIT_CANNOT_EXEC.findall(text)[-1:]]
    if aborted := [match.start() for match in _ABORTED.finditer(text)]:
        said.append(_above(text[: aborted[-1]]).removesuffix("; help!"))
        said += _INCONSISTENT.findall(text)[-1:]
    return "; ".join(dict.fromkeys(words for words in said if words))


def insecure(before: str, own: str) -> str:
    return _init_said(plain(before)) or _complaint([line.strip() for line in plain(before).splitlines()[-_NEAR:]])[:_REASON]


# (XEN) d2v0 Unhandled: vec 14, #PF[0000]     (XEN) d3v0 Triple fault - invoking HVM shutdown action 1
# (XEN) [2024-02-03 04:05:06] domain_crash called from svm.c:2717
_XEN_LINE = re.compile(r"^\(XEN\) (?:\[[^\]\n]*\] ?)?(\S.*?):?$", re.MULTILINE)
# Lines that do not tell the cause: tables, registers, Xen's start, and the message of the crash itself.
_XEN_NOISE = re.compile(
    r"^(?:Pagetable walk|L\d\[|domain_crash|\*|Freed |Domain \d+ \(vcpu#|\S+: +[0-9a-f]{4,}|----\[|CPU:|RIP:|Guest stack|Xen call trace)"
)
_XEN_COMPLAINT = re.compile(
    r"(?i)fail|fault|violation|unhandled|bad |invalid|error|crash|unsupported|unexpected|cannot|unable|panic"
)
_XEN_CALLER = re.compile(r"^domain_crash\w* called from .+")


def crash(text: str) -> str:
    """The reason that Xen printed before it crashed a domain. ``text`` ends before the message of the crash."""
    lines = [line.strip() for line in _XEN_LINE.findall(plain(text))]
    relevant = [line for line in lines if not _XEN_NOISE.search(line)]
    complaints = [line for line in relevant if _XEN_COMPLAINT.search(line)]
    callers = [line for line in lines if _XEN_CALLER.search(line)]
    return next(iter((complaints or relevant or callers)[-1:]), "")[:_REASON]


def xen_panic(after: str) -> str:
    """The reason of Xen's own panic, from the text after its line "Panic on CPU 0:"."""
    return next((line for line in _XEN_LINE.findall(plain(after)) if line.strip("*")), "")[:_REASON]


# Rebooting...     Uptime: 46s     Restarting system     (at a regular shutdown, or after a panic)
_WENT_DOWN = re.compile(r"^(?:\[[ \d.]+\] )?(?:Rebooting\.\.\.|Uptime: \d|reboot: |All buffers synced|cpu_reset)", re.MULTILINE)


def second_boot(before: str) -> str:
    """The message for a boot that no case requested, from the text ``before`` it."""
    how = "the guest rebooted by itself" if _WENT_DOWN.search(plain(before)[-1000:]) else "it was reset without a message"
    return f"a second boot that nobody requested: {how}"
