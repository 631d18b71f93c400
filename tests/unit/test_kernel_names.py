# SPDX-License-Identifier: BSD-2-Clause
"""Tests the name of a kernel file: version[] and kern_ident[] in all formats of sys/conf/newvers.sh, 8 to 15."""

from __future__ import annotations

import time

import pytest
from kernels import kernel

from harness.errors import UsageError
from harness.guests.os import freebsd_kernel
from harness.images import kernelfile
from harness.osversion import OSVersion

DATE = "Tue Jun 16 08:00:00 UTC 2020"

# version[] and the expected banner, both without "FreeBSD ".
FORMS = [
    ("13.2-RELEASE XENA\n", "13.2-RELEASE XENA"),
    ("14.1-STABLE stable/14-n269000-0123456789ab GENERIC\n", "14.1-STABLE stable/14-n269000-0123456789ab GENERIC"),
    ("12.1-RELEASE r300001 GENERIC\n", "12.1-RELEASE r300001 GENERIC"),
    ("12.2-STABLE 0123abcdef(box)-dirty GENERIC-NODEBUG\n", "12.2-STABLE 0123abcdef(box)-dirty GENERIC-NODEBUG"),
    ("15.1-RELEASE-p1 XENA\n", "15.1-RELEASE-p1 XENA"),
    (f"8.4-RELEASE #0 r200001: {DATE}\n    root@tank.example:/usr/obj/usr/src/sys/GENERIC\n", "8.4-RELEASE r200001 GENERIC"),
    (f"8.2-STABLE #3: {DATE}\n    me@box:/usr/src/sys/i386/compile/XEN\n", "8.2-STABLE XEN"),
    (f"9.3-RELEASE-p10 #0: {DATE}\n    root@tank:/usr/obj/usr/src/sys/GENERIC\n", "9.3-RELEASE-p10 GENERIC"),
    (f"10.4-STABLE #1 r300002=0123abc(box)-dirty: {DATE}\n    me@box:/o/usr/src/sys/XENHVM\n", "10.4-STABLE r300002=0123abc(box)-dirty XENHVM"),
    (f"10.0-RC2 #0 r200002:200009M: {DATE}\n    me@box:/usr/obj/usr/src/sys/GENERIC\n", "10.0-RC2 r200002:200009M GENERIC"),
    (f"11.4-RELEASE #0 r1: {DATE}\n    root@b:/usr/obj/usr/src/sys/GENERIC\n", "11.4-RELEASE r1 GENERIC"),
    (f"12.3-STABLE #27 stable/12-n1-0123: {DATE}\n    me@box:/usr/obj/my src/amd64.amd64/sys/MY_KERNEL\n", "12.3-STABLE stable/12-n1-0123 MY_KERNEL"),
    (f"14.0-CURRENT amd64 1400064 #4 main-n1-abc: {DATE}\n    me@box:/usr/obj/usr/src/amd64.amd64/sys/XENA\n", "14.0-CURRENT main-n1-abc XENA"),
    (f"14.0-CURRENT amd64 #0 main-n1-abc-dirty: {DATE}\n    me@box:/usr/obj/usr/src/amd64.amd64/sys/XENA\n", "14.0-CURRENT main-n1-abc-dirty XENA"),
    (f"15.0-CURRENT #0: {DATE}\n    me@box:/usr/obj/usr/src/amd64.amd64/sys/GENERIC\n", "15.0-CURRENT GENERIC"),
    (f"13.0-BETA3-p1 #0 r1: {DATE}\n    me@box:/usr/obj/usr/src/amd64.amd64/sys/XENA", "13.0-BETA3-p1 r1 XENA"),
]  # fmt: skip


def file(text: str) -> bytes:
    """A kernel without symbols. sccs[] contains only the first line."""
    ident = text.rstrip("\n").rpartition("/")[2].rpartition(" ")[2]
    first = text.partition("\n")[0]
    return b"\x7fELF\0@(#)FreeBSD %s\0\0FreeBSD %s\0\0%s\0" % (first.encode(), text.encode(), ident.encode())


@pytest.mark.parametrize(("text", "banner"), FORMS)
def test_the_version_names_a_kernel(text: str, banner: str) -> None:
    data = file(text)
    release, _, branch = banner.split()[0].partition("-")
    assert kernelfile.banner(data) == f"FreeBSD {banner}"
    assert kernelfile.os_version(data) == OSVersion(release, branch)
    assert freebsd_kernel.ident(data) == banner.split()[-1]
    twin, ident = freebsd_kernel.renamed(data)
    assert (freebsd_kernel.ident(twin), len(twin)) == (ident, len(data))
    assert ident != banner.split()[-1]
    # kern_ident[] and version[]. sccs[] contains the ident only if version[] has one line.
    assert sum(a != b for a, b in zip(data, twin, strict=True)) == (2 if "#" in text else 3)


@pytest.mark.parametrize(("text", "banner"), FORMS)
def test_the_ident_of_the_symbols_counts(text: str, banner: str) -> None:
    """KERNCONF=XENA with `ident MINE`: the directory is XENA, and uname -i prints MINE."""
    found = kernelfile.banner(kernel(text, ident="MINE"))
    assert found == f"FreeBSD {banner.rpartition(' ')[0]} MINE"


@pytest.mark.parametrize(
    "data",
    [
        b"Linux version 6.1.0 (builder@box) #1 SMP\0",
        b"FreeBSD clang version 14.0.5\0",
        b"FreeBSD 11.4-RELEASE\0",
        b"FreeBSD 11.4-RELEASE #0 r1: Tue Jun 16 08:00:00 UTC 2020\0",
        b"FreeBSD 13.2-RELEASE XENA",
        b"",
    ],
)
def test_files_without_a_name(data: bytes) -> None:
    assert kernelfile.banner(data) == ""
    with pytest.raises(UsageError, match="neither a release nor an ident"):
        freebsd_kernel.ident(data)


@pytest.mark.parametrize(
    "data",
    [b"FreeBSD 1.1-A " + b"a " * 3_000_000, (b"FreeBSD 1.1-A #1 a" + b": " * 240 + b"\0") * 12_000, b"FreeBSD 1.1-" * 500_000],
)
def test_hostile_texts_take_no_time(data: bytes) -> None:
    begun = time.process_time()
    assert kernelfile.banner(data) == ""
    assert time.process_time() - begun < 5
