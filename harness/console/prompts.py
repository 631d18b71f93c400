# SPDX-License-Identifier: BSD-2-Clause
"""Prompts and firmware messages that end a boot.

Pure functions of a console's last bytes, which must be clean (:mod:`harness.console.clean`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from harness.console import reasons
from harness.console.kinds import DeathKind
from harness.console.reasons import Reason
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
    _prompt("loader", rb"OK ", "loader stopped", reasons.loader, "kernel"),
    # boot:                                           (stand/i386/boot2; the first prompt continues after 3 s)
    _prompt("loader", rb"boot:", "boot2 stopped", reasons.loader, "kernel", PATIENT),
    # gptzfsboot: No ZFS pools located, can't boot    (stand/i386/zfsboot, gptboot, gptzfsboot; they stop after this)
    _line(
        "loader",
        rb"\w{1,12}boot: (?:No ZFS pools located, can't boot|no UFS partition was found|unable to load GPT)",
        "the boot blocks found no system",
        reasons.own,
        "loader",
    ),
    # --> Press a key on the console to reboot <--    (panic() of the loader, stand/libsa/panic.c)
    _line("loader", rb"--> Press a key on the console to reboot <--", "loader stopped", reasons.loader, "kernel"),
    # grub>     grub rescue>
    _prompt("loader", rb"grub(?: rescue)?>", "GRUB stopped", reasons.grub, "kernel"),
    # GELI Passphrase for disk0p3:                    (stand/libsa/geli)
    # Enter passphrase for ada0p3:                    (sys/geom/eli)
    # Enter passphrase:                               (geli(8) in rc.d/geli)
    # Enter passphrase for 'tank/home':               (zfs(8))     Please unlock disk xvda3_crypt:     (Linux)
    _prompt(
        "passphrase",
        rb"(?:gptboot: )?(?:GELI |Enter |Enter GELI |Please enter )?[Pp]assphrase(?: for [^\r\n]{1,120})?:|Please unlock disk [^\r\n]{1,120}:",
        "disk encryption asks for a passphrase",
        reasons.encrypted,
        "login",
    ),
    # Console type [vt100]:                           (usr.sbin/bsdinstall/startbsdinstall)
    _prompt("installer", rb"Console type \[[\w.-]+\]:", f"the installer asks for a terminal: {_MEDIA}", reasons.nothing, "login"),
    # Your choice: (1-5)                              (sysinstall of 8, usr.sbin/sysinstall/termcap.c)
    _prompt("installer", rb"Your choice: \(1-\d\)", f"the installer asks for a terminal: {_MEDIA}", reasons.nothing, "login"),
    # Would you like to begin an installation or use the live CD?        (bsdinstall's first dialog)
    _line(
        "installer",
        rb"[^\r\n]{0,200}Would you like to begin an installation",
        f"the installer asks what to do: {_MEDIA}",
        reasons.nothing,
        "login",
    ),
    # Enter root password, or ^D to go multi-user     (sbin/init/init.c)
    # Password:
    _prompt(
        "single-user",
        rb"Enter root password, or \^D to go multi-user\s*[\r\n]+Password:",
        "single user on an insecure console",
        reasons.insecure,
        "login",
    ),
    # Give root password for maintenance
    # (or press Control-D to continue):               (Linux, sulogin)     Press Enter for maintenance
    _prompt(
        "single-user",
        rb"(?:Give root password for (?:maintenance|login)|Press Enter for (?:system )?maintenance)[^\r\n]*[\r\n]*"
        rb"(?:\(or (?:press|type) Control-D to continue\):)?",
        "came up in an emergency shell",
        reasons.linux,
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
        reasons.linux,
        "login",
    ),
    # Bootlock password:     Password:                (stand/lua/password.lua)
    _prompt("loader", rb"(?:Bootlock |Boot |Loader )?[Pp]assword:", "the loader asks for a password", reasons.nothing, "kernel"),
    # (initramfs)     dracut:/#                       (Linux without a root file system)
    _prompt("mountroot", rb"\(initramfs\)|dracut:/#", "no root file system", reasons.linux, "login"),
    # CONTINUE? [yn]     reply? [yn]                  (sbin/fsck_ffs)
    _prompt("fsck", rb"[\w ]{1,60}\? \[yn\]", "fsck asks a question", reasons.fsck, "login"),
    # BdsDxe: No bootable option or device was found. (edk2 MdeModulePkg/Universal/BdsDxe/BdsEntry.c)
    # BdsDxe: starting Boot0003 "EFI Internal Shell" from Fv(...)        (OVMF's last option, which waits for input)
    # BdsDxe: Press any key to enter the Boot Manager Menu.
    # UEFI Interactive Shell v2.2     EFI Shell version 2.31     Shell>  (edk2 ShellPkg)
    _line(
        "firmware",
        rb"BdsDxe: (?:No bootable option or device was found\.|starting Boot[0-9A-Fa-f]{4} \"(?:EFI Internal|UEFI) Shell\""
        rb"|Press any key to enter)|UEFI Interactive Shell v\d|EFI Shell version \d|Shell> ",
        _NO_DISK,
        reasons.firmware,
        "kernel",
    ),
    # Boot Manager Menu     Boot Maintenance Manager  (OVMF's own menus)
    _line(
        "firmware",
        rb"(?:Boot Manager(?: Menu)?|Boot Maintenance Manager|Please select boot device:?)[ \t]*\r*$",
        _NO_DISK,
        reasons.firmware,
        "kernel",
    ),
    # No bootable device.  Retrying in 60 seconds.    (SeaBIOS)     FATAL: No bootable device.     (rombios)
    # FATAL: Could not read the boot disk     Reboot and Select proper Boot device     Select boot device:
    _line(
        "firmware",
        rb"(?:FATAL: )?(?:No bootable|No boot d|Could not read the boot|Not a bootable)|Reboot and Select proper Boot device"
        rb"|Select boot device:",
        _NO_BIOS_DISK,
        reasons.firmware,
        "kernel",
    ),
    # Missing operating system     Invalid partition table     Missing boot loader       (stand/i386/mbr, pmbr)
    # This is not a bootable disk.  Please insert a bootable floppy and                  (mkfs.fat)
    _line(
        "firmware",
        rb"(?:Missing operating system|Operating [Ss]ystem not found|Invalid partition table|Error loading operating system"
        rb"|Missing boot loader|Boot loader too large|Non-[Ss]ystem disk|This is not a bootable disk)",
        _NO_BIOS_DISK,
        reasons.own,
        "kernel",
    ),
    # iPXE initialising devices...ok     >>Start PXE over IPv4.     PXE-E53: No boot filename received     No more network devices
    _line(
        "firmware",
        rb"[gi]PXE initialising devices|>>Start (?:PXE|HTTP Boot) over IPv[46]|PXE-[EM][0-9A-F]{2}:|No more network devices"
        rb"|Nothing to boot: ",
        _NETWORK,
        reasons.firmware,
        "kernel",
        PATIENT,
    ),
    # iPXE>
    _prompt("firmware", rb"[gi]PXE>", _NETWORK, reasons.firmware, "kernel"),
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
