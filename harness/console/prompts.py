# SPDX-License-Identifier: BSD-2-Clause
"""Prompts and firmware messages that end a boot, and the reasons that were printed before them.

Pure functions of a console's last bytes, which must be clean (:mod:`harness.console.clean`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from harness.console.kinds import DeathKind
from harness.console.text import decode
from harness.safetext import plain

# Seconds of silence after which a prompt counts; the second number is for a prompt that may time out.
AT_ONCE, PATIENT = 0.2, 5.0


@dataclass(frozen=True)
class Stuck:
    """A boot that ended. ``at`` is the offset of the prompt or message, which counts after ``patience`` seconds of silence.

    ``waits``: it is a prompt at the end of the output.
    """

    kind: DeathKind
    message: str
    at: int
    patience: float
    waits: bool


# -- reasons ----------------------------------------------------------------------------------------------------------

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


def above(before: str, skip: re.Pattern[str] = _ONLY_MARKS) -> str:
    """The last complaint among the nearest lines above a prompt, or else the last line. Skips help and blank lines."""
    lines = [line.strip() for line in plain(before).splitlines()]
    near = [line for line in lines if line and not skip.search(line)][-_NEAR:]
    return (_complaint(near) or "".join(near[-1:]))[:_REASON]


def _complaint(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if _COMPLAINT.search(line)), "")


# Takes the text before a prompt and the line of the prompt. Returns the reason, or "".
Reason = Callable[[str, str], str]


def _nothing(before: str, own: str) -> str:
    return ""


def _loader(before: str, own: str) -> str:
    return above(before, _LOADER_HELP)


def _grub(before: str, own: str) -> str:
    return above(before, _GRUB_HELP)


def _linux(before: str, own: str) -> str:
    return above(before, _LINUX_HELP)


def _own(before: str, own: str) -> str:
    return own.strip()[:_REASON]


def _fsck(before: str, own: str) -> str:
    return above(before) or own.strip()


# Configuring Disk Encryption for ada0p3.        (libexec/rc/rc.d/geli)
_GELI = re.compile(r"Configuring Disk Encryption for (\S+?)\.?$", re.MULTILINE)
# GELI Passphrase for disk0p3:     Enter passphrase for 'tank/home':     Please unlock disk xvda3_crypt:
_PASSPHRASE_FOR = re.compile(r"(?i)passphrase for ([^:]+)|unlock disk ([^:]+)")


def _encrypted(before: str, own: str) -> str:
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


def _firmware(before: str, own: str) -> str:
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
        said.append(above(text[: aborted[-1]]).removesuffix("; help!"))
        said += _INCONSISTENT.findall(text)[-1:]
    return "; ".join(dict.fromkeys(words for words in said if words))


def _insecure(before: str, own: str) -> str:
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
    how = "the guest rebooted by itself" if _WENT_DOWN.search(plain(before)[-1000:]) else "it was reset without a word"
    return f"a second boot that nobody requested: {how}"


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """A prompt or message that ends a boot, unless the boot has reached the stage ``until``.

    ``pattern`` finds it in clean text; with ``waits``, only at the end of the output. The death's message is ``says`` with the
    reason that ``why`` returns. It counts after ``patience`` seconds of silence, or after :data:`AT_ONCE` if there is a reason.
    """

    kind: DeathKind
    pattern: re.Pattern[bytes]
    says: str
    why: Reason
    until: str
    waits: bool
    patience: float


def _prompt(kind: DeathKind, pattern: bytes, says: str, why: Reason, until: str, patience: float = AT_ONCE) -> Prompt:
    return Prompt(kind, re.compile(rb"(?:%s)[ \t]*\Z" % pattern), says, why, until, True, patience)


def _line(kind: DeathKind, pattern: bytes, says: str, why: Reason, until: str, patience: float = AT_ONCE) -> Prompt:
    return Prompt(kind, re.compile(rb"^\r*[ \t]*(?:%s)" % pattern, re.MULTILINE), says, why, until, False, patience)


_NO_DISK = "the UEFI firmware found no bootable disk"
_NO_BIOS_DISK = "the BIOS found no bootable disk"
_NETWORK = "the firmware found no bootable disk and tries the network"
_MEDIA = "this is installation media"
# The first match counts. Each has a sample. markers.MARKERS has the prompts of a dying kernel.
PROMPTS = (
    # OK                                              (FreeBSD's loader, stand/common/interp.c)
    _prompt("loader", rb"OK ", "loader stopped", _loader, "kernel"),
    # boot:                                           (stand/i386/boot2; the first prompt continues after 3 s)
    _prompt("loader", rb"boot:", "boot2 stopped", _loader, "kernel", PATIENT),
    # gptzfsboot: No ZFS pools located, can't boot    (stand/i386/zfsboot, gptboot, gptzfsboot; they stop after this)
    _line(
        "loader",
        rb"\w{1,12}boot: (?:No ZFS pools located, can't boot|no UFS partition was found|unable to load GPT)",
        "the boot blocks found no system",
        _own,
        "loader",
    ),
    # --> Press a key on the console to reboot <--    (panic() of the loader, stand/libsa/panic.c)
    _line("loader", rb"--> Press a key on the console to reboot <--", "loader stopped", _loader, "kernel"),
    # grub>     grub rescue>
    _prompt("loader", rb"grub(?: rescue)?>", "GRUB stopped", _grub, "kernel"),
    # GELI Passphrase for disk0p3:                    (stand/libsa/geli)
    # Enter passphrase for ada0p3:                    (sys/geom/eli)
    # Enter passphrase:                               (geli(8) in rc.d/geli)
    # Enter passphrase for 'tank/home':               (zfs(8))     Please unlock disk xvda3_crypt:     (Linux)
    _prompt(
        "passphrase",
        rb"(?:gptboot: )?(?:GELI |Enter |Enter GELI |Please enter )?[Pp]assphrase(?: for [^\r\n]{1,120})?:|Please unlock disk [^\r\n]{1,120}:",
        "disk encryption asks for a passphrase",
        _encrypted,
        "login",
    ),
    # Console type [vt100]:                           (usr.sbin/bsdinstall/startbsdinstall)
    _prompt("installer", rb"Console type \[[\w.-]+\]:", f"the installer asks for a terminal: {_MEDIA}", _nothing, "login"),
    # Your choice: (1-5)                              (sysinstall of 8, usr.sbin/sysinstall/termcap.c)
    _prompt("installer", rb"Your choice: \(1-\d\)", f"the installer asks for a terminal: {_MEDIA}", _nothing, "login"),
    # Would you like to begin an installation or use the live CD?        (bsdinstall's first dialog)
    _line(
        "installer",
        rb"[^\r\n]{0,200}Would you like to begin an installation",
        f"the installer asks what to do: {_MEDIA}",
        _nothing,
        "login",
    ),
    # Enter root password, or ^D to go multi-user     (sbin/init/init.c)
    # Password:
    _prompt(
        "single-user",
        rb"Enter root password, or \^D to go multi-user\s*[\r\n]+Password:",
        "single user on an insecure console",
        _insecure,
        "login",
    ),
    # Give root password for maintenance
    # (or press Control-D to continue):               (Linux, sulogin)     Press Enter for maintenance
    _prompt(
        "single-user",
        rb"(?:Give root password for (?:maintenance|login)|Press Enter for (?:system )?maintenance)[^\r\n]*[\r\n]*"
        rb"(?:\(or (?:press|type) Control-D to continue\):)?",
        "came up in an emergency shell",
        _linux,
        "login",
    ),
    # Cannot open access to console, the root account is locked.         (Linux, sulogin; cloud images have no root password)
    # See sulogin(8) man page for more details.
    #
    # Press Enter to continue.
    _prompt(
        "single-user",
        rb"Cannot open access to console, the root account is locked\.\s[^>]{0,200}?Press Enter to continue\.\s*",
        "came up in an emergency shell that is locked",
        _linux,
        "login",
    ),
    # Bootlock password:     Password:                (stand/lua/password.lua)
    _prompt("loader", rb"(?:Bootlock |Boot |Loader )?[Pp]assword:", "the loader asks for a password", _nothing, "kernel"),
    # (initramfs)     dracut:/#                       (Linux without a root file system)
    _prompt("mountroot", rb"\(initramfs\)|dracut:/#", "no root file system", _linux, "login"),
    # CONTINUE? [yn]     reply? [yn]                  (sbin/fsck_ffs)
    _prompt("fsck", rb"[\w ]{1,60}\? \[yn\]", "fsck asks a question", _fsck, "login"),
    # BdsDxe: No bootable option or device was found. (edk2 MdeModulePkg/Universal/BdsDxe/BdsEntry.c)
    # BdsDxe: starting Boot0003 "EFI Internal Shell" from Fv(...)        (OVMF's last option, which waits for input)
    # BdsDxe: Press any key to enter the Boot Manager Menu.
    # UEFI Interactive Shell v2.2     EFI Shell version 2.31     Shell>  (edk2 ShellPkg)
    _line(
        "firmware",
        rb"BdsDxe: (?:No bootable option or device was found\.|starting Boot[0-9A-Fa-f]{4} \"(?:EFI Internal|UEFI) Shell\""
        rb"|Press any key to enter)|UEFI Interactive Shell v\d|EFI Shell version \d|Shell> ",
        _NO_DISK,
        _firmware,
        "kernel",
    ),
    # Boot Manager Menu     Boot Maintenance Manager  (OVMF's own menus)
    _line(
        "firmware",
        rb"(?:Boot Manager(?: Menu)?|Boot Maintenance Manager|Please select boot device:?)[ \t]*\r*$",
        _NO_DISK,
        _firmware,
        "kernel",
    ),
    # No bootable device.  Retrying in 60 seconds.    (SeaBIOS)     FATAL: No bootable device.     (rombios)
    # FATAL: Could not read the boot disk     Reboot and Select proper Boot device     Select boot device:
    _line(
        "firmware",
        rb"(?:FATAL: )?(?:No bootable|No boot d|Could not read the boot|Not a bootable)|Reboot and Select proper Boot device"
        rb"|Select boot device:",
        _NO_BIOS_DISK,
        _firmware,
        "kernel",
    ),
    # Missing operating system     Invalid partition table     Missing boot loader       (stand/i386/mbr, pmbr)
    # This is not a bootable disk.  Please insert a bootable floppy and                  (mkfs.fat)
    _line(
        "firmware",
        rb"(?:Missing operating system|Operating [Ss]ystem not found|Invalid partition table|Error loading operating system"
        rb"|Missing boot loader|Boot loader too large|Non-[Ss]ystem disk|This is not a bootable disk)",
        _NO_BIOS_DISK,
        _own,
        "kernel",
    ),
    # iPXE initialising devices...ok     >>Start PXE over IPv4.     PXE-E53: No boot filename received     No more network devices
    _line(
        "firmware",
        rb"[gi]PXE initialising devices|>>Start (?:PXE|HTTP Boot) over IPv[46]|PXE-[EM][0-9A-F]{2}:|No more network devices"
        rb"|Nothing to boot: ",
        _NETWORK,
        _firmware,
        "kernel",
        PATIENT,
    ),
    # iPXE>
    _prompt("firmware", rb"[gi]PXE>", _NETWORK, _firmware, "kernel"),
)
KINDS = frozenset(row.kind for row in PROMPTS)
# The longest prompt with its line above, in bytes.
_LAST = 320
_LINE = re.compile(rb"[\r\n]+|\A")


def stuck(text: bytes, counts: Callable[[str], bool] = lambda until: True) -> Stuck | None:
    """How a boot ended, from ``text``, a console's last bytes (clean); None if it continues.

    ``counts`` returns whether a prompt with this stage ``until`` may still end the boot.
    """
    begin = max(0, len(text) - _LAST)
    starts = [match.end() for match in _LINE.finditer(text, begin)]
    for row in PROMPTS:
        if not counts(row.until):
            continue
        if row.waits:
            found = next((match for at in starts if (match := row.pattern.match(text, at))), None)
        else:
            found = row.pattern.search(text)
        if found is None:
            continue
        reason = row.why(decode(text[: found.start()]), plain(decode(found[0] if row.waits else _line_at(text, found.start()))))
        message = (": ", "; ")[row.kind == "firmware"].join(filter(None, (row.says, reason)))
        return Stuck(row.kind, message, found.start(), AT_ONCE if reason else row.patience, row.waits)
    return None


def _line_at(text: bytes, at: int) -> bytes:
    """The line at ``at``, or the next one if there is a line end."""
    return text[at:].lstrip(b"\r\n").split(b"\n", 1)[0]
