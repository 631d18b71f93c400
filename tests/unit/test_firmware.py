# SPDX-License-Identifier: BSD-2-Clause
"""Tests UEFI guests: cells and their names, the domain configuration, the requirements of a host, the firmware's console."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from played import FREEBSD, classify
from quiet_host import Host

from harness.console import deaths
from harness.console.reader import ConsoleReader
from harness.errors import BuildError, CannotRun, UsageError
from harness.guests.domain_config import build_domain_config
from harness.guests.os.freebsd import FreeBSD
from harness.guests.shape import Shape
from harness.guests.source import DiskImage, GuestSource
from harness.images.image import Image
from harness.investigate import blame
from harness.lab import ovmf, recipe, tools
from harness.plugin import cells, known, options
from harness.report.command import options_for_cell
from harness.results import schema1
from harness.results.where import Where
from harness.transport.replay import ReplayStream
from harness.xen import firmware
from harness.xen.config import DomainConfig


def source(*firmwares: str) -> GuestSource:
    guest_os = FreeBSD(version="15.1", types=("pvh", "hvm"))
    return GuestSource("freebsd-15.1", guest_os, None, disks=(DiskImage(Path("/i/xvda.img")),), root="xbd0p3", firmwares=firmwares)


def asked(firmwares: str = "bios", types: str = "", guests: str = "freebsd") -> Any:
    return SimpleNamespace(
        xens=("4.20",), host="", guests=tuple(guests.split()), types=tuple(types.split()), firmwares=tuple(firmwares.split())
    )


# -- cells ------------------------------------------------------------------------------------------------------------


def test_uefi_is_a_cell_of_its_own_and_bios_keeps_its_name() -> None:
    names = [str(cell) for cell in cells.cells(asked("bios uefi"), source().os)]
    assert names == ["freebsd-pvh-xen-4.20", "freebsd-hvm-xen-4.20", "freebsd-hvm-uefi-xen-4.20"]
    (cell,) = cells.cells(asked("uefi", "hvm"), source().os)
    assert (cell.type, cell.firmware, cell.version.release) == ("hvm", "uefi", "15.1")
    assert known.case_id("boot", "test_x", f"{cell}-2", cell) == "boot/test_x[2]"
    assert cells.unmet([pytest.mark.needs(types=("hvm",)).mark], cell) == ""


def test_a_control_guest_has_no_firmware() -> None:
    assert [str(cell) for cell in cells.cells(asked("uefi", guests="control"), None)] == [
        "control-pv-xen-4.20",
        "control-pvh-xen-4.20",
    ]


def test_all_cells_include_uefi() -> None:
    assert "freebsd-hvm-uefi-xen-4.17" in map(str, cells.everywhere(("4.17", "4.20")))


def test_a_disk_without_an_esp_is_refused_where_uefi_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"freebsd-15\.1: UEFI cannot start it: its disk has no EFI system partition") as caught:
        options.check_firmwares(asked("bios uefi"), source("bios"))
    assert "--firmware bios" in caught.value.hint
    options.check_firmwares(asked("bios uefi"), source("bios", "uefi"))
    options.check_firmwares(asked("bios"), source("bios"))
    options.check_firmwares(asked("uefi", "pvh"), source("bios"))


def test_a_disk_for_uefi_alone_is_refused_where_only_bios_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"freebsd-15\.1: only UEFI can start it: its disk has no boot code for a BIOS") as caught:
        options.check_firmwares(asked("bios", "hvm"), source("uefi"))
    assert "--firmware uefi" in caught.value.hint
    options.check_firmwares(asked("uefi", "hvm"), source("uefi"))
    options.check_firmwares(asked("bios", "hvm pvh"), source("uefi"))  # it runs as PVH, and its HVM cells are skipped


def test_an_image_says_which_firmwares_start_it() -> None:
    def image(**data: Any) -> Image:
        return Image("i", SimpleNamespace(manifest=data))  # type: ignore[arg-type]

    assert image(types=["pvh", "hvm"], firmwares=["bios", "uefi"]).firmwares == ("bios", "uefi")
    assert image(types=["pvh", "hvm"]).firmwares == ("bios",), "an image without the entry is from an older version"
    assert image(types=["pvh"]).firmwares == ()


# -- the domain -------------------------------------------------------------------------------------------------------


def test_a_uefi_guest_starts_from_ovmf() -> None:
    made = build_domain_config(Host(), source("uefi"), Shape("hvm", firmware="uefi"), "x").render()  # type: ignore[arg-type]
    assert 'firmware = "ovmf"\n' in made
    assert "bios_path_override" not in made
    own = build_domain_config(Host(own_ovmf=Path("/s/OVMF.fd")), source("uefi"), Shape("hvm", firmware="uefi"), "x").render()  # type: ignore[arg-type]
    assert 'firmware = "ovmf"\n' in own
    assert 'bios_path_override = "/there/OVMF.fd"\n' in own


@pytest.mark.parametrize("asked_for", ["", "bios"])
def test_a_bios_guest_is_configured_as_before(asked_for: str) -> None:
    made = build_domain_config(Host(own_ovmf=Path("/s/OVMF.fd")), source("bios"), Shape("hvm", firmware=asked_for), "x").render()  # type: ignore[arg-type]
    assert "firmware" not in made
    assert "bios_path" not in made


def test_only_hvm_has_a_firmware() -> None:
    with pytest.raises(UsageError, match="firmware 'ovmf' with type 'pvh'"):
        DomainConfig("x", "pvh", 512, firmware="ovmf").render()
    with pytest.raises(UsageError, match=r"freebsd-15\.1 as pvh with UEFI"):
        build_domain_config(Host(), source("uefi"), Shape("pvh", firmware="uefi"), "x")  # type: ignore[arg-type]


def test_obstacles_to_uefi_are_reported_before_a_boot() -> None:
    shape = Shape("hvm", firmware="uefi")
    with pytest.raises(UsageError, match="no EFI system partition"):
        build_domain_config(Host(), source("bios"), shape, "x")  # type: ignore[arg-type]
    with pytest.raises(CannotRun, match=r"^h: no firmware file /usr/share/ovmf/OVMF\.fd") as caught:
        build_domain_config(Host(no_uefi="no firmware file /usr/share/ovmf/OVMF.fd"), source("uefi"), shape, "x")  # type: ignore[arg-type]
    assert "OvmfXen" in caught.value.hint
    assert "package ovmf" in caught.value.hint
    for asked_for in ("", "bios"):
        with pytest.raises(CannotRun, match="only UEFI can start it") as caught:
            build_domain_config(Host(), source("uefi"), Shape("hvm", firmware=asked_for), "x")  # type: ignore[arg-type]
        assert caught.value.hint == "--firmware uefi"


# -- the host ---------------------------------------------------------------------------------------------------------


def probe(tmp_path: Path, library: str, version: str = "4.20") -> dict[str, str]:
    """The output of the probe if dom0's /usr is below ``tmp_path`` and libxl contains the string ``library``."""
    directory = tmp_path / "usr/lib/x86_64-linux-gnu"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"libxenlight.so.{version}.0").write_bytes(b"\x7fELF\0seabios\0ovmf\0" + library.encode() + b"\0qemu\0")
    (directory / "libxenlight.so.4.11.0").write_bytes(b"\0/another/ovmf.bin\0")
    script = firmware.PROBE.replace("/usr/", f"{tmp_path}/usr/")
    said = subprocess.run(["sh", "-c", script, "sh", "4.20"], capture_output=True, text=True, check=True).stdout
    return {word: rest for word, _, rest in (line.partition(" ") for line in said.splitlines())}


def test_the_probe_asks_libxl_for_its_firmware(tmp_path: Path) -> None:
    file = tmp_path / "share/ovmf/OVMF.fd"
    found = probe(tmp_path, str(file))
    assert found["ovmf-missing"] == str(file)
    assert firmware.missing(found).startswith(f"no firmware file {file}, which {tmp_path}/usr/lib/x86_64-linux-gnu/libxenlight")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\0\0\0\0 _FVH")
    found = probe(tmp_path, str(file))
    assert (found["ovmf"], "ovmf-xen" in found, firmware.missing(found)) == (str(file), False, "")
    file.write_bytes(b"\x7fELF")
    assert "ovmf-xen" in probe(tmp_path, str(file))


def test_a_libxl_without_ovmf_and_a_host_without_a_library(tmp_path: Path) -> None:
    assert firmware.missing(probe(tmp_path, "/usr/share/seabios/bios.bin")).endswith("this Xen was built without OVMF")
    assert firmware.missing({}) == "", "without a library xl decides"


# -- the console ------------------------------------------------------------------------------------------------------

LOADING = (
    b'BdsDxe: loading Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x4,0x0)/Sata(0x0,0xFFFF,0x0)\r\n'
    b'BdsDxe: starting Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x4,0x0)/Sata(0x0,0xFFFF,0x0)\r\n'
)
NO_DISK = (Path(__file__).parent.parent / "consoles" / "ovmf-no-disk-shell.log").read_bytes()


def play(tmp_path: Path, data: bytes) -> ConsoleReader:
    reader = ConsoleReader(ReplayStream(data, end="silence"), tmp_path / "console.log", tables=FREEBSD).start()
    reader._thread.join(2)
    reader.close()
    return reader


def test_stages_of_a_uefi_boot(tmp_path: Path) -> None:
    loader = b"   Reading loader env vars from /efi/freebsd/loader.env\r\nFreeBSD/amd64 EFI loader, Revision 3.0\r\n"
    assert [reached.name for reached in play(tmp_path, LOADING + loader).stages] == ["firmware", "loader"]


def test_a_firmware_that_finds_nothing_to_boot_ends_the_boot(tmp_path: Path) -> None:
    """A firmware without a shell prints a message, and no stage follows."""
    death = play(tmp_path, LOADING + b"BdsDxe: No bootable option or device was found.\r\n").death
    assert death is not None
    assert (death.kind, death.message, death.stage) == ("firmware", "the UEFI firmware found no bootable disk", "firmware")
    assert deaths.speaker(death.kind) == "console"


@pytest.mark.parametrize("cut", [b"\x1b[2J\x1b[01;01H\x1b[01;01HUEFI Interactive", b""])
def test_a_firmware_that_starts_its_shell_found_nothing_to_boot(tmp_path: Path, cut: bytes) -> None:
    """Recorded with an empty disk. The start of the shell counts, and so does its prompt."""
    death = play(tmp_path, NO_DISK[: NO_DISK.index(cut)] if cut else NO_DISK).death
    assert death is not None
    assert (death.kind, death.stage) == ("firmware", "firmware")
    assert death.message.startswith(
        'the UEFI firmware found no bootable disk; failed to load Boot0001 "UEFI Misc Device" from PciRoot'
    )
    assert 'failed to load Boot0002 "UEFI QEMU HARDDISK QM00005 "' in death.message
    assert death.message.endswith("Sata(0x0,0xFFFF,0x0): Not Found")


def test_the_shell_prompt_alone_is_enough() -> None:
    death = classify(NO_DISK[NO_DISK.index(b"UEFI Interactive") :])
    assert death is not None
    assert death.kind == "firmware"


def test_texts_that_resemble_the_shell(tmp_path: Path) -> None:
    assert classify(b"echo 'Shell> ' > x\r\nroot Shell> \r\n") is None


# -- the lab's firmware -----------------------------------------------------------------------------------------------


def test_the_key_covers_all_inputs_of_the_firmware() -> None:
    own = recipe.firmware()
    assert own.platform == "OvmfPkg/OvmfXen.dsc"
    others = [
        replace(own, **{name: value})
        for name, value in (
            ("suite", "sid"), ("package", "x"), ("platform", "OvmfPkg/OvmfPkgX64.dsc"), ("defines", ()),
            ("tools", ("gcc",)), ("script", b"true"),
        )
    ]  # fmt: skip
    assert len({made.key for made in (own, *others)}) == 7


def test_a_build_that_makes_no_firmware_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(tools, "missing_packages", list)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    script = 'for a; do case "$a" in --customize-hook=copy-out*) set -- $a; mkdir "$3/fxh-out"; echo x > "$3/fxh-out/OVMF.fd";; esac; done'
    (bin_ / "mmdebstrap").write_text(f"#!/bin/sh\n{script}\n")
    (bin_ / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    with pytest.raises(BuildError, match="produced a firmware of 2 bytes"):
        ovmf.obtain(recipe.firmware())
    assert not [path for path in (tmp_path / "store/firmware").iterdir() if path.is_dir()]


# -- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "wanted"), [("freebsd-hvm-uefi-xen-4.20", "uefi"), ("freebsd-hvm-xen-4.20", "")])
def test_the_command_for_one_case_asks_for_its_firmware(where: str, wanted: str) -> None:
    found = options_for_cell({"firmware": "bios,uefi", "type": "pvh,hvm"}, schema1.where(where))
    assert found.get("firmware", "") == wanted


def test_the_control_guest_takes_no_firmware_to_a_trial() -> None:
    bad = blame.Side({"image": "i", "type": "hvm", "firmware": "uefi"}, Where("freebsd", "hvm", "xen-4.20", "4.20", "uefi"))
    trial = blame.plan(bad, None).trials[-1]
    assert (trial.cell, trial.options) == ("control-pvh-xen-4.20", {"guest": "control", "type": "pvh"})
