# SPDX-License-Identifier: BSD-2-Clause
"""Prefixes of log collectors, escape sequences and erased characters: the rules about lines apply to the text without them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import FREEBSD, classify, fed

from harness.console.clean import LINES, SAMPLE, Cleaner, cleaned, prefix
from harness.console.reader import ConsoleReader
from harness.transport.replay import ReplayStream

CONSOLES = Path(__file__).parent.parent / "consoles"
RECORDED = {path.name: path.read_bytes() for path in sorted(CONSOLES.glob("*.log"))}
BOOT = RECORDED["freebsd-13.2-pvh-boot-login-panic.log"]
TRAP = b"""\
Fatal trap 12: page fault while in kernel mode\r
cpuid = 1; apic id = 01\r
fault virtual address\t= 0x10\r
panic: page fault\r
cpuid = 1\r
time = 1700000000\r
KDB: stack backtrace:\r
db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe0011110000\r
vpanic() at vpanic+0x151/frame 0xfffffe0011110020\r
panic() at panic+0x43/frame 0xfffffe0011110040\r
trap_fatal() at trap_fatal+0x386/frame 0xfffffe0011110060\r
xyz_drain() at xyz_drain+0x10/frame 0xfffffe0011110080\r
Uptime: 9s\r
"""
BOOTED = (
    b"Copyright (c) 1992-2021 The FreeBSD Project.\r\nTrying to mount root from ufs:/dev/xbd0 []...\r\nSetting hostuuid: 1-2.\r\n"
)

# The prefix of each collector for a line at 04:05:06.
PREFIXES = {
    "osstest": "Feb  3 04:05:06.100001 ",
    "syslog": "<14>Feb  3 04:05:06 box xl[123]: ",
    "syslog-5424": "<134>1 2024-02-03T04:05:06.789Z box xl 123 - - ",
    "messages": "Feb  3 04:05:06 box kernel: ",
    "journal": "Feb 03 04:05:06 box xl[123]: ",
    "journal-monotonic": "[  123.456789] box xl[123]: ",
    "journal-unix": "1706933106.789012 box xl[123]: ",
    "iso": "2024-02-03T04:05:06.789+00:00 ",
    "iso-blank": "2024-02-03 04:05:06,789 ",
    "iso-brackets": "[2024-02-03 04:05:06] ",
    "xenconsoled": "[2024-02-03 04:05:06+0000] ",
    "actions": "2024-02-03T04:05:06.7890123Z ",
    "containers": "2024-02-03T04:05:06.789012345Z stdout F ",
    "jobs": "2024-02-03T04:05:06.789012Z 00O ",
    "compact": "20240203T040506Z ",
    "conserver": "[Sat Feb  3 04:05:06 2024]",
    "date": "Sat Feb  3 04:05:06 UTC 2024: ",
    "us": "02/03/2024 4:05:06 PM - ",
    "mail": "Sat, 03 Feb 2024 04:05:06 +0000 | ",
    "clock": "04:05:06.789 ",
    "clock-tight": "[04:05:06.789]",
    "epoch": "1706933106 ",
    "elapsed": "[+12.345] ",
    "elapsed-bare": "12.345678 ",
    "elapsed-brackets": "[   12.345678] ",
    "grabserial": "[0.123456 0.000321] ",
    "domain": "(d3) ",
    "domain-date": "(d3) [2024-02-03 04:05:06.789] ",
    "domain-boot": "(d3) [   12.345678] ",
    "domain-raw": "(d3) [0000002345abcdef] ",
    "console-name": "guest1: ",
    "compose": "guest1  | ",
    "stamp-and-name": "2024-02-03T04:05:06Z [guest1] ",
    "stamp-and-host": "Feb  3 04:05:06 box ",
    "cat-n": "     7\t",
}


def behind(stamp: str, data: bytes) -> bytes:
    """``data`` as a collector stores it: each line gets the prefix, with a time that advances. An empty last line gets none."""
    lines = data.split(b"\n")
    out = []
    for n, line in enumerate(lines):
        text = re.sub(r"04:05:06", f"04:{5 + n // 60 % 50:02}:{n % 60:02}", stamp)
        out.append(text.encode() + line if line or n < len(lines) - 1 else line)
    return b"\n".join(out)


def verdict(reader: ConsoleReader) -> tuple[object, ...]:
    assert reader.death is not None
    death = reader.death
    return death.kind, death.message, death.faulting_function, death.frames, death.stage, [stage.name for stage in reader.stages]


@pytest.mark.parametrize("form", PREFIXES)
def test_a_prefix_is_found_and_removed(form: str) -> None:
    data = behind(PREFIXES[form], BOOT)
    found = prefix(data[:SAMPLE])
    assert found is not None
    assert Cleaner(found).text(data) == Cleaner().text(BOOT)


@pytest.mark.parametrize("form", PREFIXES)
def test_a_whole_boot_behind_a_prefix(tmp_path: Path, form: str) -> None:
    data = behind(PREFIXES[form], BOOT)
    plain = verdict(fed(tmp_path, [BOOT]))
    assert plain[0] == "panic"
    assert verdict(fed(tmp_path, [data])) == plain
    assert verdict(fed(tmp_path, [data[n : n + 61] for n in range(0, len(data), 61)])) == plain


# Prefixes without a host or console name are recognised within two lines.
@pytest.mark.parametrize(
    "form", [form for form in PREFIXES if form not in ("console-name", "compose", "stamp-and-name", "stamp-and-host")]
)
@pytest.mark.parametrize("text", [BOOTED + TRAP, TRAP], ids=["boot", "trap"])
def test_a_trap_behind_a_prefix(tmp_path: Path, form: str, text: bytes) -> None:
    data = behind(PREFIXES[form], text)
    plain = verdict(fed(tmp_path, [text]))
    assert plain[:3] == ("trap", "Fatal trap 12: page fault while in kernel mode", "xyz_drain")
    for at in range(1, len(data), 17):
        assert verdict(fed(tmp_path, [data[:at], data[at:]])) == plain, at
    assert verdict(fed(tmp_path, [data[n : n + 1] for n in range(len(data))])) == plain
    alone = classify(behind(PREFIXES[form], TRAP))
    assert alone is not None
    assert (alone.kind, alone.message, alone.faulting_function) == plain[:3]


PROMPTED = {
    "mountroot": b"Trying to mount root from ufs:/dev/ad4s1a\r\n\r\nManual root filesystem specification:\r\n  ?  List\r\n\r\nmountroot> ",
    "loader": b"FreeBSD/x86 bootstrap loader, Revision 1.1\r\ncan't load 'kernel'\r\nType '?' for a list of commands\r\nOK ",
    "single-user": b"Automatic file system check failed; help!\r\nERROR: ABORTING BOOT\r\nEnter full pathname of shell or RETURN for /bin/sh: ",
    "ddb": b"KDB: enter: manual escape to debugger\r\n[ thread pid 1 tid 2 ]\r\nStopped at      kdb_enter+0x33\r\ndb> ",
}


@pytest.mark.parametrize("kind", PROMPTED)
@pytest.mark.parametrize("form", ["osstest", "xenconsoled", "domain", "domain-date", "elapsed-brackets", "iso"])
def test_a_prompt_behind_a_prefix(tmp_path: Path, form: str, kind: str) -> None:
    plain = verdict(fed(tmp_path, [PROMPTED[kind]]))
    assert plain[0] == kind
    data = behind(PREFIXES[form], PROMPTED[kind])
    for chunks in ([data], [data[n : n + 5] for n in range(0, len(data), 5)], [data[n : n + 1] for n in range(len(data))]):
        assert verdict(fed(tmp_path, chunks)) == plain


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_consoles_have_no_prefix(name: str) -> None:
    """Neither at their beginning nor from any line on, although Linux and FreeBSD put time stamps on some lines."""
    data = RECORDED[name]
    assert prefix(data[:SAMPLE]) is None
    starts = [0, *(match.end() for match in re.finditer(rb"\n", data))]
    assert not [n for n in starts if prefix(data[n : n + SAMPLE])]


@pytest.mark.parametrize(
    "text",
    [
        b"[    0.000000] Linux version 6.12.1\n[    0.000000] Command line: x\n[    0.1] x\n[    5.300000] Run /init as init process\n",
        b"2024-02-03T04:05:06.070809+00:00 - init 1 - - x\nEnter full pathname of shell\nx\ny\n",
        b"xbd0: a\nxbd0: b\nxbd0: c\nxbd0: d\nxbd0: e\n",
        b"#0 0xffffffff80c5c9d8 at witness_checkorder+0xbd8\n#1 0xffffffff80bb6d3c at x+0x18c\n",
        b"",
        b"\n\n",
        b"Feb  3 04:05:06 once\nCopyright\nCPU: x\nreal memory\n",
    ],
)
def test_lines_that_only_look_prefixed(text: bytes) -> None:
    assert prefix(text) is None


def test_a_linux_behind_a_prefix_keeps_its_own_stamps() -> None:
    text = b"".join(b"[    %d.123456] xyz_poll+0x1a/0x90\n" % n for n in range(12))
    assert cleaned(behind("Feb  3 04:05:06.100001 ", text)) == text
    assert cleaned(text) == text


def test_xens_own_lines_stay_between_those_of_a_domain(tmp_path: Path) -> None:
    data = behind("(d3) [2024-02-03 04:05:06] ", BOOTED) + (
        b"(XEN) [2024-02-03 04:06:06] d3v0 Triple fault - invoking HVM shutdown action 1\r\n"
        b"(XEN) [2024-02-03 04:06:06] (file=x.c, line=1) x\r\n"
    )
    assert b"\r\n(XEN) [2024-02-03 04:06:06] d3v0" in cleaned(data)
    assert [stage.name for stage in fed(tmp_path, [data]).stages] == ["kernel", "mountroot", "rc"]


def test_a_late_prefix_is_ignored(tmp_path: Path) -> None:
    """Only the first lines of a stream are searched for a prefix. A guest may print time stamps later."""
    data = BOOTED * 8 + b"".join(b"Feb  3 04:05:%02d box kernel: panic: xyz\n" % n for n in range(20))
    reader = ConsoleReader(ReplayStream(b""), tmp_path / "c.log", tables=FREEBSD)
    reader._take(data)
    assert reader._tracker._cleaner.prefix is None
    reader.close()


# -- escapes ----------------------------------------------------------------------------------------------------------

ESCAPES = (
    b"\x1b[0m",
    b"\x1b[1;33m",
    b"\x1b(B",
    b"\x1b[?25h",
    b"\x1b]0;a title\x07",
    b"\x1b]0;t\x1b\\",
    b"\x1b7",
    b"\x1b=",
    b"\x1b]P0000000",
)


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("kind", PROMPTED)
def test_escape_sequences_are_removed_from_lines(tmp_path: Path, escape: bytes, kind: str) -> None:
    """Before and after a prompt, at the beginning of each line, and split into two chunks."""
    text = PROMPTED[kind]
    plain = verdict(fed(tmp_path, [text]))
    head, newline, prompt = text.rpartition(b"\n")
    for data in (
        head + newline + escape + prompt,
        text + escape,
        head + newline + escape + prompt.rstrip() + escape + b" " + escape,
        escape + text.replace(b"\n", b"\n" + escape),
    ):
        assert verdict(fed(tmp_path, [data])) == plain
        for at in range(max(1, len(data) - 30), len(data)):
            assert verdict(fed(tmp_path, [data[:at], data[at:]])) == plain
        assert verdict(fed(tmp_path, [data[n : n + 1] for n in range(len(data))])) == plain


def test_a_login_prompt_in_colour(tmp_path: Path) -> None:
    data = BOOTED + b"\x1b[1;32mbox login: \x1b[0m"
    for at in range(len(BOOTED), len(data)):
        assert fed(tmp_path, [data[:at], data[at:]]).stage == "login"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"|\x08/\x08-\x08zfs", b"zfs"), (b"ab\x08 \x08c", b"ac"), (b"a\x00b", b"ab"), (b"a\x1b[2;1Hb", b"a\nb"), (b"a\x1b[Hb", b"a\nb"),
        (b"\x1b[03;02Ha\x1b[03;03Hb\x1b[03;04Hc\x1b[04;01Hd", b"\nabc\nd"), (b"a\x1b[2Jb", b"a\nb"), (b"a\x1b[", b"a"), (b"a\x1b[31", b"a"),
        (b"a\x1b]0;ti", b"a"), (b"a\x1b]no end\nb", b"ano end\nb"), (b"a\x1b]P00ff00ffb", b"afb"), (b"a\x1b[99999999999999;1Hb", b"ab"),
    ],
)  # fmt: skip
def test_control_characters_and_escape_sequences(data: bytes, text: bytes) -> None:
    assert Cleaner().text(data) == text


@given(
    st.lists(
        st.sampled_from(
            [b"a", b"bc", b"\n", b"\r\n", b"\x1b[0m", b"\x1b[3;1H", b"\x1b[3;4H", b"\x08", b"\0", b"(d3) ", b"\x1b]0;t\x07"]
        )
    )
)
def test_places_map_back_to_the_log(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    for cleaner in (Cleaner(), Cleaner(re.compile(rb"\(d3\) "))):
        seen = cleaner.clean(data)
        for place, byte in enumerate(seen.text):
            raw = seen.raw(place)
            if byte != 10:
                assert data[raw] == byte
                assert seen.place(raw) == place


@given(st.binary(max_size=400), st.integers(1, 40))
def test_any_bytes_are_accepted(data: bytes, size: int) -> None:
    noise = data.replace(b"q", b"\x1b[").replace(b"w", b"panic: ").replace(b"e", b"\n").replace(b"r", b"(d1) ")
    from harness.console.boot_tracker import BootTracker

    tracker = BootTracker(FREEBSD, first_line=1.0, scale=1.0)
    for n in range(0, len(noise), size):
        tracker.feed(noise[n : n + size], float(n))
        tracker.check(float(n))
    tracker.check(1e9, ended=True)
    assert tracker.offset == len(noise)
    classify(noise)


@pytest.mark.parametrize("name", RECORDED)
def test_random_cuts_change_no_verdict(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    data = RECORDED[name]
    whole = verdict(fed(tmp_path, [data]))
    for form in ("", "Feb  3 04:05:06.100001 ", "(d3) "):
        stamped = behind(form, data) if form else data
        for _ in range(9):
            places = sorted(rng.sample(range(1, len(stamped)), min(len(stamped) - 1, rng.randint(1, 60))))
            chunks = [stamped[begin:end] for begin, end in zip([0, *places], [*places, len(stamped)], strict=True)]
            assert verdict(fed(tmp_path, chunks)) == whole, (form, places)


def test_the_sample_is_bounded(tmp_path: Path) -> None:
    reader = ConsoleReader(ReplayStream(b""), tmp_path / "c.log", tables=FREEBSD)
    for _ in range(100):
        reader._take(b"x" * 1000)
    assert len(reader._tracker._sample) <= SAMPLE + 1000
    assert not reader._tracker._sampling
    assert LINES < 100
    reader.close()
