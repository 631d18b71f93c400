# SPDX-License-Identifier: BSD-2-Clause
"""Oracles and their inputs: balloons, mechanisms of a reboot, output of pygrub and of its fuzzer, volumes, a kernel with another ident."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.dom0 import pygrub_fuzz
from harness.errors import CannotJudge, UsageError
from harness.guests import partitions, replace_kernel
from harness.guests.os import freebsd_kernel
from harness.guests.partitions import Slice
from harness.oracles import ballooning
from harness.oracles.ballooning import MIB, Sample, freebsd_floor, imbalance, missed
from harness.oracles.finding import precondition
from harness.oracles.mechanism import NEW, OLD, OTHER, RebootEvidence, mechanism
from harness.plugin.case_context import CaseContext
from harness.plugin.outcome import classify
from harness.transport.local import LocalTransport
from harness.xen import dom0_program, pygrub
from harness.xen.pygrub import FuzzReport
from suites.pygrub import test_untrusted

# -- balloon ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "floor"),
    [(64, 40), (127, 71.5), (128, 72), (256, 104), (511, 167.75), (512, 168), (1024, 232), (2048, 360), (4096, 424), (8192, 552)],
)
def test_freebsd_floor(memory: int, floor: float) -> None:
    assert freebsd_floor(memory * MIB) == floor * MIB


def sample(current: int, domain: int) -> Sample:
    return Sample(current * MIB, current * MIB, current * MIB, 10 * MIB, 0, domain * MIB, current * MIB)


def test_the_counts_of_guest_and_xen_must_change_equally() -> None:
    assert imbalance(sample(512, 513), sample(300, 301)) == ()
    assert imbalance(sample(512, 513), sample(300, 303)) == ()
    (line,) = imbalance(sample(512, 513), sample(300, 513))
    assert line == "the guest's count changed by -212.0 MiB, Xen's count of the domain's memory by +0.0 MiB"


def test_a_target_is_reached_or_missed() -> None:
    assert missed(sample(300, 301), 300 * MIB + ballooning.SLACK) == ()
    (line,) = missed(sample(512, 513), 300 * MIB)
    assert "is at 512.0 MiB instead of 300.0 MiB" in line


# -- mechanisms of a reboot --------------------------------------------------------------------------------------------------

GOOD = RebootEvidence(came_back=True, bootloader_ran=True, running=NEW, in_guest=NEW)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, "ok: the bootloader ran again"),
        ({"bootloader_ran": False}, "ok: the new kernel runs"),
        ({"bootloader_ran": False, "running": OLD}, "1: the bootloader did not run again; the old"),
        ({"bootloader_ran": False, "came_back": False, "running": ""}, "1: the bootloader did not run again; the domain"),
        ({"running": OLD, "extracted": OLD}, "2: the bootloader read stale blocks of dom0's page cache: the old"),
        ({"running": OLD, "extracted": OTHER}, "2: the bootloader read stale blocks of dom0's page cache: a mix"),
        ({"running": OLD, "extracted": NEW}, "2: the bootloader read stale blocks of dom0's page cache at the reboot"),
        ({"running": OLD, "extracted": OLD, "in_guest": OLD}, "3: the guest had not flushed its writes: the disk has the old"),
        (
            {"came_back": False, "running": "", "in_guest": "", "extracted": OTHER},
            "3: the guest had not flushed its writes: the disk has neither",
        ),
        ({"came_back": False, "running": "", "in_guest": "", "extracted": NEW, "died": "panic: x"}, "4: .*: panic: x"),
        ({"came_back": False, "running": "", "in_guest": "", "extracted": NEW, "cold": NEW}, "5: the toolstack"),
        ({"running": OLD, "in_guest": "", "extracted": ""}, "unexplained"),
    ],
)
def test_mechanism(changes: dict[str, object], begins: str) -> None:
    import re

    assert re.match(begins, mechanism(replace(GOOD, **changes)))  # type: ignore[arg-type]


# xl's log of a guest in domain 3 whose reboot ended with an invalid kernel.
REFUSED_LOG = """\
Waiting for domain fxh-a (domid 3) to die [pid 525]
Domain 3 has shut down, reason code 1 0x1
Action for shutdown reason code 1 is restart
libxl: warning: libxl_domain.c:2605:retrieve_domain_configuration_end: Domain 3:Device present in JSON but not in xenstore, ignored
Domain 3 needs to be cleaned up: destroying the domain
Done. Rebooting now
xc: error: panic: xg_dom_core.c:689: xc_dom_find_loader: no loader found: Invalid kernel
libxl: error: libxl_create.c:1695:domcreate_rebuild_done: Domain 4:cannot (re-)build domain: -3
"""


@pytest.mark.parametrize(
    ("present", "log", "bootloader_logs", "ran"),
    [
        (4, "", {3, 4}, True),
        (4, "", {3}, False),
        (3, "", {3}, False),
        (None, REFUSED_LOG, {3, 4}, True),
        (None, REFUSED_LOG, {3}, False),
        (None, "", {3, 4}, False),  # domain 4 is another guest's
    ],
)
def test_the_bootloader_ran_also_for_a_domain_that_was_not_built(
    present: int | None, log: str, bootloader_logs: set[int], ran: bool
) -> None:
    def ls(argv: list[str], *, check: bool) -> SimpleNamespace:
        return SimpleNamespace(text="".join(f"{path}\n" for path in argv[1:] if int(path.split(".")[1]) in bootloader_logs))

    host = SimpleNamespace(transport=SimpleNamespace(run=ls), toolstack=SimpleNamespace(log=lambda name: log))
    row = None if present is None else SimpleNamespace(domid=present)
    guest = SimpleNamespace(host=host, name="fxh-a", domid=3, state=lambda: row)
    assert replace_kernel.bootloader_ran(guest, 3) is ran  # type: ignore[arg-type]


# -- pygrub -----------------------------------------------------------------------------------------------------------


def test_pygrub_formats() -> None:
    assert pygrub.parse_simple0(b"kernel /k\0ramdisk /r\0args a='b c' d=\"e\"\0\0") == ("/k", "/r", "a='b c' d=\"e\"")
    assert pygrub.parse_simple(b"kernel /k\nargs a=1\n\n") == ("/k", "", "a=1")
    assert pygrub.parse_sxp(b"linux (kernel '/k')(ramdisk '/r')(args 'a=\\'b c\\' d=\"e\"')") == ("/k", "/r", "a='b c' d=\"e\"")
    assert pygrub.parse_sxp(b'linux (kernel "/k")(args "it\'s")') == ("/k", "", "it's")
    assert pygrub.parse_simple0(b"") == ("", "", None)


def test_a_seed_repeats_its_mutation_and_a_menu_keeps_its_length() -> None:
    menu = b"title x\nkernel /boot/kernel/kernel\n" * 4
    one, two = (pygrub_fuzz.mutate_menu(random.Random(7), menu) for _ in range(2))
    assert one == two != menu
    assert all(len(pygrub_fuzz.mutate_menu(random.Random(n), menu)) == len(menu) for n in range(200))
    base = bytes(300_000)
    assert pygrub_fuzz.mutate_image(random.Random(3), bytearray(base)) == pygrub_fuzz.mutate_image(
        random.Random(3), bytearray(base)
    )
    assert {len(pygrub_fuzz.mutate_image(random.Random(n), bytearray(base))) < len(base) for n in range(60)} == {True, False}


# -- volumes ----------------------------------------------------------------------------------------------------------


def test_mbr_and_gpt_contain_their_partitions() -> None:
    disk = partitions.mbr([Slice(0xA5, b"one" * 1000), Slice(0x83, b"two", active=True)])
    assert disk[510:512] == b"\x55\xaa"
    flags, kinds, starts = zip(
        *((e[0], e[4], struct.unpack("<I", e[8:12])[0]) for e in (disk[446:462], disk[462:478])), strict=True
    )
    assert (flags, kinds) == ((0, 0x80), (0xA5, 0x83))
    assert disk[starts[0] * 512 :].startswith(b"oneone")
    assert disk[starts[1] * 512 :].startswith(b"two")

    disk = partitions.gpt([(partitions.FREEBSD_BOOT, b"boot"), (partitions.FREEBSD_UFS, b"root")])
    assert (disk[450], disk[512:520]) == (0xEE, b"EFI PART")
    first, second = (struct.unpack("<Q", disk[1024 + 128 * n + 32 : 1024 + 128 * n + 40])[0] for n in (0, 1))
    assert (disk[first * 512 :][:4], disk[second * 512 :][:4]) == (b"boot", b"root")


def test_the_second_kernel_differs_only_in_its_ident() -> None:
    kernel = (
        b"\x7fELF"
        + bytes(64)
        + b"@(#)FreeBSD 13.2-RELEASE XENA\0"
        + b"FreeBSD 13.2-RELEASE XENA\n\0"
        + bytes(9)
        + b"\0XENA\0"
        + b"ident\tXENA\n"
    )
    twin, ident = freebsd_kernel.renamed(kernel)
    assert (ident, freebsd_kernel.ident(twin)) == ("XENB", "XENB")
    assert len(twin) == len(kernel)
    assert sum(a != b for a, b in zip(kernel, twin, strict=True)) == 3
    again, back = freebsd_kernel.renamed(twin)
    assert (back, again) == ("XENA", kernel)
    with pytest.raises(UsageError):
        freebsd_kernel.renamed(b"\x7fELF no kernel")


STAND_IN = """
import os, signal, sys, time
data = open(sys.argv[-1], "rb").read()
if sum(data) % 4 == 0:
    sys.exit(0)
if sum(data) % 4 == 1:
    raise RuntimeError("no")
if sum(data) % 4 == 2:
    os.kill(os.getpid(), signal.SIGSEGV)
os._exit(77)
"""


def test_the_fuzzer_distinguishes_a_crash_from_an_error(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "pygrub").write_text(STAND_IN)
    (tmp_path / "image").write_bytes(bytes(range(256)) * 1200)
    argv = [sys.executable, str(Path(pygrub_fuzz.__file__)), str(tmp_path / "image"), "image", "0", "80"]
    done = subprocess.run(
        [*argv, str(tmp_path / "scratch"), "0", "0", str(tmp_path / "pygrub")], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    counts = lines.pop()["counts"]
    assert set(counts) == {"0", "1", "signal 11", "77"}
    assert sum(counts.values()) == 80
    assert len(lines) == counts["signal 11"] + counts["77"]


STRAYING = """
import os, shutil, sys
out = sys.argv[3].partition("=")[2]
try:
    os.mkdir(out)
except FileExistsError:
    pass
open(out + "/kernel", "w").close()
open(os.devnull, "w").close()
open("image").close()
open("../other", "w").close()
os.mkdir(os.path.realpath("made"))
os.rename(out + "/kernel", "moved")
shutil.rmtree("made")
"""


def test_the_fuzzer_names_files_that_pygrub_changes(tmp_path: Path) -> None:
    """Of pygrub alone: a file that another program writes meanwhile does not count."""
    (tmp_path / "pygrub").write_text(STRAYING)
    (tmp_path / "image").write_bytes(bytes(500))
    (tmp_path / "scratch").mkdir()
    words = [str(tmp_path / "image"), "menu", "0", "2", str(tmp_path / "scratch"), "0", "400", str(tmp_path / "pygrub")]
    lines = dom0_program.run(LocalTransport(), pygrub_fuzz, *words, deadline=Deadline(60)).text.splitlines()
    *changed, last = map(json.loads, lines)
    assert last["counts"] == {"0": 2}
    assert changed == [{"wrote": str(tmp_path / name)} for name in ("other", "scratch/made", "scratch/moved")]


def test_seeds_are_not_in_the_texts_of_a_report(tmp_path: Path) -> None:
    """Reports and the history contain the number of failures. Only the run's evidence contains the seeds."""

    class Dom0:
        put = staticmethod(lambda *_: None)

        def run(self, argv: list[str], *_: object, **__: object) -> Any:
            lines = [
                '{"seed": 4711, "how": "hang", "seconds": 2.0}',
                '{"wrote": "/tmp/x"}',
                '{"counts": {"0": 1, "hang": 1}, "slowest": 2.0}',
            ]
            return SimpleNamespace(text="\n".join(lines), stderr=b"")

    report = pygrub.fuzz(Dom0(), "/run/x", tmp_path, "image", 4710, 2)  # type: ignore[arg-type]
    assert (report.odd, report.seeds, report.strays) == (("a mutated image: hang after 2.0 s",), (4711,), ("/tmp/x",))


def test_each_run_draws_new_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(test_untrusted.SEED_VARIABLE, raising=False)
    drawn = []

    def fuzz(_t: object, _d: str, _i: Path, kind: str, first: int, count: int, _m: object) -> FuzzReport:
        assert json.loads((tmp_path / "fuzz.json").read_text()) == {"kind": kind, "first": first, "count": count}, (
            "the evidence must have the seeds before pygrub runs"
        )
        drawn.append(first)
        return FuzzReport(count, 2.0, {"0": count - 1, "hang": 1}, ("a mutated image: hang after 2.0 s",), (first + 1,), ())

    monkeypatch.setattr(pygrub, "fuzz", fuzz)
    host = SimpleNamespace(directory="/var/lib/fxh/run-ab", transport=None)
    menu = test_untrusted.MENU.encode().ljust(400, b"\n")

    def go() -> str:
        case = CaseContext(tmp_path)
        with pytest.raises(AssertionError, match="hang after") as failed:
            test_untrusted.test_survives(host, lambda _: bytes(100) + menu, tmp_path, case, "image", 200)  # type: ignore[arg-type, return-value]
        assert case.metrics == {}, "metrics must not contain values that each run draws"
        evidence = json.loads((tmp_path / "fuzz.json").read_text())
        assert evidence["odd"] == {str(drawn[-1] + 1): "a mutated image: hang after 2.0 s"}
        return str(failed.value)

    said = go() + go()
    assert drawn[0] != drawn[1]
    assert not any(str(seed) in said for seed in (*drawn, *(seed + 1 for seed in drawn)))
    monkeypatch.setenv(test_untrusted.SEED_VARIABLE, "12")
    go()
    assert drawn[2] == 12


def test_a_failed_precondition_does_not_blame_the_guest() -> None:
    precondition(1, "the capture is empty")
    with pytest.raises(CannotJudge, match="the capture is empty, so this case cannot judge") as caught:
        precondition(0, "the capture is empty")
    assert classify(caught.value).outcome == "infrastructure"


def test_a_wrong_seed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(test_untrusted.SEED_VARIABLE, "0x1f")
    with pytest.raises(UsageError, match=r"FXH_FUZZ_SEED='0x1f' is no number"):
        test_untrusted.first_seed()
    monkeypatch.setenv(test_untrusted.SEED_VARIABLE, "31")
    assert test_untrusted.first_seed() == 31
