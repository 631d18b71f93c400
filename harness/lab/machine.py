# SPDX-License-Identifier: BSD-2-Clause
"""The QEMU machine of a lab: started cold or from a checkpoint, frozen into one, disks plugged in and out."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError, LabDead
from harness.lab import criuimage
from harness.lab.checkpoint import Checkpoint
from harness.lab.hot import Hot, View, resident
from harness.lab.process import Process
from harness.lab.qemu import Drive, MachineSpec, Qemu, command
from harness.lab.sparse import copy_sparse
from harness.lab.store import LabImage

log = logging.getLogger("fxh.lab")

# Seconds that a connection to dom0 may take to be gone from QEMU's network when its far end has closed it.
_LINGER = 5.0


class Machine:
    """One QEMU in ``directory`` (overlays, memory, logs) with its sockets in ``sockets``; both exist and are ours alone.

    With ``hot`` it runs in a chamber, and :meth:`dump_process` can keep the process.
    """

    def __init__(
        self, image: LabImage, qemu: Qemu, spec: MachineSpec, directory: Path, sockets: Path, *, keep: bool, hot: Hot | None = None
    ) -> None:
        self.image, self.qemu, self.spec, self.keep, self.hot = image, qemu, spec, keep, hot
        self.directory, self.sockets = directory, sockets
        self._view = hot.view if hot else View(directory, sockets)
        self.process: Process | None = None
        self.ssh_port = 0
        self.drives: list[Drive] = []
        self._ram = directory / "ram"
        """What the memory begins in."""
        self._shares_ram = False
        self._lock = threading.RLock()

    # -- starting -----------------------------------------------------------------------------------------------------

    def boot(self, initrd: Path, deadline: Deadline) -> None:
        """Start cold, with memory in a file of our own, so that a checkpoint of it costs little."""
        self._clean()
        self._overlay("root", self.image.directory / "root.qcow2")
        self._launch(self.directory / "ram", True, initrd, False, deadline)

    def load(self, made: Checkpoint, deadline: Deadline, *, private_memory: bool = False) -> None:
        """Start in the state of a checkpoint, and run.

        With ``private_memory`` the memory is copied first (a few tenths of a second), which makes :meth:`freeze` quick.
        """
        self._clean()
        self.spec = made.spec
        self._overlay("root", made.disk("root"))
        for number in made.spec.drives:
            self.drives.append(Drive(number, self._overlay(f"fxh{number}", made.disk(f"fxh{number}")).name))
        ram = made.ram
        if private_memory:
            ram = self.directory / "ram"
            copy_sparse(made.ram, ram)
        self._launch(ram, private_memory, self.image.directory / "initrd", True, deadline)
        self._incoming(made.state, deadline, devices_only=True)
        self._running().command("cont")

    def restore_process(self, made: Checkpoint, deadline: Deadline) -> None:
        """Go on as the QEMU process that a hot checkpoint holds. Raises LabDead, DeadlineExpired."""
        if self.hot is None:
            raise LabDead("there is nothing here to restore a QEMU process with")
        self._clean()
        self.spec = made.spec
        for disk in made.directory.glob("*.qcow2"):
            shutil.copyfile(disk, self.directory / disk.name)
        self.drives = [Drive(number, made.disk(f"fxh{number}").name) for number in made.spec.drives]
        (self.directory / "xen.log").touch()
        self._ram, self._shares_ram = made.memory, False
        self._start(self.hot.restore_process(made.directory, self.directory, self.sockets), deadline)
        for attempt in range(5):
            self.ssh_port = _free_port()
            refused = self._monitor(f"hostfwd_add tcp:127.0.0.1:{self.ssh_port}-:22").strip()
            if not refused:
                break
            if attempt == 4:
                raise LabDead(f"QEMU does not forward port {self.ssh_port}: {refused}")
        self._running().command("cont")

    def adopt(self, pid: int, ssh_port: int, drives: tuple[Drive, ...]) -> None:
        """Take over a machine that runs already."""
        self.process = Process(self.sockets, self.directory / "qemu.log", pid)
        self.ssh_port, self.drives = ssh_port, list(drives)

    def _clean(self) -> None:
        self.stop()
        self.drives = []
        for leftover in (*self.directory.glob("*.qcow2"), *self.directory.glob("ram"), *self.sockets.iterdir()):
            leftover.unlink()

    def _launch(self, ram: Path, share: bool, initrd: Path, incoming: bool, deadline: Deadline) -> None:
        self._ram, self._shares_ram = ram, share
        for attempt in range(5):
            self.ssh_port = _free_port()
            argv = command(
                self.qemu, self.spec, run=self._view.sockets, directory=self._view.directory, ssh_port=self.ssh_port, ram=ram,
                share_ram=share, drives=self.drives, xen=self.image.directory / "xen",
                vmlinuz=self.image.directory / "vmlinuz", initrd=initrd, incoming=incoming,
            )  # fmt: skip
            try:
                self._start(self.hot.chamber(self.directory, self.sockets, argv) if self.hot else argv, deadline)
                break
            except LabDead as exc:
                self.stop()
                # Somebody may have taken the port between our look and QEMU's bind.
                if "host forwarding" not in str(exc) or attempt == 4:
                    raise

    def _start(self, argv: Sequence[str], deadline: Deadline) -> None:
        self.process = Process.start(argv, self.sockets, self.directory / "qemu.log", keep=self.keep)
        self.process.connect(deadline)
        if self.hot:
            self.process.pid = resident(self.process.pid)

    def _ignore_shared(self, on: bool) -> None:
        """Whether memory that lies in a file is left out of the migration stream."""
        self._running().command("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": on}])

    def _incoming(self, state: Path, deadline: Deadline, *, devices_only: bool) -> None:
        process = self._running()
        self._ignore_shared(devices_only)
        process.command("migrate-incoming", uri=f"exec:cat {shlex.quote(str(state))}")

        def loaded() -> None:
            status = process.command("query-status")["status"]
            if status != "paused":  # as it was saved: loaded whole
                raise ConditionNotMet(f"QEMU is in state {status}; {process.last_words()}")

        deadline.wait(f"{state} to load", loaded, 0.003)

    # -- freezing -----------------------------------------------------------------------------------------------------

    def freeze(self, deadline: Deadline) -> dict[str, Path]:
        """Stop for good and leave the files of a checkpoint: ``ram``, ``state``, ``root`` and the drives by serial."""
        ram = self.directory / "ram"
        if not self._shares_ram:
            # Memory mapped copy-on-write is nobody's file yet: a second QEMU, with one of its own, takes it over.
            whole = self.directory / "whole"
            self._outgoing(whole, deadline, devices_only=False)
            self._running().stop()
            (self.sockets / "qmp").unlink(missing_ok=True)
            self._launch(ram, True, self.image.directory / "initrd", True, deadline)
            self._incoming(whole, deadline, devices_only=False)
            whole.unlink()
        state = self.directory / "state"
        self._outgoing(state, deadline, devices_only=True)
        self.stop()
        disks = {"root.qcow2": self.directory / "root.qcow2"}
        disks |= {f"{drive.serial}.qcow2": self.directory / drive.file for drive in self.drives}
        return {"ram": ram, "state": state, **disks}

    def dump_process(self, place: Path, deadline: Deadline) -> dict[str, Path]:
        """Stop for good and leave the files of a hot checkpoint that is to lie at ``place``: CRIU's images, ``ram`` and the disks.

        Nobody may be connected to dom0 any more. Raises InfrastructureError when CRIU cannot; the machine is stopped then, but
        can still be frozen.
        """
        if self.hot is None or self._shares_ram:
            raise InfrastructureError("this QEMU cannot be kept as a process")
        process = self._running()
        self._monitor(f"hostfwd_remove tcp:127.0.0.1:{self.ssh_port}")

        def alone() -> None:
            if "TCP" in (links := self._monitor("info usernet")):
                raise ConditionNotMet(links)

        deadline.capped(_LINGER).wait("the connections to dom0 to end", alone, 0.02)
        process.command("stop")
        process.release()
        images = self.directory / "criu"
        for attempt in range(3):
            shutil.rmtree(images, ignore_errors=True)
            images.mkdir()
            try:
                self.hot.keep(process.pid, images)
                break
            except InfrastructureError:  # it has not yet seen that its monitor's client is gone
                if attempt == 2:
                    raise
                time.sleep(0.05)
        self.stop()
        memory = self.directory / "ram"
        try:
            criuimage.take_memory_out(images, self._ram, self.spec.memory << 20, memory, place / "ram")
        except criuimage.Unknown as exc:
            log.info("all of the machine's memory is read at each restore: CRIU's images are not as they are known: %s", exc)
            for half in (memory, *images.glob("*.new")):
                half.unlink(missing_ok=True)
        return {path.name: path for path in (*images.iterdir(), *self.directory.glob("*.qcow2"), *self.directory.glob("ram"))}

    def _outgoing(self, target: Path, deadline: Deadline, *, devices_only: bool) -> None:
        process = self._running()
        self._ignore_shared(devices_only)
        self._stop_in_xen(deadline)
        process.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        process.command("migrate", uri=f"exec:cat > {shlex.quote(str(target))}")

        def saved() -> None:
            status = process.command("query-migrate").get("status")
            if status == "failed":
                raise InfrastructureError("QEMU could not write the checkpoint", hint=f"is there space at {target.parent}?")
            if status != "completed":
                raise ConditionNotMet(f"migration is {status}")

        deadline.wait("the checkpoint to be written", saved, 0.005)

    def _stop_in_xen(self, deadline: Deadline) -> None:
        """Stop at a moment when no CPU runs a PVH or HVM guest.

        QEMU does not load the state of a CPU in guest mode when it was built with KVM and runs without (7.2,
        target/i386/machine.c, cpu_post_load).
        """
        process = self._running()

        def stopped() -> None:
            process.command("stop")
            if in_guest_mode(self._registers()):
                process.command("cont")
                raise ConditionNotMet("a CPU is in a guest")

        deadline.wait("a moment when no CPU is in a guest", stopped, 0.003)

    # -- disks --------------------------------------------------------------------------------------------------------

    def plug(self, path: Path, fmt: str = "raw") -> Drive:
        """Give dom0 the image at ``path`` as a SCSI disk, through an overlay: nothing is copied, the image stays as it is."""
        with self._lock:
            taken = {drive.number for drive in self.drives}
            number = next(n for n in range(1, 250) if n not in taken)
            file = self._overlay(f"fxh{number}", path, fmt)
            drive = Drive(number, file.name)
            process = self._running()
            below = {"driver": "file", "filename": str(self._view.directory / drive.file)}
            process.command("blockdev-add", **{"node-name": drive.serial, "driver": "qcow2", "discard": "unmap", "file": below})
            process.command("device_add", **drive.device)
            self.drives.append(drive)
        return drive

    def unplug(self, drive: Drive) -> None:
        """Take a disk away that dom0 no longer uses, and its overlay with it."""
        with self._lock:
            process = self._running()
            process.command("device_del", id=f"dev-{drive.serial}")

            def gone() -> None:
                try:
                    process.command("blockdev-del", **{"node-name": drive.serial})
                except LabDead as exc:
                    raise ConditionNotMet(str(exc)) from exc

            Deadline(10).wait(f"dom0 to let go of {drive.serial}", gone, 0.02)
            self.drives.remove(drive)
            (self.directory / drive.file).unlink(missing_ok=True)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _running(self) -> Process:
        if self.process is None:
            raise LabDead("the lab's machine is not running")
        return self.process

    def cpu_state(self) -> CpuState:
        """What the CPUs do, from a few looks at their registers within half a second."""
        looks = []
        for _ in range(4):
            looks.append(self._registers())
            time.sleep(0.15)
        return cpu_state(looks)

    def _registers(self) -> str:
        return self._monitor("info registers -a")

    def _monitor(self, line: str) -> str:
        """What QEMU's monitor for people answers."""
        return str(self._running().command("human-monitor-command", **{"command-line": line}))

    def stop(self) -> None:
        """End QEMU; may be called twice."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def _overlay(self, node: str, backing: Path, fmt: str = "qcow2") -> Path:
        # A name of its own each time: a disk unplugged a moment ago may still be open.
        target = self.directory / (f"{node}.qcow2" if node == "root" else f"{node}-{secrets.token_hex(3)}.qcow2")
        overlay(backing, target, fmt)
        return target


def overlay(backing: Path, target: Path, fmt: str) -> None:
    """A new qcow2 at ``target`` that holds what differs from ``backing``. Raises InfrastructureError."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", fmt, "-b", str(backing.resolve()), str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfrastructureError(
            f"cannot make an overlay of {backing}: {done.stderr.strip()}",
            hint=f"is it a disk image of format {fmt}? (`qemu-img info` says) Is there space at {target.parent}?",
        )


@dataclass(frozen=True)
class CpuState:
    """``busy``: the machine computes and may come back; ``text`` says where each CPU is."""

    busy: bool
    text: str

    def __str__(self) -> str:
        return self.text


# RAX=0000000000000000 RBX=ffff830071b8a000 ...   RIP=ffff82d040216247 RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=0
_CPU = re.compile(r"RIP=([0-9a-f]{16}) .*?HLT=(\d).*?CR0=([0-9a-f]{8})", re.DOTALL)
_PAGING = 0x80000000


def cpu_state(looks: Sequence[str]) -> CpuState:
    """From QEMU's ``info registers -a``, a few times in a row. Xen's text lies at 0xffff82d040000000.

    A hypervisor that lost its paging (QEMU's defect) runs on through nothing; one whose registers stand still spins.
    """
    last = _CPU.findall(looks[-1])
    if not last:
        return CpuState(False, "QEMU shows no registers")
    words = []
    for n, (rip, halted, cr0) in enumerate(last):
        place = "in Xen" if rip.startswith("ffff82d0") else "not in Xen"
        how = "halted" if halted == "1" else "running" if int(cr0, 16) & _PAGING else "lost: paging is off"
        words.append(f"CPU {n} at {rip} ({place}, {how})")
    lost = any(not int(cr0, 16) & _PAGING for _, _, cr0 in last)
    halted_all = all(halted == "1" for _, halted, _ in last)
    return CpuState(not lost and not halted_all and len(set(looks)) > 1, "; ".join(words))


# IDT=     ffff82d04057f000 00000fff
_IDT = re.compile(r"IDT=\s*([0-9a-f]{16})")


def in_guest_mode(registers: str) -> bool:
    """Whether a CPU runs a PVH or HVM guest: its interrupt table is not Xen's, which lies at 0xffff82.. or 0xffff83..."""
    return any(not base.startswith(("ffff82", "ffff83")) for base in _IDT.findall(registers))


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
