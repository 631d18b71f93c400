# SPDX-License-Identifier: BSD-2-Clause
"""``fxh run --pause`` as a person uses it: a terminal, the control guest in a lab, and gdb."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from harness import trace
from harness.deadline import Deadline
from harness.history.store import FILE, History
from harness.lab import factory, registry
from harness.lab.factory import LabSpec
from harness.lab.heartbeat import SILENCE
from harness.lab.host import LabHost
from harness.lab.lab import Lab
from harness.lab.store import XEN_SYMBOLS
from harness.xen import elfsymbols
from tests.conftest import planted_suite

FXH = ["-c", "import sys; sys.argv[0] = 'fxh'; from harness.cli.main import main; main()"]
PAUSE, GDB = "pause> ", "(gdb) "
CASES = '''
"""Planted."""
def test_dies(guest):
    guest.session.start(guest.os.panic_command())
    guest.sh("sleep 60")

def test_after(guest):
    assert guest.sh("echo 1") == "1"
'''

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb: apt-get install gdb")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Any]]:
    spawned = []

    def start(program: str, *words: str) -> Any:
        # pexpect's own size would break the lines of the banner.
        child = pexpect.spawn(
            program, list(words), timeout=120, encoding="utf-8", dimensions=(40, 250), env={**os.environ, "TERM": "dumb"}
        )  # fmt: skip
        child.logfile_read = sys.stdout  # pytest shows it after a failure
        spawned.append(child)
        return child

    yield start
    for child in spawned:
        child.close(force=True)


def banner_address() -> int:
    """The virtual address of the text "Linux version" in the control guest's kernel, from the segments of its ELF file."""
    data = (factory.control(LabSpec()) / "vmlinux").read_bytes()
    begin, size, count = int.from_bytes(data[32:40], "little"), *(int.from_bytes(data[at : at + 2], "little") for at in (54, 56))
    place = re.search(rb"Linux version \d", data)
    assert place
    for number in range(count):
        header = data[begin + number * size :]
        offset, address, _, length = (int.from_bytes(header[at : at + 8], "little") for at in (8, 16, 24, 32))
        if header[:4] == b"\1\0\0\0" and offset <= place.start() < offset + length:
            return address + place.start() - offset
    raise AssertionError("no segment has the text")


def xen_schedule(image: Path) -> int:
    """The address of Xen's scheduler, to which the CPU of an idle lab comes each time that dom0 wakes. Linux has one of this name, too."""
    address = elfsymbols.address_of(elfsymbols.mapped(image / XEN_SYMBOLS), "schedule")
    assert address is not None
    return address


def ask(gdb: Any, command: str) -> str:
    """gdb's answer to a command."""
    gdb.sendline(command)
    gdb.expect_exact(command)
    gdb.expect_exact(GDB)
    return str(gdb.before)


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_console_dom0_and_both_stubs(kind: str, terminal: Callable[..., Any], tmp_path: Path) -> None:
    run = terminal(
        sys.executable, *FXH, "run", "boot", "-k", "runs_the_kernel", "--type", kind, "--reports", str(tmp_path / "reports"),
        "--pause", "runs_the_kernel_it_was_given",
    )  # fmt: skip
    run.expect(r"--- paused before the call of suites/boot/test_boot.py::test_runs_the_kernel_it_was_given", timeout=900)
    run.expect(r"or: (gdb -q [^\r\n]*-ex 'target remote (\S+/lab-\w+/gdb)')")
    command, stub = shlex.split(run.match[1]), run.match[2]
    run.expect_exact(PAUSE)

    run.sendline("console")
    run.expect_exact("fxh# ")
    run.send("uname -s\r")
    run.expect_exact("uname -s\r\n")
    run.expect_exact("Linux")
    run.send("\x1d")
    run.expect_exact(PAUSE)

    run.sendline("dom0")
    run.expect_exact("dom0 lab# ")
    run.send("xl list\r")
    run.expect(r"Domain-0 .*fxh-warm-\w+ ")
    run.send("exit\r")
    run.expect_exact(PAUSE)

    run.sendline("gdb guest")
    run.expect_exact(GDB)
    rip = re.search(r"= (0xffffffff8\w+)", ask(run, "p/x $rip"))
    assert rip, "an idle Linux kernel is in its own code"
    address = banner_address()
    assert "Linux version 6." in ask(run, f"x/s {address:#x}")
    assert "vCPU 0" in ask(run, "info threads")
    run.sendline("detach")
    run.expect_exact(GDB)
    run.sendline("quit")
    run.expect_exact(PAUSE)

    # QEMU's stub stops in the guest at a breakpoint: there, where it sleeps. Its console wakes it.
    gdb = terminal(*command)
    gdb.expect_exact(GDB)
    ask(gdb, "set confirm off")
    assert " in section .text" in ask(gdb, "info symbol idle_loop"), "the hypervisor has its symbols"
    # The CPU may be anywhere now.
    record = registry.read(Path(stub).parent.name)
    assert record is not None
    ask(gdb, f"hbreak *{xen_schedule(record.image_path):#x}")
    gdb.sendline("continue")
    gdb.expect(r"Breakpoint \d+, .*" + re.escape(GDB))
    assert "= 0xffff82d0" in ask(gdb, "p/x $rip"), "Xen's scheduler is in Xen"
    ask(gdb, "delete")
    ask(gdb, f"hbreak *{rip[1]}")
    gdb.sendline("continue")
    gdb.expect_exact("Continuing")
    run.send("\x04")
    run.expect_exact("a debugger is still attached")
    run.expect_exact(PAUSE)
    run.sendline("console")
    gdb.expect(r"Breakpoint \d+, .*" + re.escape(GDB))
    # Longer than a lab may be silent otherwise.
    assert not pexpect.run("sleep 10")
    assert f"= {rip[1]}" in ask(gdb, "p/x $rip")
    seen = "Linux version 6." if kind == "pv" else "Cannot access memory"
    assert seen in ask(gdb, f"x/s {address:#x}")
    ask(gdb, "delete")
    ask(gdb, "detach")
    gdb.sendline("quit")
    gdb.expect(pexpect.EOF)

    run.expect_exact("fxh# ")
    run.send("uname -s\r")
    run.expect_exact("Linux")
    run.send("\x1d")
    run.expect_exact(PAUSE)
    run.send("\x04")
    run.expect_exact("1 case had a pause for a person and is not judged")
    run.expect(pexpect.EOF)
    run.close()
    assert run.exitstatus == 0, "the case passes afterwards"

    (directory,) = (tmp_path / "reports" / "latest" / "cases").iterdir()
    case = json.loads((directory / "case.json").read_text())
    assert (case["outcome"], case["paused"]) == ("passed", "before-call")
    assert case["seconds"] < 60, "without the pause"
    typed = {(one.where.partition("-")[0], one.what) for one in trace.read(directory / trace.FILE) if one.kind == trace.TYPED}
    assert {("fxh", "uname -s"), ("dom0", "xl list")} <= typed, typed
    assert b"uname -s" in next(directory.glob("*.console.log")).read_bytes()
    assert not History(tmp_path / "reports" / FILE).results()
    assert not [name for name in registry.names() if f"/{name}/" in stub], "the lab is gone"
    assert not Path(stub).exists()


def test_a_dead_guest_leaves_dom0_and_the_next_case_is_clean(terminal: Callable[..., Any], tmp_path: Path) -> None:
    with planted_suite(CASES) as suite:
        run = terminal(
            sys.executable, *FXH, "run", str(suite), "--type", "pv", "--reports", str(tmp_path / "reports"), "--pause", "dies:on-failure"
        )  # fmt: skip
        run.expect_exact("--- paused after the failure of planted/test_planted.py::test_dies", timeout=900)
        run.expect(r"console 1: fxh-warm-\w+ \(domain \d+\) is (dead|gone): linux-panic: Kernel panic")
        run.expect_exact(PAUSE)
        run.sendline("dom0")
        run.expect_exact("dom0 lab# ")
        run.send("xl list | head -n 1\r")
        run.expect("Name +ID")
        run.expect_exact("dom0 lab# ")  # xl would take the Ctrl-D
        run.send("\x04")
        run.expect_exact(PAUSE)
        run.send("\x04")
        run.expect(pexpect.EOF)
        run.close()
    assert run.exitstatus == 0, "a paused case does not decide the exit status, and the other case passed"
    cases = {
        case["case"]: case for case in (json.loads(file.read_text()) for file in tmp_path.glob("reports/latest/cases/*/case.json"))
    }
    assert {name: (case["outcome"], case["paused"]) for name, case in cases.items()} == {
        "test_dies": ("failed", "on-failure"), "test_after": ("passed", ""),
    }  # fmt: skip
    assert [row.seen.case.partition("::")[2] for row in History(tmp_path / "reports" / FILE).results()] == ["test_after"]
    files = set(cases["test_dies"]["files"])
    assert {"xl-dmesg.log", "xenstore.txt", "trace.jsonl"} <= files, "the evidence is gathered before the pause"


def test_a_killed_debugger_leaves_a_running_lab(lab: Lab, host: LabHost) -> None:
    with lab.debugging() as stub:
        assert not stub.attached()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(stub.path))
            # A breakpoint in Xen's scheduler, which stops the lab again and again.
            client.sendall(b"+$?#3f")
            assert client.recv(100)
            assert stub.attached()
            text = f"Z0,{xen_schedule(lab.image.directory):x},1".encode()
            client.sendall(b"+$" + text + b"#%02x" % (sum(text) & 255))
            assert client.recv(100)
            text = b"c"
            client.sendall(b"+$c#63")
            time.sleep(SILENCE + 2)  # a lab that is silent for this long counts as dead
        assert lab.machine.running().command("query-status")["status"] != "running"
    assert not lab.dead
    assert not stub.path.exists()
    assert host.transport.run(["xl", "list"], Deadline(60)).text.startswith("Name")
    time.sleep(2)
    assert lab.machine.running().command("query-status")["status"] == "running"
