# SPDX-License-Identifier: BSD-2-Clause
"""One lab for all tests, which is restored before each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jump_host import Gate
from remote_host import Remote, remote_host

from tests.conftest import planted_suite

CASES = '''
"""Cases for the fault tests. The test injects its fault while a case runs."""
import os, time
from pathlib import Path

MARKS = Path(os.environ["FXH_TEST"])

def test_a_first(guest):
    assert guest.sh("echo 1") == "1"

def test_b_fault(guest):
    """Report that it runs, and continue for a while."""
    (MARKS / "running").touch()
    for n in range(12):
        assert guest.sh(f"sleep 1; echo {n}") == str(n)

def test_c_last(guest):
    assert guest.sh("echo 1") == "1"

def test_d_flood(guest):
    end = time.monotonic() + float(os.environ.get("FXH_TEST_FLOOD", "60"))
    total = 0
    while time.monotonic() < end:
        out = guest.sh(guest.os.flood_command(2000, 100), 300).splitlines()
        assert out == [f"{n:0100}" for n in range(1, 2001)], "lines were lost"
        total += 2000
    print("lines", total)

def test_e_many(new_guest, host):
    for n in range(int(os.environ.get("FXH_TEST_GUESTS", "10"))):
        guest = new_guest()
        guest.create()
        guest.start()
        guest.destroy()

def test_g_dies_at_boot(booted):
    booted(variables=(("fxh.panic", "init"),))

def test_h_leaks(host):
    host.transport.open(["python3", "-c", "import sys, time; sys.argv[0] = 'pygrub'; time.sleep(60)", "pygrub"])

def test_i_neighbour(guest):
    assert guest.sh("echo 1") == "1"

def test_k_bootloader(booted):
    """Wait until FXH_TEST_TOGETHER workers have reached this point."""
    (MARKS / f"grub-{os.getpid()}").touch()
    end = time.monotonic() + 120
    while len(list(MARKS.glob("grub-*"))) < int(os.environ.get("FXH_TEST_TOGETHER", "1")) and time.monotonic() < end:
        time.sleep(0.1)
    guest = booted(bootloader="pygrub")
    assert "fxh.menu=one" in guest.sh("cat /proc/cmdline")

def test_l_loops(new_guest):
    """xl restarts this guest for ever."""
    guest = new_guest(on_crash="restart", memory=96, vifs=0, variables=(("fxh.panic", "init"),)).create()
    guest.console_will_end()
    with guest.console.expecting_death():
        guest.start()
        while len(guest.shutdowns()) < 1:
            time.sleep(1)
        # Between two domains, or while xl builds one.
        time.sleep(float(os.environ.get("FXH_TEST_LATER", "0")))
        (MARKS / "running").touch()
        time.sleep(120)

def test_f_panics(guest):
    guest.session.start(guest.os.panic_command())
    guest.sh("sleep 60")
'''


@pytest.fixture(scope="session")
def _remote() -> Iterator[Remote]:
    with remote_host("faults") as remote:
        yield remote


@pytest.fixture
def remote(_remote: Remote) -> Remote:
    """An idle host, reached over links."""
    _remote.reset()
    return _remote


@pytest.fixture
def suite() -> Iterator[Path]:
    with planted_suite(CASES) as file:
        yield file


@pytest.fixture
def gate(remote: Remote) -> Iterator[Gate]:
    with tempfile.TemporaryDirectory(prefix="fxh-gate-") as directory:
        gate = Gate(remote, Path(directory))
        yield gate
        gate.close()
