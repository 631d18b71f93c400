"""From an image to a domain's configuration: directly, by pygrub, through a firmware."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import UsageError
from harness.guests import source
from harness.guests.freebsd import FreeBSD
from harness.guests.guest import Shape, configure
from harness.guests.source import DiskImage, GuestSource
from harness.images import slot


@dataclass
class Host:
    """Takes files and remembers nothing."""

    emulated: bool = True
    bridge: str = "xenbr0"
    capabilities: frozenset[str] = frozenset({"pv", "pvh", "hvm"})

    @property
    def facts(self) -> Any:
        return SimpleNamespace(emulated=self.emulated, name="h", xen="4.20")

    def file(self, local: Path) -> str:
        return f"/there/{local.name}"

    def mac(self, domain: str, index: int) -> str:
        return f"00:16:3e:00:00:{index:02x}"

    def disk(self, local: Path, fmt: str = "raw") -> str:
        return str(local)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskImage:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    path = tmp_path / "xvda.img"
    path.write_bytes(bytes(8192) + slot.text({}) + bytes(8192))
    return DiskImage(path, slot=8192)


KERNEL = Path("/k/kernel")


def freebsd(disk: DiskImage, **changes: Any) -> GuestSource:
    profile = FreeBSD(version="13.2", types=("pvh", "hvm"))
    return GuestSource("freebsd-13.2", profile, KERNEL, disks=(disk,), root="xbd0p2", **changes)


def test_pvh_gets_kernel_and_variables_directly(disk: DiskImage) -> None:
    made = configure(Host(), freebsd(disk), Shape("pvh"), "x")  # type: ignore[arg-type]
    assert (made.kernel, made.bootloader, made.serial, made.disks[0].target) == ("/there/kernel", "", False, str(disk.path))
    assert "vfs.root.mountfrom=ufs:/dev/xbd0p2" in made.extra


def test_pygrub_gets_only_what_menu_lst_has_not_said(disk: DiskImage) -> None:
    given = freebsd(disk, bootloader="pygrub", own_variables=(("vfs.root.mountfrom", "ufs:/dev/xbd0p2"),))
    made = configure(Host(), given, Shape("pvh"), "x")  # type: ignore[arg-type]
    assert (made.kernel, made.bootloader) == ("", "pygrub")
    assert made.extra.startswith(",debug.trace_on_panic=1,")
    assert "mountfrom" not in made.extra


def test_hvm_gets_its_variables_by_its_loader(disk: DiskImage) -> None:
    before = disk.path.read_bytes()
    made = configure(Host(), freebsd(disk), Shape("hvm", variables=(("fxh.x", "1"),)), "x")  # type: ignore[arg-type]
    assert (made.kernel, made.extra, made.serial, made.boot) == ("", "", True, "c")
    text = Path(made.disks[0].target).read_bytes()[8192:]
    assert text.startswith(b'# fxh: variables of this run\nvfs.root.mountfrom="ufs:/dev/xbd0p2"\n')
    assert b'\nfxh.x="1"\n' in text
    assert disk.path.read_bytes() == before
    assert 'hdtype = "ahci"' in made.render()
    assert "type=vif" in made.render()
    plain = configure(Host(emulated=False), freebsd(disk), Shape("hvm"), "x")  # type: ignore[arg-type]
    assert "ahci" not in plain.render()
    assert "type=vif" not in plain.render()


def test_hvm_of_a_disk_without_a_place_takes_no_variables(disk: DiskImage) -> None:
    given = freebsd(DiskImage(disk.path))
    assert configure(Host(), given, Shape("hvm"), "x").disks[0].target == str(disk.path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"takes its kernel variables from its own loader\.conf"):
        configure(Host(), given, Shape("hvm", variables=(("fxh.x", "1"),)), "x")  # type: ignore[arg-type]


def test_pygrub_is_refused_for_a_disk_it_cannot_read() -> None:
    image: Any = SimpleNamespace(name="i", pygrub=False, data={"layout": "ufs2"})
    with pytest.raises(UsageError, match=r"i: pygrub cannot read its first disk \(layout ufs2\)"):
        source.from_image(image, bootloader="pygrub")


def old_kernel(path: Path) -> Path:
    """A 32-bit ELF file without anything in it."""
    path.write_bytes(b"\x7fELF\x01\x01\x01" + bytes(57))
    return path


def test_a_32_bit_pv_kernel_needs_a_xen_that_runs_it(disk: DiskImage, tmp_path: Path) -> None:
    profile = FreeBSD(version="10.4", types=("pv",))
    given = GuestSource("freebsd-10.4", profile, old_kernel(tmp_path / "kernel"), disks=(disk,), root="xbd0")
    with pytest.raises(UsageError, match=r"xen_caps lacks xen-3\.0-x86_32p"):
        configure(Host(), given, Shape("pv"), "x")  # type: ignore[arg-type]
    able = Host(capabilities=frozenset({"pv", "pv32"}))
    made = configure(able, given, Shape("pv"), "x")  # type: ignore[arg-type]
    assert "msr_relaxed = 1" in made.render()
    assert made.extra.startswith("hw.use_xsave=0,")
    with pytest.raises(UsageError, match="with 2 vCPUs"):
        configure(able, given, Shape("pv", vcpus=2), "x")  # type: ignore[arg-type]
