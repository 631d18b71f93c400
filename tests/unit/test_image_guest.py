# SPDX-License-Identifier: BSD-2-Clause
"""The domain configuration of an image's guest: booted directly, by pygrub, by a firmware."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from quiet_host import Host

from harness.errors import CannotRun, UsageError
from harness.guests.domain_config import build_domain_config
from harness.guests.os import freebsd_source
from harness.guests.os.freebsd import FreeBSD
from harness.guests.shape import Shape
from harness.guests.source import DiskImage, GuestSource
from harness.images import loader_conf_slot
from harness.plugin import cells


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskImage:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    path = tmp_path / "xvda.img"
    path.write_bytes(bytes(8192) + loader_conf_slot.text({}) + bytes(8192))
    return DiskImage(path, slot=8192)


KERNEL = Path("/k/kernel")


def freebsd(disk: DiskImage, version: str = "13.2", **changes: Any) -> GuestSource:
    guest_os = FreeBSD(version=version, types=("pvh", "hvm"))
    return GuestSource(f"freebsd-{version}", guest_os, KERNEL, disks=(disk,), root="xbd0p2", **changes)


def test_pvh_gets_kernel_and_variables_directly(disk: DiskImage) -> None:
    made = build_domain_config(Host(), freebsd(disk), Shape("pvh"), "x")  # type: ignore[arg-type]
    assert (made.kernel, made.bootloader, made.serial, made.disks[0].target) == ("/there/kernel", "", False, str(disk.path))
    assert "vfs.root.mountfrom=ufs:/dev/xbd0p2" in made.extra


def test_tcg_workarounds_apply_unless_the_case_turns_them_off(disk: DiskImage) -> None:
    def told(host: Host, shape: Shape) -> tuple[bool, bool]:
        text = build_domain_config(host, freebsd(disk), shape, "x").render()  # type: ignore[arg-type]
        return 'tsc_mode = "native"' in text, "hw.x2apic_enable=1" in text

    assert told(Host(), Shape("pvh")) == (True, True)
    assert told(Host(), Shape("pvh", spared=False)) == (False, False)
    assert told(Host(emulated=False), Shape("pvh")) == (False, False)


def test_pygrub_gets_only_variables_that_menu_lst_lacks(disk: DiskImage) -> None:
    given = freebsd(disk, bootloader="pygrub", own_variables=(("vfs.root.mountfrom", "ufs:/dev/xbd0p2"),))
    made = build_domain_config(Host(), given, Shape("pvh"), "x")  # type: ignore[arg-type]
    assert (made.kernel, made.bootloader) == ("", "pygrub")
    assert made.extra.startswith(",debug.trace_on_panic=1,")
    assert "mountfrom" not in made.extra


def test_hvm_gets_variables_through_its_loader(disk: DiskImage) -> None:
    before = disk.path.read_bytes()
    made = build_domain_config(Host(), freebsd(disk), Shape("hvm", variables=(("fxh.x", "1"),)), "x")  # type: ignore[arg-type]
    assert (made.kernel, made.extra, made.serial, made.boot) == ("", "", True, "c")
    text = Path(made.disks[0].target).read_bytes()[8192:]
    assert text.startswith(b'# fxh: variables of this run\nvfs.root.mountfrom="ufs:/dev/xbd0p2"\n')
    assert b'\nfxh.x="1"\n' in text
    assert disk.path.read_bytes() == before
    assert 'hdtype = "ahci"' in made.render()
    assert "type=vif" in made.render()
    plain = build_domain_config(Host(emulated=False), freebsd(disk), Shape("hvm"), "x")  # type: ignore[arg-type]
    assert "ahci" not in plain.render()
    assert "type=vif" not in plain.render()


def test_hvm_of_a_disk_without_a_slot_takes_no_variables(disk: DiskImage) -> None:
    given = freebsd(DiskImage(disk.path))
    assert build_domain_config(Host(), given, Shape("hvm"), "x").disks[0].target == str(disk.path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"takes its kernel variables from its own loader\.conf"):
        build_domain_config(Host(), given, Shape("hvm", variables=(("fxh.x", "1"),)), "x")  # type: ignore[arg-type]


def test_the_kernel_of_an_emulated_hvm_guest_uses_the_pv_console(disk: DiskImage) -> None:
    def told(host: Host, source: GuestSource, shape: Shape) -> tuple[bool, bool, bool]:
        made = build_domain_config(host, source, shape, "x")  # type: ignore[arg-type]
        text = Path(made.disks[0].target).read_bytes() + made.extra.encode()
        return made.pv_console, made.serial_console, b"hw.uart.console" in text

    current = freebsd(disk, "15.1")
    assert told(Host(), current, Shape("hvm")) == (True, False, True)
    assert told(Host(), current, Shape("hvm", spared=False)) == (False, True, False)
    assert told(Host(emulated=False), current, Shape("hvm")) == (False, True, False)
    assert told(Host(), current, Shape("pvh")) == (False, False, False)
    # A disk without a place for variables: its own loader.conf decides.
    assert told(Host(), freebsd(DiskImage(disk.path), "15.1"), Shape("hvm")) == (False, True, False)


@pytest.mark.parametrize("version", ["13.2", "14.2"])
def test_an_older_kernel_chooses_its_consoles_before_it_knows_of_xen(disk: DiskImage, version: str) -> None:
    """With the PV console alone 14.2 printed nothing."""
    made = build_domain_config(Host(), freebsd(disk, version), Shape("hvm"), "x")  # type: ignore[arg-type]
    assert (made.pv_console, made.serial_console) == (False, True)
    assert b"hw.uart.console" not in Path(made.disks[0].target).read_bytes()


def test_an_emulated_network_card_has_no_rom(disk: DiskImage) -> None:
    text = build_domain_config(Host(), freebsd(disk), Shape("hvm", emulated_nic="e1000"), "x").render()  # type: ignore[arg-type]
    assert "model=e1000" in text
    assert "type=vif" not in text
    assert 'device_model_args_hvm = ["-global", "e1000.romfile="]' in text


def test_pygrub_is_refused_for_a_disk_it_cannot_read() -> None:
    image: Any = SimpleNamespace(name="i", pygrub=False, data={"layout": "ufs2"})
    with pytest.raises(UsageError, match=r"i: pygrub cannot read its first disk \(layout ufs2\)"):
        freebsd_source.from_image(image, bootloader="pygrub")


# -- 32-bit PV: FreeBSD 8 to 10 ---------------------------------------------------------------------------------------


@pytest.fixture
def old(disk: DiskImage, tmp_path: Path) -> GuestSource:
    """A source with a 32-bit kernel; the configuration reads no other property of it."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF\x01\x01\x01" + bytes(57))
    return GuestSource("freebsd-10.4", FreeBSD(version="10.4", types=("pv",)), kernel, disks=(disk,), root="xbd0")


@pytest.mark.parametrize(
    ("able", "shape", "refused", "hint"),
    [
        (
            "pv pvh",
            Shape("pv"),
            r"Xen 4\.20 of h runs none: its xen_caps lacks xen-3\.0-x86_32p",
            "^use a Xen built with CONFIG_PV32=y",
        ),
        ("pv pvh pvshim", Shape("pv"), "xen_caps lacks", r"xen\.gz; or --pvshim, under which FreeBSD 10\.4 panics"),
        ("pv pv32", Shape("pv", vcpus=2), "as 32-bit PV with 2 vCPUs", "choose one vCPU: with more it hangs"),
        ("pvh pvshim", Shape("pvshim", vcpus=2), "as 32-bit PV with 2 vCPUs", "choose one vCPU: with more it hangs"),
        ("pv pvh", Shape("pvshim"), "h, Xen 4.20: no xen-shim", "Debian: xen-utils"),
        ("pv", Shape("pvshim"), "h, Xen 4.20: it runs no PVH guests, which the PV shim needs", "VT-x or SVM"),
    ],
)
def test_refused_guest_types(old: GuestSource, able: str, shape: Shape, refused: str, hint: str) -> None:
    with pytest.raises(CannotRun, match=refused) as caught:
        build_domain_config(Host(capabilities=frozenset(able.split())), old, shape, "x")  # type: ignore[arg-type]
    assert re.search(hint, caught.value.hint)


def test_an_hvm_guest_has_no_bootloader_in_dom0(disk: DiskImage) -> None:
    able = GuestSource("freebsd-13.2", FreeBSD(version="13.2", types=("pvh", "hvm")), None, disks=(disk,), root="xbd0p2")
    with pytest.raises(CannotRun, match=r"freebsd-13\.2 as HVM by pygrub: an HVM guest's own loader reads its disk"):
        build_domain_config(Host(capabilities=frozenset({"hvm"})), able, Shape("hvm", bootloader="pygrub"), "x")  # type: ignore[arg-type]


def test_a_32_bit_pv_kernel_where_xen_runs_it(old: GuestSource) -> None:
    made = build_domain_config(Host(capabilities=frozenset({"pv", "pv32"})), old, Shape("pv"), "x")  # type: ignore[arg-type]
    assert {'type = "pv"', "vcpus = 1", "msr_relaxed = 1"} <= set(made.render().splitlines())
    assert made.extra.startswith("hw.use_xsave=0,")
    assert made.guest_type == "pv"


def test_a_pv_kernel_in_the_pv_shim(old: GuestSource) -> None:
    made = build_domain_config(Host(capabilities=frozenset({"pvh", "pvshim"})), old, Shape("pvshim"), "x")  # type: ignore[arg-type]
    assert {'type = "pvh"', "pvshim = 1"} <= set(made.render().splitlines())
    assert made.extra.startswith("hw.use_xsave=0,")
    assert made.guest_type == "pv"
    small = build_domain_config(Host(capabilities=frozenset({"pvh", "pvshim"})), replace(old, memory=160), Shape("pvshim"), "x")  # type: ignore[arg-type]
    assert small.memory == 512, "the shim takes its part of it"


def test_the_shim_is_for_kernels_with_a_pv_entry(disk: DiskImage) -> None:
    with pytest.raises(UsageError, match="cannot run as pvshim: its kernel has no entry for it"):
        build_domain_config(Host(capabilities=frozenset({"pvh", "pvshim"})), freebsd(disk), Shape("pvshim"), "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["pv", "pvshim"])
def test_cells_of_a_pv_kernel(kind: str) -> None:
    options: Any = SimpleNamespace(xens=("4.17",), host="", guests=("freebsd",), types=(kind,))
    (cell,) = cells.cells(options, FreeBSD("10.4", ("pv",)))
    assert str(cell) == f"freebsd-{kind}-xen-4.17"
    assert cells.unmet([pytest.mark.needs(types=("pvh", "pv")).mark], cell) == ""
    assert cells.unmet([pytest.mark.needs(types=("pvh",)).mark], cell) == "needs guest type pvh"
    assert cells.cells(options, FreeBSD("13.2", ("pvh", "hvm"))) == ()


def test_pygrub_is_skipped_where_it_cannot_read_the_disk(disk: DiskImage) -> None:
    """libxl aborts if its bootloader returns no kernel; that is not a failure of the guest."""
    with pytest.raises(CannotRun, match="pygrub reads only UFS1 and ext2"):
        build_domain_config(Host(), freebsd(disk, pygrub=False), Shape("pvh", bootloader="pygrub"), "x")  # type: ignore[arg-type]
    build_domain_config(Host(), freebsd(disk, pygrub=False), Shape("pvh"), "x")  # type: ignore[arg-type]
