# SPDX-License-Identifier: BSD-2-Clause
"""Tests boots that end at a prompt, debuggers, and second boots. Each row runs in one chunk, cut everywhere, and by bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from played import FREEBSD, LINUX, fed

from harness.console import prompts
from harness.console.deaths import Death
from harness.console.debugger import script_answers
from harness.console.kinds import SECOND_BOOT
from harness.console.reader import ConsoleReader
from harness.console.tables import ConsoleTables
from harness.deadline import Deadline
from harness.errors import GuestDied
from harness.transport.replay import ReplayStream

CONSOLES = Path(__file__).parent.parent / "consoles"
KERNEL = "Copyright (c) 1992-2021 The FreeBSD Project.\nFreeBSD is a registered trademark of The FreeBSD Foundation.\n"
BANNER = f"---<<BOOT>>---\n{KERNEL}"
RC = f"{BANNER}Trying to mount root from ufs:/dev/xbd0 [rw]...\nSetting hostuuid: 1-2.\n"
LOGIN = f"{RC}\nFreeBSD/amd64 (box) (xc0)\n\nlogin: "
BT = (
    "db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe0011110000\n"
    "vpanic() at vpanic+0x151/frame 0xfffffe0011110020\npanic() at panic+0x43/frame 0xfffffe0011110040\n"
    "xyz_drain() at xyz_drain+0x10/frame 0xfffffe0011110060\n"
)


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """``data`` in two chunks, cut at each byte of its last lines and at every fifth byte before; then in single bytes."""
    near = max(1, len(data) - 300)
    yield from ([data[:at], data[at:]] for at in (*range(1, near, 5), *range(near, len(data))))
    yield [data[at : at + 1] for at in range(len(data))]


def verdict(reader: ConsoleReader) -> tuple[str, str, str, tuple[str, ...]]:
    death = reader.death
    assert death is not None
    return death.kind, death.message, death.faulting_function, tuple(stage.name for stage in reader.stages)


def dies(tmp_path: Path, text: str, tables: ConsoleTables = FREEBSD) -> Death:
    """The death of a guest that prints ``text``. Fails if it depends on the chunks."""
    data = crlf(text)
    whole = fed(tmp_path, [data], tables)
    for chunks in cuts(data):
        assert verdict(fed(tmp_path, chunks, tables)) == verdict(whole), f"another verdict if cut at byte {len(chunks[0])}"
    assert whole.death is not None
    return whole.death


class Guest(ReplayStream):
    """A console that replays slowly until the first command."""

    def write(self, data: bytes) -> None:
        self._pace = 0.0
        super().write(data)


def live(tmp_path: Path, chunks: Sequence[bytes], pace: float = 0.0, *, answers: dict[bytes, bytes] | None = None) -> ConsoleReader:
    """A reader that has found the death of a guest which is silent after ``chunks``."""
    stream = Guest(b"", end="silence", pace=pace, answers=answers)
    stream._chunks.extend(chunks)
    reader = ConsoleReader(stream, tmp_path / "console.log", tables=FREEBSD).start()
    with reader.expecting_death() as death:
        death(Deadline(20))
    reader.close()
    return reader


# -- prompts ----------------------------------------------------------------------------------------------------------

LOADER = "BTX loader 1.00  BTX version is 1.02\nConsoles: serial port\nFreeBSD/x86 bootstrap loader, Revision 1.1\n"
HELP = "Type '?' for a list of commands, 'help' for more detailed help.\n"
BOOT2 = "\nFreeBSD/x86 boot\nDefault: 0:ad(0,a)/boot/kernel/kernel\nboot: "
INSTALLER = "Common console types are:\n   ansi     Standard ANSI terminal\n   xterm    terminal emulator\n\nConsole type [vt100]: "
INIT_12 = "2024-02-03T04:05:06.070809+00:00 - init 1 - - /bin/sh on /etc/rc terminated abnormally, going to single user mode\n"
SHELL = "Enter full pathname of shell or RETURN for /bin/sh: "
SEABIOS = "SeaBIOS (version 1.16)\nBooting from Hard Disk...\nBoot failed: not a bootable disk\n\n"
UEFI = 'BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Not Found\n'
UEFI_SAID = '; failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0): Not Found'
NO_DISK, NO_BIOS_DISK = "the UEFI firmware found no bootable disk", "the BIOS found no bootable disk"
NETWORK = "the firmware found no bootable disk and tries the network"
SECRET = "disk encryption asks for a passphrase"
INIT_SAID = "/bin/sh on /etc/rc terminated abnormally, going to single user mode"
MANUAL = "\nManual root filesystem specification:\n  <fstype>:<device>   Mount <device> using filesystem <fstype>\n  ?   List\n\nmountroot> "

STUCK = {
    "loader-no-kernel": ("Failed to load kernel 'kernel'\ncan't load 'kernel'\n" + HELP + "OK ", "loader", "loader stopped: can't load 'kernel'"),
    "loader-after-btx": (LOADER + "can't find 'kernel'\n\n" + HELP + "OK ", "loader", "loader stopped: can't find 'kernel'"),
    "loader-lua": (
        LOADER + "ERROR: cannot open /boot/lua/loader.lua: no such file or directory.\n\n\n" + HELP + "OK ",
        "loader",
        "loader stopped: ERROR: cannot open /boot/lua/loader.lua: no such file or directory.",
    ),
    "loader-twiddle": ("|\x08/\x08-\x08zfs: pool tank is unavailable\n" + HELP + "OK ", "loader", "loader stopped: zfs: pool tank is unavailable"),
    "loader-interrupted": ("Hit [Enter] to boot immediately, or any other key for command prompt.\n\n" + HELP + "OK ", "loader", "loader stopped"),
    "loader-efi": (
        "FreeBSD/amd64 EFI loader, Revision 1.1\n   Load Device: PciRoot(0x0)\nFailed to find bootable partition\n" + HELP + "OK ",
        "loader",
        "loader stopped: Failed to find bootable partition",
    ),
    "loader-panic": (
        "FreeBSD/x86 bootstrap loader, Revision 1.1\nout of heap at 0x1000: cannot go on\n--> Press a key on the console to reboot <--\n",
        "loader",
        "loader stopped: out of heap at 0x1000: cannot go on",
    ),
    "loader-panic-word": (
        "FreeBSD/amd64 EFI loader, Revision 1.1\npanic: no heap here\n--> Press a key on the console to reboot <--",
        "loader",
        "loader stopped: panic: no heap here",
    ),
    "gptzfsboot": (
        "gptzfsboot: No ZFS pools located, can't boot\n",
        "loader",
        "the boot blocks found no system: gptzfsboot: No ZFS pools located, can't boot",
    ),
    "loader-password": ("FreeBSD/amd64 EFI loader, Revision 3.0\nBootlock password: ", "loader", "the loader asks for a password"),
    "boot2": ("\nNo /boot/loader\n" + BOOT2, "loader", "boot2 stopped: No /boot/loader"),
    "boot2-not-ufs": (">> FreeBSD/i386 BOOT\nDefault: 0:ad(0,a)/boot/loader\nboot: \nNot ufs\n" + BOOT2, "loader", "boot2 stopped: Not ufs"),
    "boot2-alone": (BOOT2, "loader", "boot2 stopped"),
    "gptboot": ("gptboot: No /boot/loader on 0:ad(0p2)\n" + BOOT2, "loader", "boot2 stopped: gptboot: No /boot/loader on 0:ad(0p2)"),
    "grub": ("error: no such partition.\nEntering rescue mode...\ngrub rescue> ", "loader", "GRUB stopped: error: no such partition."),
    "geli-loader": ("GELI Passphrase for disk0p3: ", "passphrase", f"{SECRET}: disk0p3"),
    "geli-gptboot": ("gptboot: GELI Passphrase for disk0p4: ", "passphrase", f"{SECRET}: disk0p4"),
    "geli-again": (f"{BANNER}GEOM_ELI: Wrong key for xbd0p3. Tries left: 2.\nEnter passphrase for xbd0p3: ", "passphrase", f"{SECRET}: xbd0p3"),
    "geli-kernel": (f"{BANNER}Enter passphrase for ada0p3: ", "passphrase", f"{SECRET}: ada0p3"),
    "geli-rc": (f"{RC}Configuring Disk Encryption for xbd0p4.\nEnter passphrase: ", "passphrase", f"{SECRET}: xbd0p4"),
    "zfs-key": (f"{RC}Enter passphrase for 'tank/home': ", "passphrase", f"{SECRET}: tank/home"),
    "installer": (RC + INSTALLER, "installer", "the installer asks for a terminal: this is installation media"),
    "installer-without-rc": (INSTALLER, "installer", "the installer asks for a terminal: this is installation media"),
    "installer-dialog": (
        f"{RC}\x1b[2J\x1b[7;20HWould you like to begin an installation or use the live\x1b[8;20Hsystem?",
        "installer",
        "the installer asks what to do: this is installation media",
    ),
    "sysinstall": (
        f"{BANNER}/stand/sysinstall running as init on serial console\n\nThese are the predefined terminal types\n1 ...... VT100.\n\nYour choice: (1-5) ",
        "installer",
        "the installer asks for a terminal: this is installation media",
    ),
    "insecure": (
        f"{RC}Enter root password, or ^D to go multi-user\nPassword:",
        "single-user",
        "single user on an insecure console",
    ),
    "insecure-with-complaint": (
        f"{RC}ERROR: no /etc/fstab\nEnter root password, or ^D to go multi-user\nPassword:",
        "single-user",
        "single user on an insecure console: ERROR: no /etc/fstab",
    ),
    "insecure-with-reason": (
        f"{RC}{INIT_12}Enter root password, or ^D to go multi-user\nPassword:",
        "single-user",
        f"single user on an insecure console: {INIT_SAID}",
    ),
    "fsck": (f"{RC}/dev/xbd0: BAD SUPER BLOCK: MAGIC NUMBER WRONG\nLOOK FOR ALTERNATE SUPERBLOCKS? [yn] ", "fsck", None),
    "seabios": (f"{SEABIOS}No bootable device.\n", "firmware", f"{NO_BIOS_DISK}; Boot failed: not a bootable disk"),
    "seabios-retries": (f"{SEABIOS}No bootable device.  Retrying in 60 seconds.\n", "firmware", f"{NO_BIOS_DISK}; Boot failed: not a bootable disk"),
    "rombios": (
        "Booting from Hard Disk...\nBoot from Hard Disk 0 failed: could not read the boot disk\n\nFATAL: No bootable device.\n",
        "firmware",
        f"{NO_BIOS_DISK}; Boot from Hard Disk 0 failed: could not read the boot disk",
    ),
    "boot-sector": ("Booting from Hard Disk...\nMissing operating system", "firmware", f"{NO_BIOS_DISK}; Missing operating system"),
    "uefi-none": (f"{UEFI}BdsDxe: No bootable option or device was found.\n", "firmware", NO_DISK + UEFI_SAID),
    "uefi-menu": (f"{UEFI}BdsDxe: Press any key to enter the Boot Manager Menu.\n", "firmware", NO_DISK + UEFI_SAID),
    "uefi-old-shell": ("EFI Shell version 2.31 [1.0]\nPress ESC in 5 seconds to skip startup.nsh.\nShell> ", "firmware", NO_DISK),
    "uefi-boot-manager": (f"{UEFI}\x1b[2J\x1b[03;01H  Boot Manager Menu  \x1b[05;03HDevice Path :", "firmware", NO_DISK + UEFI_SAID),
    "pxe": (
        f"{SEABIOS}Booting from ROM...\niPXE (PCI 00:03.0) starting execution...ok\niPXE initialising devices...ok\n\nnet0: no link\n",
        "firmware",
        f"{NETWORK}; Boot failed: not a bootable disk",
    ),
    "pxe-uefi": (f"{UEFI}\n>>Start PXE over IPv4.\n  PXE-E16: No valid offer received.\n", "firmware", NETWORK + UEFI_SAID),
    "ipxe-prompt": ("Features: DNS HTTP\niPXE> ", "firmware", NETWORK),
    "single-user-12": (f"{RC}{INIT_12}{SHELL}", "single-user", INIT_SAID),
    "single-user-no-shell": (
        f"{RC}{INIT_12.replace(INIT_SAID, 'can' + chr(39) + 't exec /bin/sh for /etc/rc: No such file or directory')}{INIT_12}{SHELL}",
        "single-user",
        f"{INIT_SAID}; can't exec /bin/sh for /etc/rc: No such file or directory",
    ),
    "single-user-8": (f"{RC}Nov 25 21:26:48 init: {INIT_SAID}\n{SHELL}", "single-user", INIT_SAID),
    "single-user-failed-check": (
        f"{RC}Automatic file system check failed; help!\nERROR: ABORTING BOOT (sending SIGTERM to parent)!\n{INIT_12}{SHELL}",
        "single-user",
        f"{INIT_SAID}; Automatic file system check failed",
    ),
    "single-user-inconsistent": (
        f"{RC}/dev/xbd0: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\nAutomatic file system check failed; help!\n"
        f"ERROR: ABORTING BOOT (sending SIGTERM to parent)!\n{INIT_12}{SHELL}",
        "single-user",
        f"{INIT_SAID}; Automatic file system check failed; /dev/xbd0: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY",
    ),
    "single-user-no-mount": (
        f"{RC}Mounting root filesystem rw failed, startup aborted\nERROR: ABORTING BOOT (sending SIGTERM to parent)!\n{SHELL}",
        "single-user",
        "Mounting root filesystem rw failed, startup aborted",
    ),
    "single-user-asked-for": (f"{BANNER}Trying to mount root from ufs:/dev/xbd0 []...\n{SHELL}", "single-user", "came up in single user mode"),
    "mountroot-8": (f"{BANNER}Trying to mount root from ufs:/dev/ad4s1a\n{MANUAL}", "mountroot", "no root file system: ufs:/dev/ad4s1a"),
    "mountroot-9": (
        f"{BANNER}Trying to mount root from ufs:/dev/xbd7 [rw]...\nMounting from ufs:/dev/xbd7 failed with error 19.\n{MANUAL}",
        "mountroot",
        "no root file system: ufs:/dev/xbd7 failed with error 19",
    ),
    "mountroot-variables": (f"{BANNER}Loader variables:\n  vfs.root.mountfrom=zfs:tank/root\n{MANUAL}", "mountroot", "no root file system: zfs:tank/root"),
    "mountroot-nothing": (f"{BANNER}{MANUAL}", "mountroot", "no root file system"),
}  # fmt: skip


@pytest.mark.parametrize("row", STUCK)
def test_a_prompt_ends_the_boot(tmp_path: Path, row: str) -> None:
    text, kind, message = STUCK[row]
    death = dies(tmp_path, text)
    assert death.kind == kind
    if message is None:
        assert "MAGIC NUMBER WRONG" in death.message
    else:
        assert death.message == message


LINUX_BOOT = "[    0.000000] Linux version 6.12.1 (a@b)\n"
LINUX_STUCK = {
    "initramfs": (
        "ALERT! /dev/xvda2 does not exist. Dropping to a shell!\n\nBusyBox v1.36 built-in shell (ash)\n(initramfs) ",
        "mountroot",
        "no root file system: ALERT! /dev/xvda2 does not exist. Dropping to a shell!",
    ),
    "emergency": (
        "You are in emergency mode.\nGive root password for maintenance\n(or press Control-D to continue): ",
        "single-user",
        None,
    ),
    "emergency-locked": (
        "You are in emergency mode.\n\nCannot open access to console, the root account is locked.\nSee sulogin(8) man page for more details.\n\n"
        "Press Enter to continue.\n",
        "single-user",
        None,
    ),
    "luks": ("Please unlock disk xvda3_crypt: ", "passphrase", f"{SECRET}: xvda3_crypt"),
}


@pytest.mark.parametrize("row", LINUX_STUCK)
def test_a_prompt_of_linux(tmp_path: Path, row: str) -> None:
    text, kind, message = LINUX_STUCK[row]
    death = dies(tmp_path, LINUX_BOOT + text, LINUX)
    assert death.kind == kind
    assert message is None or death.message == message


@pytest.mark.parametrize(
    "row",
    ["loader-no-kernel", "boot2", "loader-efi", "geli-kernel", "installer", "insecure", "seabios", "uefi-none", "single-user-12"],
)
def test_a_prompt_ends_the_boot_at_once(tmp_path: Path, row: str) -> None:
    """A wait raises GuestDied without waiting for the budget of the stage."""
    text, kind, _ = STUCK[row]
    begun = time.monotonic()
    reader = ConsoleReader(ReplayStream(crlf(text), end="silence"), tmp_path / "c.log", tables=FREEBSD).start()
    with pytest.raises(GuestDied) as caught:
        reader.wait_stage("login", Deadline(90))
    assert time.monotonic() - begun < 45, "well before the deadline of 90 s"
    assert caught.value.death.kind == kind
    reader.close()


@pytest.mark.parametrize(
    "text",
    [
        # Texts of these prompts in a boot that continues.
        f"{LOADER}OK boot\n{LOGIN}",
        f"{LOADER}OK \n{LOGIN}",
        f"FreeBSD/x86 boot\nDefault: 0:ad(0,a)/boot/loader\nboot: \n{LOADER}{LOGIN}",
        f"{RC}Enter passphrase for xbd0p3: \n{LOGIN}",
        f"{RC}Console type [vt100]: xterm\n{LOGIN}",
        f"{LOADER}{BANNER}CPU: all\nOK \n{LOGIN}",
        # A firmware that finds a disk later.
        f"{SEABIOS}No bootable device.  Retrying in 60 seconds.\nBooting from Hard Disk...\n{LOADER}{LOGIN}",
        f"iPXE initialising devices...ok\n{LOADER}{LOGIN}",
        # In a shell.
        f"{LOGIN}root\nPassword:",
        f"{LOGIN}root\nroot@box:~ # geli attach xbd1\nEnter passphrase: ",
        f"{LOGIN}root\nroot@box:~ # echo OK; cat\nOK ",
        f"{LOGIN}root\nroot@box:~ # fsck_ffs /dev/xbd1\nCONTINUE? [yn] ",
    ],
)
def test_a_boot_that_continues_is_not_stuck(tmp_path: Path, text: str) -> None:
    data = crlf(text)
    for chunks in ([data], [data[:-1], data[-1:]], [data[n : n + 7] for n in range(0, len(data), 7)]):
        reader = fed(tmp_path, chunks, requested=True)
        assert reader.death is None or reader.death.kind == "firmware"
    whole = fed(tmp_path, [data], requested=True)
    assert whole.death is None
    assert whole.stage == "login"


def test_a_prompt_in_the_middle_is_waited_for(tmp_path: Path) -> None:
    """A slow console prints a line that begins like a prompt. The rest arrives before the prompt would count."""
    chunks = [
        crlf(LOADER),
        b"OK ",
        b"let us go on\r\n",
        crlf(f"{BANNER}panic: at last\ncpuid = 0\nAutomatic reboot in 15 seconds\n"),
    ]
    reader = live(tmp_path, chunks, pace=0.1)
    assert reader.death is not None
    assert reader.death.kind == "panic"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("(XEN) d3v0 Unexpected vm exit reason 0x2\n", "d3v0 Unexpected vm exit reason 0x2"),
        ("(XEN) domain_crash called from svm.c:2717\n", "domain_crash called from svm.c:2717"),
        ("(XEN) d3v1 Bad GMFN 12345\n(XEN) domain_crash called from p2m.c:10\n", "d3v1 Bad GMFN 12345"),
        ("(XEN) [2024-02-03 04:05:06.789] d3v0 Unhandled page fault\n(XEN) [2024-02-03 04:05:06.790] Pagetable walk from 0:\n", "d3v0 Unhandled page fault"),
        (
            "(XEN) Failed vm entry (exit reason 0x80000021) caused by invalid guest state (0).\n(XEN) ****** VMCS Area ******\n"
            "(XEN) CR0: actual=0x80010031, shadow=0x10\n(XEN) **********\n(XEN) domain_crash called from vmx.c:3000\n",
            "Failed vm entry (exit reason 0x80000021) caused by invalid guest state (0).",
        ),
        ("(XEN) EPT violation 0x181 (r--/---) gpa 0xa0000\n(XEN) d3v0  --- GLA 0xffff\n(XEN) domain_crash called from vmx.c:3300\n", "EPT violation 0x181 (r--/---) gpa 0xa0000"),
        ("hello\n", ""),
    ],
)  # fmt: skip
def test_xen_s_reason_for_a_crash(tmp_path: Path, before: str, reason: str) -> None:
    death = dies(tmp_path, f"{before}(XEN) Domain 3 (vcpu#0) crashed on cpu#1:\n(XEN) RIP:    e019:[<00000000c00ed899>]\n")
    assert death.kind == "crash"
    assert death.message == ": ".join(filter(None, ("(XEN) Domain 3 (vcpu#0) crashed on cpu#1", reason)))


def test_every_prompt_has_a_sample(tmp_path: Path) -> None:
    """Each row of the table needs a row here."""
    tried = {
        n
        for n, row in enumerate(prompts.PROMPTS)
        for text, *_ in (*STUCK.values(), *LINUX_STUCK.values())
        if row.pattern.search(_cleaned(text))
    }
    assert tried == set(range(len(prompts.PROMPTS)))


def _cleaned(text: str) -> bytes:
    from harness.console.clean import cleaned

    return cleaned(crlf(text))


@pytest.mark.parametrize("line", [b"FreeBSD/x86 ZFS enabled bootstrap loader, Revision 1.1", b"FreeBSD/i386 bootstrap loader, Revision 1.1",
    b"FreeBSD/amd64 EFI loader, Revision 1.1", b"FreeBSD/arm64 EFI loader, Revision 3.0", b"BTX loader 1.00  BTX version is 1.02",
    b"CD Loader 1.20", b"PXE Loader 1.00", b">> FreeBSD EFI boot block"])  # fmt: skip
def test_the_loader_stage_of_each_loader(tmp_path: Path, line: bytes) -> None:
    for chunks in cuts(b"\r\n" + line + b"\r\nx\r\n"):
        assert [stage.name for stage in fed(tmp_path, chunks, requested=True).stages] == ["loader"]


# -- the debugger -----------------------------------------------------------------------------------------------------

REPORT = "panic: xyz\ncpuid = 0\ntime = 1\nKDB: enter: panic\n"
STOPPED = "[ thread pid 1 tid 2 ]\nStopped at      kdb_enter+0x33: movq    $0,0x10(%rip)\n"
ANSWERS = {
    b"bt": crlf(f"bt\nTracing pid 1 tid 2 td 0xfffff80003a5a000\n{BT}db> "),
    b"show pcpu": crlf("show pcpu\ncpuid        = 0\ndb> "),
    b"ps": crlf("ps\n  pid  ppid\n    1     0\n--More--\r") + b"",
    b"show lockchain all": crlf("show lockchain all\nchain 1:\ndb> "),
}
QUESTIONS = ["bt", "show pcpu", "ps", "show lockchain all"]


def conversation(tmp_path: Path, chunks: Sequence[bytes], pace: float) -> Death:
    answers = {**ANSWERS, b" ": b"        \r    2     0\r\ndb> ", b"": b"        \r    2     0\r\ndb> "}
    reader = live(tmp_path, chunks, pace, answers=answers)
    assert reader.death is not None
    return reader.death


@pytest.mark.parametrize("gap", [0.02, 1.0, 3.0])
def test_a_later_prompt_is_queried(tmp_path: Path, gap: float) -> None:
    death = conversation(tmp_path, [crlf(REPORT), crlf(STOPPED + "db> ")], gap)
    assert [question for question, _ in death.answers] == QUESTIONS
    assert (death.kind, death.message, death.faulting_function) == ("panic", "xyz", "xyz_drain")


def test_the_conversation_does_not_depend_on_where_a_chunk_ends(tmp_path: Path) -> None:
    whole = crlf(f"{REPORT}{STOPPED}db> ")
    for at in (*range(1, len(whole), 23), len(whole) - 1, len(whole)):
        (tmp_path / str(at)).mkdir()
        death = conversation(tmp_path / str(at), [piece for piece in (whole[:at], whole[at:]) if piece], 0.0)
        assert [question for question, _ in death.answers] == QUESTIONS, at
        assert death.faulting_function == "xyz_drain"


def test_a_slow_console_brings_a_report_line_by_line(tmp_path: Path) -> None:
    lines = crlf(f"{REPORT}{STOPPED}db> ").splitlines(keepends=True)
    death = conversation(tmp_path, lines, 0.6)
    assert [question for question, _ in death.answers] == QUESTIONS


def test_the_pager_continues(tmp_path: Path) -> None:
    answers = {**ANSWERS, b" ": crlf("        \r    2     0\ndb> ")}
    stream = Paged(crlf(f"{REPORT}{STOPPED}db> "), answers)
    reader = ConsoleReader(stream, tmp_path / "c.log", tables=FREEBSD).start()
    with reader.expecting_death() as died:
        death = died(Deadline(20))
    reader.close()
    assert "2     0" in dict(death.answers)["ps"]
    assert stream.written.count(b" \r") == 0
    assert stream.pages == 1


class Paged(ReplayStream):
    """Replays each answer byte by byte, and waits for a space at the end of a page."""

    def __init__(self, data: bytes, replies: dict[bytes, bytes]) -> None:
        super().__init__(data, end="silence")
        self.replies, self.pages = replies, 0

    def write(self, data: bytes) -> None:
        super().write(data)
        self.pages += data == b" "
        answer = self.replies.get(data if data == b" " else data.rstrip(b"\r"), b"")
        self._chunks.extend(answer[n : n + 1] for n in range(len(answer)))


SCRIPT = "db:0:kdb.enter.panic>  "
SCRIPTED = (
    f"panic: xyz\ncpuid = 0\n{STOPPED}{SCRIPT}capture on\n{SCRIPT}bt\nTracing pid 1 tid 2 td 0xfffff80003a5a000\n{BT}"
    f"{SCRIPT}show registers\ncs                        0x20\n{SCRIPT}reset\n"
)


@pytest.mark.parametrize("pace", [0.0, 0.05, 0.3])
def test_a_script_ends_by_itself(tmp_path: Path, pace: float) -> None:
    """The echo of a script is no prompt: the harness types nothing and reads the script's output."""
    data = crlf(SCRIPTED)
    chunks = data.splitlines(keepends=True)
    if pace == 0.3:
        # One command takes longer than the usual silence.
        chunks = [b"".join(chunks[:6]), b"".join(chunks[6:-1]), chunks[-1]]
        pace = 1.0
    reader = live(tmp_path, chunks, pace)
    death = reader.death
    assert death is not None
    assert reader._stream.written == b""  # type: ignore[attr-defined]
    assert (death.kind, death.message, death.faulting_function) == ("panic", "xyz", "xyz_drain")
    assert [command for command, _ in death.answers] == ["capture on", "bt", "show registers", "reset"]
    assert "xyz_drain() at" in dict(death.answers)["bt"]
    assert (tmp_path / "console.log").read_bytes() == data, "the report must end with the script"


def test_a_script_whatever_the_cut(tmp_path: Path) -> None:
    assert dies(tmp_path, SCRIPTED).faulting_function == "xyz_drain"


def test_a_script_that_leaves_a_prompt_is_queried(tmp_path: Path) -> None:
    data = crlf(SCRIPTED.removesuffix(f"{SCRIPT}reset\n") + "db> ")
    death = conversation(tmp_path, data.splitlines(keepends=True), 0.02)
    assert [question for question, _ in death.answers] == ["capture on", "bt", "show registers", *QUESTIONS[1:]]


def test_scripts_of_any_name_and_depth() -> None:
    report = "db:0:kdb.enter.default> textdump set\ndb:1:locks-2>  show all locks\nProcess 1\ndb:0:kdb.enter.default> reset\n"
    assert script_answers(report) == (("textdump set", ""), ("show all locks", "Process 1"), ("reset", ""))


def test_a_reader_that_is_not_scheduled_takes_that_for_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is busy after a chunk that ends like a prompt, and the next chunk is there already."""
    take = ConsoleReader._take
    monkeypatch.setattr(ConsoleReader, "_take", lambda self, chunk: take(self, chunk) or time.sleep(0.6))
    text = crlf(STUCK["loader-efi"][0])
    reader = ConsoleReader(
        ReplayStream(text + crlf(f"\n{LOGIN}"), sizes=(len(text), 4096)), tmp_path / "c.log", tables=FREEBSD
    ).start()
    reader.join(60)
    reader.close()
    assert reader.death is not None
    assert (reader.death.kind, reader.stage) == ("eof", "login")


def test_a_debugger_that_goes_on_lets_the_report_end(tmp_path: Path) -> None:
    text = f"{REPORT}{STOPPED}{SCRIPT}bt\n{BT}{SCRIPT}continue\nUptime: 9s\nAutomatic reboot in 15 seconds - press a key\n"
    begun = time.monotonic()
    death = live(tmp_path, [crlf(text)]).death
    assert death is not None
    assert (death.kind, death.faulting_function) == ("panic", "xyz_drain")
    assert time.monotonic() - begun < 10


# -- a second boot ----------------------------------------------------------------------------------------------------

EFI = "FreeBSD/amd64 EFI loader, Revision 3.0\n"
BY_ITSELF, RESET = (
    f"a second boot that nobody requested: {how}" for how in ("the guest rebooted by itself", "it was reset without a message")
)
AGAIN = {
    "after-login": (f"{LOGIN}{BANNER}", "login", RESET),
    "banner-alone": (f"{LOGIN}\nCopyright (c) 1992-2021 The FreeBSD Project.\n", "login", RESET),
    "boot-line-alone": (f"{LOGIN}\n---<<BOOT>>---\n", "login", RESET),
    "old-kernel": (f"{LOGIN}\n{KERNEL}CPU: x\n", "login", RESET),
    "orderly": (f"{LOGIN}root\nroot@box:~ # \nAll buffers synced.\nUptime: 18s\nRebooting...\n{BANNER}CPU: x\n", "login", BY_ITSELF),
    "in-the-middle": (f"{LOADER}{RC}\n{LOADER}{RC}", "rc", RESET),
    "at-once": (f"{BANNER}CPU: x\n{BANNER}CPU: x\n", "kernel", RESET),
    "loader-first": (f"{EFI}{LOGIN}\n{EFI}", "login", RESET),
    "firmware-first": (f'{LOGIN}\nBdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)\n', "login", RESET),
    "to-the-end": (f"{LOGIN}\n{LOGIN}", "login", RESET),
    "three": (f"{RC}\n{RC}\n{RC}", "rc", RESET),
}  # fmt: skip


@pytest.mark.parametrize("row", AGAIN)
def test_a_second_boot(tmp_path: Path, row: str) -> None:
    text, stage, message = AGAIN[row]
    death = dies(tmp_path, text)
    assert (death.kind, death.stage, death.message) == (SECOND_BOOT, stage, message)


def test_a_second_boot_of_linux(tmp_path: Path) -> None:
    text = f"{LINUX_BOOT}[    1.2] Run /init as init process\n\ncontrol login: \n{LINUX_BOOT}[    0.1] x\n"
    assert dies(tmp_path, text, LINUX).kind == SECOND_BOOT


@pytest.mark.parametrize("row", AGAIN)
def test_a_reboot_that_was_requested_is_a_new_boot(tmp_path: Path, row: str) -> None:
    text, *_ = AGAIN[row]
    data = crlf(text)
    for chunks in ([data], [data[n : n + 11] for n in range(0, len(data), 11)]):
        assert fed(tmp_path, chunks, requested=True).death is None
    if row == "to-the-end":
        reader = fed(tmp_path, [data], requested=True)
        assert [stage.name for stage in reader.stages] == ["kernel", "mountroot", "rc", "login"]
        assert reader.boot_offset > len(data) // 3


@pytest.mark.parametrize(
    "text",
    [
        # Loaders print their name more than once, and one starts another.
        f"{LOADER}{LOADER}{EFI}>> FreeBSD EFI boot block\n{EFI}{LOGIN}",
        # login(1) up to 9 prints the first lines of the banner.
        f"{LOGIN}root\nCopyright (c) 1992-2012 The FreeBSD Project.\nCopyright (c) 1979, 1980\n\tThe Regents\n\nFreeBSD 8.4 #0\n\nWelcome!\nbox# ",
        # Texts of an earlier panic or boot in a mail, a log or a name.
        f"{LOGIN}root\nroot@box:~ # grep BOOT x\nx:---<<BOOT>>---\nroot@box:~ # ",
    ],
)
def test_no_second_boot(tmp_path: Path, text: str) -> None:
    data = crlf(text)
    for chunks in ([data], [data[n : n + 13] for n in range(0, len(data), 13)], [data[n : n + 1] for n in range(len(data))]):
        reader = fed(tmp_path, chunks, requested=False)
        assert reader.death is not None
        assert reader.death.kind == "eof", reader.death


def test_a_linux_log_that_is_printed_once_more_is_no_second_boot(tmp_path: Path) -> None:
    text = f"{LINUX_BOOT}[    0.3] printk: console [hvc0] enabled\n{LINUX_BOOT}[    1.2] Run /init as init process\n"
    death = fed(tmp_path, [crlf(text)], LINUX).death
    assert death is not None
    assert death.kind == "eof"


def test_a_quoted_banner_is_no_second_boot(tmp_path: Path) -> None:
    reader = ConsoleReader(ReplayStream(b""), tmp_path / "c.log", tables=FREEBSD)
    reader._take(crlf(LOGIN))
    with reader.quoting(b"fxh-end-12345678"):
        for chunk in (crlf(BANNER), crlf("CPU: x\n"), b"fxh-end-12345678\r\nfxh# "):
            reader._take(chunk)
            reader._check()
    reader._check()
    assert reader.death is None
    with reader.quoting(b"fxh-end-87654321"):
        reader._take(crlf(BANNER))
        reader._check(ended=True)
    assert reader.death is not None
    assert reader.death.kind == SECOND_BOOT
    reader.close()


def test_a_quoted_log_may_be_followed_by_silence(tmp_path: Path) -> None:
    """`dmesg; make`: the log quotes the first lines of a boot, and the next output comes late."""
    reader = ConsoleReader(ReplayStream(b""), tmp_path / "c.log", tables=FREEBSD)
    reader._take(crlf(LOGIN))
    with reader.quoting(b"fxh-end-12345678"):
        reader._take(crlf(f"---<<BOOT>>---\n{BANNER}"))
        for seconds in (1.5, 20.0):
            reader._tracker.last_byte = time.monotonic() - seconds
            reader._check()
            assert reader.death is None, seconds
        reader._tracker.last_byte = time.monotonic() - 60.0
        reader._check()
    assert reader.death is not None
    assert reader.death.kind == SECOND_BOOT
    reader.close()


def test_a_login_s_password_is_not_the_loader_s(tmp_path: Path) -> None:
    """The same holds after a quoted panic, when the end of the output is assessed again."""
    text = f"{LOGIN}savecore[512]: reboot after panic: foo\nbox login: root\nPassword:"
    reader = fed(tmp_path, [crlf(text)])
    assert reader.death is None or reader.death.kind == "eof"


def test_a_restored_guest_must_not_boot(tmp_path: Path) -> None:
    reader = ConsoleReader(ReplayStream(crlf(f"fxh# \n{BANNER}")), tmp_path / "c.log", tables=FREEBSD, running=True).start()
    reader.join(10)
    assert reader.death is not None
    assert reader.death.kind == SECOND_BOOT
    reader.close()


def test_a_new_boot_on_the_same_console_is_the_first_again(tmp_path: Path) -> None:
    reader = ConsoleReader(ReplayStream(b""), tmp_path / "c.log", tables=FREEBSD)
    for _ in range(3):
        reader.rearm()
        reader._take(crlf(LOGIN))
        reader._check()
    assert reader.death is None
    reader.close()


def test_a_death_is_not_mixed_with_the_boot_after_it(tmp_path: Path) -> None:
    second = f"{BANNER}panic: another\ncpuid = 1\nUptime: 1s\n"
    death = dies(tmp_path, f"{LOGIN}\npanic: xyz\ncpuid = 0\nKDB: stack backtrace:\n{BT}Uptime: 9s\n{second}")
    assert (death.kind, death.message, death.faulting_function, death.stage) == ("panic", "xyz", "xyz_drain", "login")
    assert "another" not in death.excerpt


@pytest.mark.parametrize("log", sorted(path.name for path in CONSOLES.glob("*.log")))
def test_recorded_consoles_have_no_second_boot_but_one(tmp_path: Path, log: str) -> None:
    death = fed(tmp_path, [(CONSOLES / log).read_bytes()]).death
    assert death is not None
    assert (death.kind == SECOND_BOOT) == (log == "freebsd-13.2-pvh-lab-reboot.log")
