# SPDX-License-Identifier: BSD-2-Clause
"""C programs for a guest: their ABI, and the program that writes frames, in this machine's kernel."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import BuildError, CannotRun
from harness.guests import program
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from suites.netfront.test_page_boundaries import headers

WRITE_FRAME = Path(__file__).parents[2] / "suites/netfront/write_frame.c"


@pytest.mark.parametrize(("os_", "osabi"), [(FreeBSD, 9), (Linux, 0)])
def test_a_program_has_the_abi_of_its_guest(os_: type[FreeBSD] | type[Linux], osabi: int, tmp_path: Path) -> None:
    data = program.compiled(WRITE_FRAME, os_.elf_osabi, tmp_path)
    # gabi, "ELF Header": the magic, e_ident[EI_OSABI], ET_EXEC, EM_X86_64
    assert (data[:4], data[7], *struct.unpack("<HH", data[16:20])) == (b"\x7fELF", osabi, 2, 62)
    assert len(data) < 4096


def test_the_program_writes_a_frame_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "write-frame"
    path.write_bytes(program.compiled(WRITE_FRAME, Linux.elf_osabi, tmp_path))
    path.chmod(0o755)
    try:
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    except PermissionError:
        pytest.skip("needs root, for a packet socket")
    # IEEE 802: an EtherType for local experiments.
    frame = bytes(12) + b"\x88\xb5" + os.urandom(20000)
    with receiver:
        receiver.bind(("lo", 0x88B5))
        receiver.settimeout(10)
        done = subprocess.run([path], input=b"lo".ljust(16, b"\0") + frame, check=False, timeout=10)
        assert (done.returncode, receiver.recv(1 << 16)) == (0, frame)


def test_the_program_ends_with_the_errno_of_the_call_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "write-frame"
    path.write_bytes(program.compiled(WRITE_FRAME, Linux.elf_osabi, tmp_path))
    path.chmod(0o755)
    done = subprocess.run([path], input=b"nonexistent".ljust(16, b"\0") + bytes(60), check=False, timeout=10)
    assert done.returncode == (errno.ENODEV if os.geteuid() == 0 else errno.EPERM)


def test_a_program_that_does_not_compile_is_an_error_with_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(BuildError, match=r"(?s)bad\.c:1:25: error: .nothing. undeclared"):
        program.compiled(tmp_path / "bad.c", 0, tmp_path)


def test_without_a_compiler_a_case_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match=r"write_frame\.c needs a C compiler, and there is no cc"):
        program.compiled(WRITE_FRAME, 0, tmp_path)


def test_with_a_compiler_for_another_machine_a_case_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(CannotRun, match="needs a C compiler for x86-64"):
        program.compiled(WRITE_FRAME, 0, tmp_path)


def test_the_headers_of_a_datagram_have_a_right_checksum() -> None:
    link = SimpleNamespace(
        here="198.18.77.1", there="198.18.77.2", index=0, device="xenbr0",
        dom0=lambda *argv: "00:16:3e:00:00:01\n", guest=SimpleNamespace(config=SimpleNamespace(vifs=[SimpleNamespace(mac="00:16:3e:00:00:02")])),
    )  # fmt: skip
    found = headers(link, "00:16:3e:00:00:01", 5002, 8972)  # type: ignore[arg-type]
    words = [int.from_bytes(found[at : at + 2], "big") for at in range(14, 34, 2)]
    assert (len(found), sum(words) % 0xFFFF, found[12:14], int.from_bytes(found[16:18], "big")) == (42, 0, b"\x08\x00", 9000)
    assert (found[:12].hex(), int.from_bytes(found[38:40], "big")) == ("00163e00000100163e000002", 8980)
