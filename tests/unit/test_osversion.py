# SPDX-License-Identifier: BSD-2-Clause
"""Tests FreeBSD versions, their detection, and the code that depends on them."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import UsageError
from harness.guests.os import freebsd_source
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.freebsd_endings import ENDINGS
from harness.guests.os.linux import Linux
from harness.guests.os.values import KernelIdentity
from harness.guests.source import DiskImage
from harness.hosts.direct import DirectHost
from harness.images import kernelfile, srctree
from harness.images.entries import StoreEntry
from harness.images.image import Image
from harness.osversion import UNKNOWN, OSVersion, parse
from harness.plugin import inputs
from harness.xen import elfsymbols
from tests.unit.kernels import DYNSYM, NOBITS, kernel

# -- the value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("13.2", ("13.2", "")), ("14.0-STABLE", ("14.0", "STABLE")), ("15.1-RELEASE-p1", ("15.1", "RELEASE-p1")),
        ("14.2-BETA1", ("14.2", "BETA1")), ("", ("", "")), ("unknown", ("", "")), ("6.12.118+deb13-amd64", ("", "")),
    ],
)  # fmt: skip
def test_parse(name: str, expected: tuple[str, str]) -> None:
    found = parse(name)
    assert (found.release, found.branch, found.osreldate) == (*expected, 0)


@pytest.mark.parametrize(
    ("version", "lowest"),
    [
        (parse("14.0-STABLE", 1400507), 1400507),
        (parse("14.0"), 1400097), (parse("14.0-RELEASE-p4"), 1400097), (parse("14.0-STABLE"), 1400500), (parse("14.0-CURRENT"), 1400000),
        (parse("15.0"), 1500068), (parse("13.2"), 1302000), (parse("13.2-STABLE"), 1302500), (parse("14.2-BETA1"), 1402000),
        (parse("14.2-PRERELEASE"), 1401500), (parse("10.4"), 1004000), (parse("9.3"), 903000), (UNKNOWN, 0),
    ],
)  # fmt: skip
def test_an_unknown_number_is_the_lowest_of_that_name(version: OSVersion, lowest: int) -> None:
    assert version.lowest == lowest


@pytest.mark.parametrize(
    ("version", "span", "inside"),
    [
        (parse("13.2"), ">=12.0", True), (parse("13.2"), ">=14", False), (parse("14.0"), "<14.1", True), (parse("14.1"), "<14.1", False),
        (parse("13.2"), ">=12.0,<13.0", False), (UNKNOWN, ">=12.0", True), (UNKNOWN, "<1400507", True),
        # Both are 14.0 and differ in the number only.
        (parse("14.0-RELEASE", 1400097), "<1400507", True), (parse("14.0-STABLE", 1400507), "<1400507", False),
        (parse("14.0-STABLE", 1400507), "<14.1", True),
        # The number is unknown, so the lowest number of the name counts.
        (parse("14.0"), "<1400507", True), (parse("14.1"), "<1400507", False), (parse("13.2"), "<1400507", True),
        (parse("14.2-STABLE", 1402501), ">=1402000,<1500000", True), (parse("15.1", 1501000), ">=1402000,<1500000", False),
        (parse("14.2"), ">=14.2,<1500000", True), (parse("15.0"), ">=1500068", True), (parse("15.0-CURRENT"), ">=1500068", False),
        (OSVersion(osreldate=1402501), ">=14.2", True), (OSVersion(osreldate=1402501), "<14.2", False),
        (parse("8.4", 804504), "<900044", True),
    ],
)  # fmt: skip
def test_spans(version: OSVersion, span: str, inside: bool) -> None:
    assert version.within(span) is inside


@pytest.mark.parametrize("span", ["12+", "", ">=14.0,", "=14.0", "<14.1.2", ">=14000", "<14005070", ">14.1", "14.1"])
def test_invalid_spans(span: str) -> None:
    with pytest.raises(UsageError, match="is not a bound"):
        UNKNOWN.within(span)


def test_the_number_wins_over_a_name_of_another_major() -> None:
    """A derived system may have its own REVISION."""
    assert OSVersion("0.1", "RELEASE", 1501502).number == (15, 1)
    assert OSVersion("14.2", "PRERELEASE", 1401501).number == (14, 2)
    assert OSVersion("", "", 0).number is None


def test_order_is_by_number() -> None:
    names = ["unknown", "9.3", "13.2", "14.0-CURRENT", "14.0-RELEASE", "14.0-STABLE", "14.1", "14.2-STABLE", "15.0-CURRENT", "15.1"]
    versions = [parse(name) for name in names]
    for older, newer in itertools.combinations(versions, 2):
        assert older < newer
        assert sorted([newer, older]) == [older, newer]
    assert parse("14.0-STABLE", 1400507) < parse("14.1")


def test_text() -> None:
    assert str(parse("15.1-RELEASE-p1", 1501000)) == "15.1-RELEASE-p1 (1501000)"
    assert (str(parse("13.2")), str(UNKNOWN), str(OSVersion(osreldate=1402501))) == (
        "13.2", "of unknown version", "of unknown version (1402501)",
    )  # fmt: skip


# -- kernels and trees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("names", [b"\0getosreldate\0version\0", b"\0version\0osreldate\0"])
def test_osreldate_of_a_kernel(bits: int, names: bytes) -> None:
    data = kernel(bits=bits, names=names)
    assert kernelfile.osreldate_of(data) == 1400507
    assert kernelfile.os_version(data) == OSVersion("14.0", "STABLE", 1400507)


def test_osreldate_of_a_kernel_that_kept_its_dynamic_symbols_alone() -> None:
    assert kernelfile.osreldate_of(kernel(table=DYNSYM)) == 1400507


@pytest.mark.parametrize(
    "data",
    [
        kernel(table=0),
        kernel(names=b"\0version\0osreldates\0"),
        kernel(data_kind=NOBITS),
        kernel(osreldate=0),
        kernel(osreldate=-1400507),
        kernel(osreldate=99_000_000),
        b"\x7fELF",
        b"",
        b"hello " * 50,
    ],
)
def test_a_kernel_whose_number_is_unknown(data: bytes) -> None:
    assert kernelfile.osreldate_of(data) == 0


@pytest.mark.parametrize("bits", [32, 64])
def test_a_damaged_kernel_is_survived(bits: int) -> None:
    """A kernel that is truncated, or has a modified byte in its headers, gives a number or none, but no exception."""
    whole = kernel(bits=bits)
    for end in range(0, len(whole), 7):
        elfsymbols.read_int(whole[:end], "osreldate")
    for at in (*range(4, 64), *range(len(whole) - 320, len(whole))):
        for value in (0, 0x7F, 0xFF):
            elfsymbols.read_int(whole[:at] + bytes([value]) + whole[at + 1 :], "osreldate")


def test_a_kernel_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(kernel("15.1-RELEASE-p1 XENA", 1501000))
    found = kernelfile.read(tmp_path / "kernel")
    assert (found.version, found.branch, found.osreldate) == ("15.1", "RELEASE-p1", 1501000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#undef __FreeBSD_version\n#define __FreeBSD_version 1302001\t/* Master, propagated to newvers */\n", 1302001),
        ("#define\t__FreeBSD_version\t804504\n", 804504),
        (" * __FreeBSD_version 1302001 is bumped\n#define __FreeBSD_version_max 1\n", 0),
        ("", 0),
    ],
)
def test_osreldate_of_a_tree(text: str, expected: int) -> None:
    assert srctree.parse_osreldate(text) == expected


def test_a_source_tree_knows_its_number(tmp_path: Path) -> None:
    files = {
        "Makefile.inc1": "",
        "sys/conf/newvers.sh": 'REVISION="14.0"\nBRANCH="STABLE"\n',
        "sys/amd64/conf/GENERIC": "",
        "tools/build/make.py": "",
        "sys/sys/param.h": "#define __FreeBSD_version 1400507\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = srctree.find(tmp_path)
    assert (found.version, found.branch, found.osreldate) == ("14.0", "STABLE", 1400507)


# -- guests -----------------------------------------------------------------------------------------------------------


def made(directory: Path, manifest: dict[str, object], *, with_kernel: bool = True) -> Image:
    directory.mkdir()
    if with_kernel:
        (directory / "kernel").write_bytes(kernel())
    whole = {"types": ["pvh"], "root": "xbd0", "pygrub": False, "layout": "ufs1", "disks": [], **manifest}
    (directory / "manifest.json").write_text(json.dumps(whole))
    return Image("mine", StoreEntry(directory))


def test_an_image_knows_its_version(tmp_path: Path) -> None:
    new = made(tmp_path / "new", {"version": "14.0", "branch": "STABLE", "osreldate": 1400503})
    assert new.os_version == OSVersion("14.0", "STABLE", 1400503), "the number in the manifest counts"
    old = made(tmp_path / "old", {"version": "14.0"})
    assert old.os_version == OSVersion("14.0", "STABLE", 1400507), (
        "if an older manifest has no number, that of the kernel file counts"
    )
    bare = made(tmp_path / "bare", {"version": "14.0"}, with_kernel=False)
    assert bare.os_version == OSVersion("14.0")
    disk = made(tmp_path / "disk", {"version": "unknown", "branch": "", "osreldate": 0}, with_kernel=False)
    assert disk.os_version == UNKNOWN
    assert freebsd_source.from_image(old).os.os_version == OSVersion("14.0", "STABLE", 1400507)
    assert (freebsd_source.from_image(disk).label, freebsd_source.from_image(disk).os.version) == ("freebsd-unknown", "")


def test_a_kernel_and_a_disk_know_their_version(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(kernel("14.2-STABLE XENA", 1402501))
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    guest = freebsd_source.from_files(tmp_path / "kernel", tmp_path / "disk")
    assert (guest.label, guest.os.os_version) == ("freebsd-14.2", OSVersion("14.2", "STABLE", 1402501))
    words = inputs.of_source(guest)["kernel"]
    assert words.startswith("kernel (FreeBSD 14.2-STABLE XENA, 1402501) sha256:")
    (tmp_path / "kernel").write_bytes(kernel("14.2-STABLE XENB", 1402501))
    assert inputs.of_source(guest)["kernel"].startswith("kernel (FreeBSD 14.2-STABLE XENB, 1402501) sha256:"), (
        "the inputs must describe the new file"
    )


def test_the_files_of_a_guest_are_read_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated requests for hashes read a file once, unless it has changed."""
    (tmp_path / "kernel").write_bytes(kernel("14.2-STABLE XENA", 1402501))
    for name in ("disk", "more"):
        (tmp_path / name).write_bytes(name.encode() * (1 << 18))
    guest = freebsd_source.from_files(tmp_path / "kernel", tmp_path / "disk")
    guest = replace(guest, disks=(*guest.disks, DiskImage(tmp_path / "more", "xvdb")))
    monkeypatch.setattr("harness.digest._SETTLED", -1.0)
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: read.append(Path(file.name).name) or digest(file, name))
    shapes = [guest, replace(guest, bootloader="pygrub"), replace(guest, kernel=None)]
    before = [(shape.key, inputs.of_source(shape)["xvda"]) for _ in range(3) for shape in shapes]
    there = DirectHost(Silent(), run_id="abc")  # type: ignore[arg-type]
    monkeypatch.setattr(there, "_ensure_lease", lambda: None)
    assert len(there.files(tmp_path / "kernel", tmp_path / "disk", tmp_path / "more")) == 3
    assert sorted(read) == ["disk", "kernel", "more"]
    (tmp_path / "disk").write_bytes(b"else" * (1 << 18))
    after = [(shape.key, inputs.of_source(shape)["xvda"]) for shape in shapes]
    assert not {word for pair in before for word in pair} & {word for pair in after for word in pair}
    assert sorted(read) == ["disk", "disk", "kernel", "more"]


class Silent:
    """A dom0 that has every file in the same size."""

    name = "silent"

    def run(self, argv: list[str], *_: object, **__: object) -> Any:
        names = [name.rpartition("-")[2] for name in argv if "/files/" in name]
        sizes = "".join(f"{_SIZES[name]}\n" for name in names)
        return SimpleNamespace(text=sizes)


_SIZES = {"kernel": len(kernel("14.2-STABLE XENA", 1402501)), "disk": 1 << 20, "more": 1 << 20}


def test_the_running_kernel_tells_its_number() -> None:
    asked = []

    def run(command: str) -> str:
        asked.append(command)
        return "14.0-STABLE\nXENA\n1400507\nFreeBSD 14.0-STABLE XENA\n    me@here:/obj\n"

    found = FreeBSD().identity(run)
    assert found == KernelIdentity("14.0-STABLE", "XENA", "FreeBSD 14.0-STABLE XENA\n    me@here:/obj", 1400507)
    assert "kern.osreldate" in asked[0]
    assert Linux().identity(lambda _: "6.12.118\n#1 SMP").osreldate == 0


def bzimage(text: bytes) -> bytes:
    """The real-mode part of a Linux kernel file with this version text."""
    data = bytearray(0x400)
    data[0x202:0x206], data[0x20E:0x210] = b"HdrS", (0x180).to_bytes(2, "little")
    data[0x380 : 0x380 + len(text)] = text
    return bytes(data)


# The release and the version in both kinds of kernel file.
LINUX = ("6.1.158-fxh", "#1 SMP PREEMPT Debian 6.1.158-1 (2025-11-09)")


@pytest.mark.parametrize(
    "data",
    [
        bzimage(f"{LINUX[0]} (fxh@lab) {LINUX[1]}".encode()),
        b"\x7fELF\0Linux version %s (%s@%s) fmt\0" + f"Linux version {LINUX[0]} (fxh@lab) (gcc 12, ld 2) {LINUX[1]}\n\0".encode(),
    ],
    ids=["bzImage", "vmlinux"],
)
def test_a_linux_kernel_file_says_what_runs(data: bytes) -> None:
    given = Linux().identity_of(data)
    assert given == Linux().identity(lambda _: "\n".join(LINUX))
    other = Linux().identity(lambda _: f"{LINUX[0]}\n#2 SMP PREEMPT")
    assert other.differences(given) == [f"its version is '#2 SMP PREEMPT', the file has {LINUX[1]!r}"]
    assert len(Linux().identity(lambda _: "6.12.1\n#1").differences(given)) == 3


def test_a_freebsd_kernel_file_says_what_runs() -> None:
    given = FreeBSD().identity_of(kernel("14.0-STABLE XENA", 1400507))
    assert given == KernelIdentity("14.0-STABLE", "XENA", "", 1400507)
    running = KernelIdentity("14.0-STABLE", "XENA", "FreeBSD 14.0-STABLE XENA\n    me@here:/obj", 1400507)
    assert running.differences(given) == []
    for name, wrong in (("release", "14.0-RELEASE"), ("ident", "GENERIC"), ("osreldate", 1400097)):
        assert len(replace(running, **{name: wrong}).differences(given)) == 1


@pytest.mark.parametrize("data", [b"", bytes(0x400), bzimage(b""), bzimage(b"no version"), b"Linux version %s (%s@%s)\0"])
def test_a_file_without_a_version_is_refused(data: bytes) -> None:
    for guest_os in (Linux(), FreeBSD()):
        with pytest.raises(UsageError, match="does not name a version"):
            guest_os.identity_of(data)


@pytest.mark.parametrize(
    ("version", "reports_crash"),
    [
        (parse("13.2", 1302001), False), (parse("14.0-RELEASE", 1400097), False), (parse("14.0-STABLE", 1400507), True),
        (parse("14.2-STABLE", 1402501), True), (parse("15.1-RELEASE-p1", 1501000), True), (parse("10.4"), False),
        # Only the name is known.
        (parse("14.0"), False), (parse("14.1"), True), (parse("15.0"), True), (UNKNOWN, True),
        # main before 9e0b0f5de67f.
        (parse("15.0-CURRENT", 1500003), False), (parse("15.0-CURRENT", 1500005), True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pvh", "hvm", "pv"])
def test_how_a_kernel_ends(version: OSVersion, reports_crash: bool, kind: str) -> None:
    guest_os = FreeBSD.of(version, (kind,))
    assert guest_os.fate_of_panic(kind).reason == ("crash" if reports_crash else "reboot")
    assert guest_os.fate("crash", kind) == guest_os.fate_of_panic(kind)
    halt = guest_os.fate("halt", kind)
    stays = kind == "pvh" and not reports_crash
    assert (halt.reason, halt.halts) == (("", True) if stays else ("poweroff", False))
    assert (guest_os.fate("poweroff", kind).reason, guest_os.fate("reboot", kind).reason) == ("poweroff", "reboot")
    assert guest_os.fate("nonsense", kind).reason == ""
    assert not guest_os.fate("nonsense", kind).halts
    assert all("sys/dev/xen/control/control.c" in guest_os.fate(control, kind).why for control in ("poweroff", "halt", "crash"))


def test_every_version_and_type_has_an_ending() -> None:
    for number in (804504, 1004000, 1302001, 1400097, 1400506, 1400507, 1499999, 1500000, 1500004, 1500005, 1600000):
        for kind in ("pvh", "hvm", "pv"):
            version = OSVersion(osreldate=number)
            rows = [row for row in ENDINGS if kind in row.types and any(version.within(span) for span in row.spans)]
            assert rows, f"{number} {kind}"
            assert FreeBSD.of(version, (kind,)).fate("reboot", kind).why == rows[0].source


def test_separators_of_variables() -> None:
    """Commas separate variables; since 14 blanks do so, too (sys/x86/xen/pv.c)."""
    both = {"fxh.a": "1", "fxh.b": "/a/b:c=d"}
    for version in (parse("13.2", 1302001), parse("15.1", 1501000), UNKNOWN):
        assert FreeBSD.of(version, ()).command_line(both) == "fxh.a=1,fxh.b=/a/b:c=d"
    assert FreeBSD.of(parse("13.2", 1302001), ()).command_line({"fxh.a": "1 2"}) == "fxh.a=1 2"
    for version in (parse("14.0"), parse("14.2-STABLE", 1402501), parse("15.1", 1501000), UNKNOWN):
        with pytest.raises(UsageError, match=r"fxh\.a='1 2': FreeBSD .* ends a variable at ' '"):
            FreeBSD.of(version, ()).command_line({"fxh.a": "1 2"})
    for value in ("a,b", 'a"b', "a\nb", "a\tb", "a\0b"):
        with pytest.raises(UsageError, match="ends a variable at"):
            FreeBSD.of(parse("13.2", 1302001), ()).command_line({"fxh.a": value})
