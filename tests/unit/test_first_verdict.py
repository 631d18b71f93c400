# SPDX-License-Identifier: BSD-2-Clause
"""A fresh machine: progress of long builds, and cases that do not wait for the control guest's kernel."""

from __future__ import annotations

import gzip
import logging
import lzma
import re
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import matrix
from harness.guests.os.linux import from_directory
from harness.images import kernelfile
from harness.lab import progress, standby
from harness.lab.progress import Done, Expected, Lines, Objects, Steps
from harness.plugin import guest_sources, selection
from harness.plugin.cells import Cell
from harness.plugin.guest_sources import GuestSources
from harness.plugin.options import Options

ELF = b"\x7fELF" + bytes(200)
CELL = Cell("control", "pv", "xen-4.20", "4.20")

# -- progress ---------------------------------------------------------------------------------------------------------


def test_lines_of_a_growing_file(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "log")
    assert lines.new() == []
    with (tmp_path / "log").open("w") as file:
        file.write("one\ntw")
        file.flush()
        assert lines.new() == ["one"]
        file.write("o\n")
        file.flush()
        assert lines.new() == ["two"]
    assert lines.new() == []


def test_steps_of_mmdebstrap(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("$ cc ...\nI: running apt-get update...\nI: downloading packages with apt...\n")
    steps = Steps(Lines(log), {"running apt-get": 0.1, "downloading": 0.2, "installing": 0.6})
    assert steps() == Done(0.2, "downloading packages with apt")
    with log.open("a") as file:
        file.write("I: installing remaining packages inside the chroot...\nW: odd\nI: downloading again\n")
    assert steps() == Done(0.6, "installing remaining packages inside the chroot")


def test_objects_of_a_kernel(tmp_path: Path) -> None:
    log = tmp_path / "log"
    objects = Objects(Lines(log), 4)
    assert objects() == Done(0.0, "fetching and unpacking the source")
    log.write_text("  HOSTCC  scripts/basic/fixdep\n  SYNC    include/config/auto.conf\n  CC      init/main.o\n")
    assert objects() == Done(0.5, "2 of 4 files compiled")
    with log.open("a") as file:
        file.write("  AS      arch/x86/entry/entry.o\n  CC      a.o\n  CC      b.o\n")
    # More than recorded: never done before the end.
    assert objects() == Done(5 / 6, "5 of 5 files compiled")


def test_an_expected_time_is_never_all(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Expected(10)
    begun = expected._begun
    found = []
    for after in (0.0, 5.0, 8.0, 20.0, 1000.0):
        monkeypatch.setattr(progress.time, "monotonic", lambda after=after: begun + after)
        found.append(round(expected().share, 3))
    assert found == [0.0, 0.5, 0.8, 0.92, 0.998]


def test_a_long_step_says_what_is_done(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    said = threading.Event()
    monkeypatch.setattr(progress.Expected, "__call__", lambda self: said.set() or Done(1.0, "almost"))
    with caplog.at_level(logging.INFO), progress.shown(logging.getLogger("fxh.lab.build"), "first boot", Expected(1)):
        assert said.wait(10)
    assert re.fullmatch(r"first boot: 99 % done, almost, \d+ s", caplog.messages[0])
    count = len(caplog.messages)
    assert not said.clear()
    assert not said.wait(0.05)
    assert len(caplog.messages) == count


# -- dom0's kernel for the control guest ------------------------------------------------------------------------------


def bzimage(payload: bytes) -> bytes:
    """Linux's boot protocol: two sectors of setup, and the payload 16 bytes after them."""
    head = bytearray(3 * 512)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"the rest"


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (bzimage(lzma.compress(ELF) + struct.pack("<I", len(ELF))), ELF),
        (bzimage(gzip.compress(ELF)), ELF),
        (bzimage(lzma.compress(b"no kernel")), b""),
        (bzimage(b"\xfd7zXZ\0 damaged"), b""),
        (bzimage(b"\x28\xb5\x2f\xfd zstd"), b""),
        (ELF + bytes(2000), b""),
    ],
)
def test_the_elf_file_in_a_bzimage(image: bytes, found: bytes) -> None:
    assert kernelfile.linux_elf(image) == found


def test_the_control_guest_with_dom0s_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    lab = tmp_path / "lab"
    (lab / "control").mkdir(parents=True)
    (lab / "vmlinuz").write_bytes(ELF)
    for name in ("initrd.cpio", standby.MODULES):
        (lab / "control" / name).write_bytes(name.encode())
    image = SimpleNamespace(directory=lab, key="xen-test")
    made = standby.obtain(image)  # type: ignore[arg-type]
    assert (made / "vmlinux").read_bytes() == ELF
    assert (made / "initrd.cpio").read_bytes() == gzip.decompress((made / "initrd").read_bytes()) == b"initrd.cpiomodules.cpio"
    assert from_directory(made).unpacked is not None


# -- which cases wait -------------------------------------------------------------------------------------------------


class Kernels:
    """The builds of a lab's factory."""

    def __init__(self, tmp_path: Path) -> None:
        self.available, self.begun = False, 0
        for name in ("own", "dom0"):
            (tmp_path / name).mkdir()
            for file in ("vmlinuz", "initrd"):
                (tmp_path / name / file).write_text(f"{name} {file}")
        self.own, self.dom0 = tmp_path / "own", tmp_path / "dom0"

    def begin(self, spec: object, *, control: bool) -> None:
        self.begun += control

    def wait(self, spec: object) -> Path:
        self.available = True
        return self.own


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    found = Kernels(tmp_path)
    monkeypatch.setattr(guest_sources.factory, "control", found.wait)
    monkeypatch.setattr(guest_sources.factory, "control_available", lambda _: found.available)
    monkeypatch.setattr(guest_sources.factory, "begin", found.begin)
    monkeypatch.setattr(guest_sources.factory, "control_with_dom0_kernel", lambda _: found.dom0)
    return found


def used(sources: GuestSources, *, any_kernel: bool) -> str:
    """The directory of the kernel that a case gets."""
    sources.begin_case(CELL, any_kernel=any_kernel)
    kernel = sources.source(CELL).kernel
    assert kernel is not None
    assert sources.source(CELL).kernel == kernel
    return kernel.parent.name


def test_only_marked_cases_run_with_dom0s_kernel_and_only_until_the_own_one_is_there(kernels: Kernels) -> None:
    sources = GuestSources(Options(guests=("control",), xens=("4.20",)))
    assert [used(sources, any_kernel=marked) for marked in (True, True, False, True)] == ["dom0", "dom0", "own", "own"]
    assert kernels.begun == 3
    assert not sources._standbys


def test_a_kernel_that_comes_while_cases_run_is_used_from_the_next_case_on(kernels: Kernels) -> None:
    sources = GuestSources(Options(guests=("control",), xens=("4.20",)))
    assert sources.begin_case(CELL, any_kernel=True) is None
    kernels.available = True
    standby_ = sources.source(CELL)
    assert standby_.kernel == kernels.dom0 / "vmlinuz"
    assert sources.begin_case(CELL, any_kernel=True) == standby_, "its checkpoint can go"
    assert sources.begin_case(CELL, any_kernel=True) is None
    assert sources.source(CELL).kernel == kernels.own / "vmlinuz"
    assert sources.source(CELL).key != standby_.key, "a checkpoint of one kernel must not serve the other"


def test_a_given_kernel_and_a_real_host_need_no_build_in_the_background(kernels: Kernels) -> None:
    for options in (Options(guests=("control",), control=kernels.own), Options(guests=("control",), host="dom0.example")):
        assert used(GuestSources(options), any_kernel=True) == "own"
        assert not guest_sources.waits(options)
    assert not kernels.begun
    kernels.available = False
    assert guest_sources.waits(Options(guests=("control", "freebsd"), xens=("4.20",)))
    assert not guest_sources.waits(Options(guests=("freebsd",), xens=("4.20",)))
    for guest, host in (("freebsd", ""), ("control", ""), ("control", "dom0.example")):
        guest_sources.begin_builds(Options(guests=(guest,), xens=("4.17", "4.20"), host=host))
    assert kernels.begun == 2


def test_a_list_of_the_cases_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Options] = []
    monkeypatch.setattr(guest_sources, "begin_builds", begun.append)
    assert matrix.collect({})[0]
    assert not begun


def test_cases_that_need_not_wait_come_first() -> None:
    def item(name: str, cell: Cell | None, *marks: str) -> SimpleNamespace:
        callspec = SimpleNamespace(params={"cell": cell})
        return SimpleNamespace(name=name, callspec=callspec, get_closest_marker=lambda mark: mark if mark in marks else None)

    tested = Cell("freebsd", "pv", "xen-4.20", "4.20")
    items = [
        item("a", CELL), item("b", tested, "any_kernel"), item("c", CELL, "any_kernel"), item("d", None), item("e", CELL, "any_kernel"),
    ]  # fmt: skip
    selection.begin_with_any_kernel(items)  # type: ignore[arg-type]
    assert [found.name for found in items] == ["c", "e", "a", "b", "d"]
