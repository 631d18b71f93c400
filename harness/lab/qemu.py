# SPDX-License-Identifier: BSD-2-Clause
"""Find QEMU on this machine, and write the command line of a lab's machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError

OLDEST = (7, 2)

# Reasons for the missing features, measured under QEMU 7.2, 10.0 and 11.1:
# smap, smep: the PV dom0 dies at once (create_bounce_frame).
# rdtscp: TCG does not save the next RIP, so Xen cannot emulate it.
# monitor: Xen's idle loop gets a #GP in mwait.
# cx16: QEMU 7.2 leaves wrong flags (docs/lab.md), and kernels use it often.
# xsave and AVX: FreeBSD dies in fpurestore_xrstor.
# A family below 0x10 (model "max") kills the PV shim in init_amd.
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
    """The version in ``qemu-system-x86_64 --version``. Raises ValueError if there is no version."""
    # QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise ValueError(f"no version in {text[:80]!r}")
    return tuple(map(int, match.groups()))


def find(binary: str = "qemu-system-x86_64") -> Qemu:
    """Find QEMU and qemu-img. Raises InfrastructureError if one is missing or QEMU is too old."""
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
    """A guest image as a SCSI disk of dom0, which finds the disk by its serial number ``fxh<number>``.

    ``file`` is the name of its overlay in the lab's directory.
    """

    number: int
    file: str

    @property
    def serial(self) -> str:
        return f"fxh{self.number}"

    @property
    def device(self) -> dict[str, object]:
        """QEMU's device. The SCSI id is fixed, so that a checkpoint finds its disks at the same place."""
        return {
            "driver": "scsi-hd", "bus": "scsi.0", "drive": self.serial, "serial": self.serial, "id": f"dev-{self.serial}",
            "scsi-id": self.number,
        }  # fmt: skip


@dataclass(frozen=True)
class MachineSpec:
    """The properties of a machine. A checkpoint of one machine fits another if they are equal."""

    memory: int
    """MiB of the whole machine."""
    cpus: int
    accel: str
    cpu: str
    dom0_memory: int = 768
    pae_first: bool = True
    drives: tuple[int, ...] = ()
    """Numbers of the plugged SCSI disks."""

    @property
    def emulated(self) -> bool:
        """Whether QEMU translates the lab's code, instead of a processor of this machine running it."""
        return self.accel == "tcg"

    def xen_arguments(self) -> str:
        arguments = (
            f"console=com1 com1=115200,8n1 dom0_mem={self.dom0_memory}M,max:{self.dom0_memory}M "
            "bootscrub=0 noreboot console_timestamps=boot loglvl=info guest_loglvl=all conring_size=256k"
        )
        # dom0 interrupts a guest at most every 20 ms. Otherwise each byte on a guest's console wakes three processes in dom0. With
        # the default of 1 ms, a boot takes a tenth longer, and a command a third.
        arguments += " spec-ctrl=no sched_ratelimit_us=20000" if self.emulated else ""
        return arguments + (" dom0_max_vcpus=1 dom0_vcpus_pin" if self.cpus > 1 else "")

    def linux_arguments(self) -> str:
        arguments = f"console=hvc0 quiet fxh.pae_first={int(self.pae_first)}"
        # QEMU looks translated code up by its virtual address, among others. With address space randomisation, it would translate
        # a program again at each start. And an emulator does not speculate, so mitigations only cost time. For noreplace-smp and
        # rodata=off see harness/guests/os/linux.py.
        return arguments + (" norandmaps mitigations=off noreplace-smp rodata=off" if self.emulated else "")


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
    """The command line. ``run`` is the directory of the sockets, ``directory`` that of the log and the overlays.

    ``ram`` is the file of the machine's memory: with ``share_ram`` it is written to, otherwise it is mapped copy-on-write.
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
        # restrict: a guest reaches neither this machine nor a network beyond it; only the forwarded port is open.
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
    """QEMU splits a multiboot module list at blanks and commas, and not every version has a way to quote them."""
    if " " in str(path) or "," in str(path):
        raise InfrastructureError(
            f"QEMU cannot load {path}: a blank or a comma in the path", hint="point FXH_STORE at a directory without them"
        )
    return str(path)
