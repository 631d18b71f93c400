# SPDX-License-Identifier: BSD-2-Clause
"""QEMU as found on this machine, and the command line of a lab's machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError

OLDEST = (7, 2)

# Each absence has a reason, measured under QEMU 7.2, 10.0 and 11.1:
# smap, smep: the PV dom0 dies at once (create_bounce_frame); rdtscp: TCG has no next-RIP saving, Xen cannot emulate it;
# monitor: Xen's idle loop takes a #GP in mwait; cx16: QEMU 7.2 leaves rubbish in the flags (docs/lab.md), and kernels use it all
# the time; xsave and AVX: FreeBSD dies in fpurestore_xrstor. A family below 0x10 (model "max") kills the PV shim in init_amd.
TCG_CPU = "EPYC,-smap,-smep,-rdtscp,-monitor,-cx16,-xsave,-avx,-avx2,-f16c,-fma"


@dataclass(frozen=True)
class Qemu:
    """A QEMU binary and its version, for example (7, 2, 22)."""

    binary: str
    version: tuple[int, ...]

    @property
    def label(self) -> str:
        return "QEMU " + ".".join(map(str, self.version))


def parse_version(text: str) -> tuple[int, ...]:
    """The version in ``qemu-system-x86_64 --version``. Raises ValueError when there is none."""
    # QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise ValueError(f"no version in {text[:80]!r}")
    return tuple(map(int, match.groups()))


def find(binary: str = "qemu-system-x86_64") -> Qemu:
    """Raises InfrastructureError when QEMU is not there or too old."""
    path = shutil.which(binary)
    if path is None or shutil.which("qemu-img") is None:
        raise InfrastructureError(
            f"{binary if path is None else 'qemu-img'} is not on this machine",
            hint="Debian/Ubuntu: apt-get install --no-install-recommends qemu-system-x86 qemu-utils; FreeBSD: pkg install qemu",
        )
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    try:
        version = parse_version(text)
    except ValueError as exc:
        raise InfrastructureError(f"{path} --version: {exc}", hint="install QEMU 7.2 or later") from None
    if version[:2] < OLDEST:
        raise InfrastructureError(
            f"{path} is version {'.'.join(map(str, version))}, a lab needs 7.2", hint="install QEMU 7.2 or later"
        )
    return Qemu(path, version)


@dataclass(frozen=True)
class Drive:
    """A guest image given to dom0 as the SCSI disk with the serial number ``fxh<number>`` (dom0 finds it by that).

    ``file`` is its overlay's name in the lab's directory.
    """

    number: int
    file: str

    @property
    def serial(self) -> str:
        return f"fxh{self.number}"

    @property
    def device(self) -> dict[str, object]:
        """QEMU's device: the SCSI id is fixed, so that a checkpoint finds its disks where they were."""
        return {
            "driver": "scsi-hd", "bus": "scsi.0", "drive": self.serial, "serial": self.serial, "id": f"dev-{self.serial}",
            "scsi-id": self.number,
        }  # fmt: skip


@dataclass(frozen=True)
class MachineSpec:
    """All that makes two machines alike: a checkpoint of one is good for the other when these are equal."""

    memory: int
    """MiB of the whole machine."""
    cpus: int
    accel: str
    cpu: str
    dom0_memory: int = 768
    pae_first: bool = True
    drives: tuple[int, ...] = ()
    """Numbers of the SCSI disks plugged in."""

    @property
    def emulated(self) -> bool:
        """No processor of this machine runs the lab's code: QEMU translates it."""
        return self.accel == "tcg"

    def xen_arguments(self) -> str:
        arguments = (
            f"console=com1 com1=115200,8n1 dom0_mem={self.dom0_memory}M,max:{self.dom0_memory}M "
            "bootscrub=0 noreboot console_timestamps=boot loglvl=info guest_loglvl=all conring_size=256k"
        )
        arguments += " spec-ctrl=no" if self.emulated else ""
        return arguments + (" dom0_max_vcpus=1 dom0_vcpus_pin" if self.cpus > 1 else "")

    def linux_arguments(self) -> str:
        arguments = f"console=hvc0 quiet fxh.pae_first={int(self.pae_first)}"
        # QEMU keys translated code by its virtual address, too: a program that is elsewhere each time it is started is translated
        # anew each time. And an emulator does not speculate: Xen and dom0 need no detours against it.
        return arguments + (" norandmaps mitigations=off" if self.emulated else "")


def command(
    qemu: Qemu,
    spec: MachineSpec,
    *,
    run: Path,
    directory: Path,
    ssh_port: int,
    ram: Path,
    share_ram: bool,
    drives: Sequence[Drive] = (),
    xen: Path,
    vmlinuz: Path,
    initrd: Path,
    incoming: bool = False,
) -> list[str]:
    """The command line. ``run`` is the directory of sockets, ``directory`` that of the log and of the lab's overlays.

    ``ram`` backs the machine's memory: written to with ``share_ram``, else mapped copy-on-write.
    """
    argv = [
        qemu.binary, "-name", "fxh-lab", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", f"pc,accel={spec.accel},memory-backend=ram", "-cpu", spec.cpu, "-smp", str(spec.cpus), "-m", f"{spec.memory}M",
        "-object", f"memory-backend-file,id=ram,size={spec.memory}M,mem-path={_comma(ram)},share={'on' if share_ram else 'off'}",
        "-kernel", _plain(xen), "-append", spec.xen_arguments(),
        "-initrd", f"{_plain(vmlinuz)} {spec.linux_arguments()},{_plain(initrd)}",
        "-chardev", f"socket,id=qmp,path={_comma(run / 'qmp')},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=com1,path={_comma(run / 'com1')},server=on,wait=off,"
                    f"logfile={_comma(directory / 'xen.log')},logappend=on",
        "-serial", "chardev:com1",
        "-chardev", f"socket,id=com2,path={_comma(run / 'com2')},server=on,wait=off", "-serial", "chardev:com2",
        "-blockdev", f"driver=qcow2,node-name=root,discard=unmap,file.driver=file,file.filename={_comma(directory / 'root.qcow2')}",
        "-device", "virtio-blk-pci,drive=root",
        "-device", "virtio-scsi-pci,id=scsi",
        # restrict: what a guest sends never leaves this machine, and does not reach it but through the forwarded port.
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
    ]  # fmt: skip
    for drive in drives:
        node = (
            f"driver=qcow2,node-name={drive.serial},discard=unmap,file.driver=file,file.filename={_comma(directory / drive.file)}"
        )
        argv += ["-blockdev", node, "-device", ",".join(f"{k}={v}" for k, v in drive.device.items())]
    if incoming:
        argv += ["-incoming", "defer"]
    return argv


def _comma(path: Path | str) -> str:
    """QEMU's option syntax: a comma in a value is doubled."""
    return str(path).replace(",", ",,")


def _plain(path: Path) -> str:
    """A multiboot module list is split at blanks and commas, without a way to quote them in every QEMU version."""
    if " " in str(path) or "," in str(path):
        raise InfrastructureError(
            f"QEMU cannot load {path}: a blank or a comma in the path", hint="point FXH_STORE at a directory without them"
        )
    return str(path)
