# SPDX-License-Identifier: BSD-2-Clause
"""List, stop and remove labs of other processes, for ``fxh lab list``, ``down`` and ``rm``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import paths, store
from harness.errors import InfrastructureError, UsageError
from harness.lab import checkpoint, registry
from harness.lab.checkpoint import CheckpointKind
from harness.lab.process import listening
from harness.lab.store import LabImage


@dataclass(frozen=True)
class Row:
    """One lab. ``disk`` is in bytes, without the image and the checkpoints that it shares with other labs."""

    name: str
    state: str
    xen: str
    pid: int
    owner: int
    port: int
    accel: str
    quirk: str
    checkpoint: str
    disk: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        owner = "kept" if not self.owner else f"owner {self.owner}"
        return (
            f"{self.name:<16} {self.state:<8} Xen {self.xen:<5} {self.accel:<4} port {self.port:<6} pid {self.pid:<8} {owner:<13} "
            f"{self.disk >> 20:>5} MiB  from {self.checkpoint}  quirk: {self.quirk}"
        )


def rows() -> tuple[Row, ...]:
    found = []
    for name in registry.names():
        record = registry.read(name)
        if record is None:
            continue
        state = "dead" if (registry.directory(name) / "dead").exists() else registry.state(name)
        quirk = "CR4.PAE set first (QEMU defect, docs/lab.md)" if record.spec.pae_first else "none"
        try:
            xen = str(LabImage(record.image_path).manifest["xen"])
        except (OSError, ValueError, KeyError):
            xen = "?"
        disk = store.size(registry.directory(name))
        found.append(
            Row(
                name, state, xen, record.qemu_pid, 0 if record.kept else record.owner_pid, record.ssh_port, record.accel, quirk,
                record.checkpoint, disk,
            )
        )  # fmt: skip
    return tuple(found)


def checkpoints() -> list[str]:
    """A line for each built lab and QEMU version: its named checkpoints, the number of the suites' ones, and the disk space."""
    lines = []
    labs = paths.store() / "labs"
    for directory in sorted(labs.iterdir()) if labs.is_dir() else ():
        image = LabImage(directory)
        by_qemu: dict[str, list[Path]] = {}
        for path in checkpoint.listing(image):
            with suppress(FileNotFoundError):  # another process has removed it
                by_qemu.setdefault(json.loads((path / "meta.json").read_text())["qemu"], []).append(path)
        for qemu, made in by_qemu.items():
            own = sorted(path.name.partition("@")[0] for path in made if not CheckpointKind.of(path.name).of_suites)
            suites = len(made) - len(own)
            size = sum(map(store.size, made)) >> 20
            what = ", ".join([*own, *([f"{suites} of suites"] if suites else [])])
            lines.append(f"checkpoints of {image.key}: {what}; {size} MiB, {qemu}")
    return lines


def down(name: str) -> None:
    """Stop a lab of any process. Raises UsageError if there is no such lab."""
    state = registry.state(name)
    record = registry.read(name)
    if not state or record is None:
        raise UsageError(f"no lab {name}", hint="`fxh lab list` shows the labs")
    sockets = registry.sockets(name)
    if listening(sockets / "qmp"):
        with suppress(ProcessLookupError):
            os.kill(record.qemu_pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while listening(sockets / "qmp"):
            if time.monotonic() > end:
                raise InfrastructureError(f"QEMU of lab {name} (pid {record.qemu_pid}) did not end within 5 s")
            time.sleep(0.01)
    for disk in (*registry.directory(name).glob("*.qcow2"), *registry.directory(name).glob("ram")):
        disk.unlink(missing_ok=True)
    registry.stopped(name)
    shutil.rmtree(sockets, ignore_errors=True)


def remove(name: str) -> None:
    """Stop a lab and remove its files. Raises UsageError if there is no such lab."""
    if not registry.directory(name).is_dir():
        raise UsageError(f"no lab {name}", hint="`fxh lab list` shows the labs")
    if registry.read(name) is not None:
        down(name)
    shutil.rmtree(registry.directory(name), ignore_errors=True)
    shutil.rmtree(registry.sockets(name), ignore_errors=True)
