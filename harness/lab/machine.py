# SPDX-License-Identifier: BSD-2-Clause
"""The QEMU machine of a lab: cold boot, launch, monitor, and disks. :mod:`harness.lab.snapshot` saves and restores it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError, LabDead
from harness.lab.criu import CriuSnapshotter, View, pid_in_namespace
from harness.lab.process import Process
from harness.lab.qemu import Drive, MachineSpec, Qemu, command
from harness.lab.registers import CpuState, cpu_state
from harness.lab.store import LabImage

# Of virtio-scsi. Disks with overlays have the numbers from 1 on.
_LAST_SCSI_ID = 255


class Machine:
    """One QEMU with overlays, memory and logs in ``directory`` and its sockets in ``sockets``. They belong to it alone.

    With ``criu`` it runs in its own namespaces, so that CRIU can save it.
    """

    def __init__(
        self,
        image: LabImage,
        qemu: Qemu,
        spec: MachineSpec,
        directory: Path,
        sockets: Path,
        *,
        keep: bool,
        criu: CriuSnapshotter | None = None,
    ) -> None:
        self.image, self.qemu, self.spec, self.keep, self.criu = image, qemu, spec, keep, criu
        self.directory, self.sockets = directory, sockets
        self._view = criu.view if criu else View(directory, sockets)
        self.process: Process | None = None
        self.ssh_port = 0
        self.drives: list[Drive] = []
        self._shared = 0
        self._forwarded: list[int] = []
        self.ram = directory / "ram"
        """The file that the memory was mapped from at the start."""
        self.shares_ram = False
        """Whether the memory's contents are in that file; otherwise it is mapped copy-on-write."""
        self._lock = threading.RLock()

    @property
    def seen_sockets(self) -> Path:
        """The directory ``sockets`` by the path that QEMU sees, which may run in its own namespaces."""
        return self._view.sockets

    # -- starting -----------------------------------------------------------------------------------------------------

    def boot(self, initrd: Path, deadline: Deadline) -> None:
        """Start cold, with memory in a shared file, so that a checkpoint costs little."""
        self.clean()
        self.overlay("root", self.image.directory / "root.qcow2")
        self.launch(self.directory / "ram", True, initrd, False, deadline)

    def adopt(self, pid: int, ssh_port: int, drives: tuple[Drive, ...]) -> None:
        """Take over a running machine."""
        self.process = Process(self.sockets, self.directory / "qemu.log", pid)
        self.ssh_port, self.drives = ssh_port, list(drives)

    def clean(self) -> None:
        """Stop the machine and remove its overlays, memory and sockets."""
        self.stop()
        self.drives, self._shared, self._forwarded = [], 0, []
        for leftover in (*self.directory.glob("*.qcow2"), *self.directory.glob("ram"), *self.sockets.iterdir()):
            leftover.unlink()

    def launch(self, ram: Path, share: bool, initrd: Path, incoming: bool, deadline: Deadline) -> None:
        """Start a QEMU with its memory in ``ram``, shared or copy-on-write. ``incoming``: it waits for a migration stream."""
        self.ram, self.shares_ram = ram, share
        for attempt in range(5):
            self.ssh_port = _free_port()
            argv = command(
                self.qemu, self.spec, run=self._view.sockets, directory=self._view.directory, ssh_port=self.ssh_port, ram=ram,
                share_ram=share, drives=self.drives, xen=self.image.directory / "xen",
                vmlinuz=self.image.directory / "vmlinuz", initrd=initrd, incoming=incoming,
            )  # fmt: skip
            try:
                self.start(self.criu.namespace_command(self.directory, self.sockets, argv) if self.criu else argv, deadline)
                break
            except LabDead as exc:
                self.stop()
                # Another process may have bound the port since we found it free.
                if "host forwarding" not in str(exc) or attempt == 4:
                    raise

    def start(self, argv: Sequence[str], deadline: Deadline) -> None:
        """Start QEMU by the command ``argv`` and wait for its monitor."""
        self.process = Process.start(argv, self.sockets, self.directory / "qemu.log", keep=self.keep)
        self.process.connect(deadline)
        if self.criu:
            self.process.pid = pid_in_namespace(self.process.pid)

    def forward_ssh(self) -> None:
        """Forward a free port to dom0's ssh. Raises LabDead if QEMU refuses."""
        self.ssh_port = self._forward(22)

    def stop_forwarding(self) -> None:
        """Undo :meth:`forward_ssh`, :meth:`launch` and :meth:`connect`."""
        for ours in (self.ssh_port, *self._forwarded):
            self.monitor(f"hostfwd_remove tcp:127.0.0.1:{ours}")
        self._forwarded.clear()

    def connect(self, port: int) -> socket.socket:
        """A TCP connection to ``port`` of dom0, without ssh. It comes from 10.0.2.2. Raises LabDead."""
        ours = self._forward(port)
        # QEMU accepts a connection before dom0 does, and resets it if the forwarding ends in between.
        self._forwarded.append(ours)
        try:
            return socket.create_connection(("127.0.0.1", ours), timeout=10)
        except OSError as exc:
            raise LabDead(f"QEMU does not accept a connection to port {port} of dom0: {exc}") from exc

    def _forward(self, port: int) -> int:
        """Forward a free port of this machine to ``port`` of dom0, and return it. Raises LabDead if QEMU refuses."""
        for _ in range(5):
            ours = _free_port()
            refused = self.monitor(f"hostfwd_add tcp:127.0.0.1:{ours}-:{port}").strip()
            if not refused:
                return ours
        raise LabDead(f"QEMU does not forward port {ours}: {refused}")

    # -- disks --------------------------------------------------------------------------------------------------------

    def plug(self, path: Path, fmt: str = "raw") -> Drive:
        """Give dom0 the image at ``path`` as a SCSI disk, through an overlay: nothing is copied or written to the image."""
        with self._lock:
            taken = {drive.number for drive in self.drives}
            number = next(n for n in range(1, 250) if n not in taken)
            file = self.overlay(f"fxh{number}", path, fmt)
            drive = Drive(number, file.name)
            try:
                self._add(drive, self._view.directory / drive.file, {"driver": "qcow2", "discard": "unmap"})
            except InfrastructureError:
                file.unlink(missing_ok=True)
                raise
            self.drives.append(drive)
        return drive

    def share(self, path: Path) -> Drive:
        """Give dom0 the raw file ``path`` itself as a SCSI disk. Another machine may have it, too. No checkpoint may be saved then."""
        with self._lock:
            self._shared += 1
            drive = Drive(_LAST_SCSI_ID - self._shared, str(path))
            self._add(drive, path, {"driver": "raw"}, share_rw=True)
        return drive

    def _add(self, drive: Drive, file: Path, node: Mapping[str, object], *, share_rw: bool = False) -> None:
        """Add the block node of a disk and its device, or neither. Raises InfrastructureError."""
        process = self.running()
        below = {"driver": "file", "filename": str(file)}
        process.command("blockdev-add", **{"node-name": drive.serial, **node, "file": below})
        try:
            process.command("device_add", **drive.device, **({"share-rw": True} if share_rw else {}))
        except InfrastructureError:
            with contextlib.suppress(InfrastructureError):
                process.command("blockdev-del", **{"node-name": drive.serial})
            raise

    def unplug(self, drive: Drive) -> None:
        """Remove a disk that dom0 no longer uses, and its overlay."""
        with self._lock:
            process = self.running()
            process.command("device_del", id=f"dev-{drive.serial}")

            def released() -> None:
                try:
                    process.command("blockdev-del", **{"node-name": drive.serial})
                except LabDead as exc:
                    raise ConditionNotMet(str(exc)) from exc

            Deadline(10).wait(f"dom0 to release {drive.serial}", released, 0.02)
            self.drives.remove(drive)
            (self.directory / drive.file).unlink(missing_ok=True)

    def overlay(self, node: str, backing: Path, fmt: str = "qcow2") -> Path:
        """Create the overlay of ``node`` in the machine's directory. Raises InfrastructureError."""
        # Use a new name each time: QEMU may still have a disk open that was just unplugged.
        target = self.directory / (f"{node}.qcow2" if node == "root" else f"{node}-{secrets.token_hex(3)}.qcow2")
        overlay(backing, target, fmt)
        return target

    # -- the running QEMU ---------------------------------------------------------------------------------------------

    def running(self) -> Process:
        """The QEMU process. Raises LabDead if it does not run."""
        if self.process is None:
            raise LabDead("the lab's machine is not running")
        return self.process

    def cpu_state(self) -> CpuState:
        """Sample the registers of all CPUs within half a second."""
        samples = []
        for _ in range(4):
            samples.append(self.registers())
            time.sleep(0.15)
        return cpu_state(samples)

    def registers(self) -> str:
        return self.monitor("info registers -a")

    def monitor(self, line: str) -> str:
        """The answer of QEMU's human monitor to the command ``line``."""
        return str(self.running().command("human-monitor-command", **{"command-line": line}))

    def stop(self) -> None:
        """End QEMU. A second call does nothing."""
        if self.process is not None:
            self.process.stop()
            self.process = None


def overlay(backing: Path, target: Path, fmt: str) -> None:
    """Create a qcow2 at ``target`` for the differences from ``backing``. Raises InfrastructureError."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", fmt, "-b", str(backing.resolve()), str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfrastructureError(
            f"cannot make an overlay of {backing}: {done.stderr.strip()}",
            hint=f"check with `qemu-img info` that it is a disk image of format {fmt}, and check the free space at {target.parent}",
        )


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
