# SPDX-License-Identifier: BSD-2-Clause
"""Records of labs, by which other processes find them, and the removal of leftovers of killed processes."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness import paths, store
from harness.lab.process import listening
from harness.lab.qemu import Drive, MachineSpec

# Seconds in which the owner of a new directory starts QEMU and writes the record.
_STARTS = 60.0


@dataclass(frozen=True)
class LabRecord:
    """``image`` is the directory of the lab's image; ``checkpoint`` is the checkpoint that its disks depend on."""

    name: str
    image: str
    qemu: str
    qemu_pid: int
    owner_pid: int
    kept: bool
    ssh_port: int
    accel: str
    why: str
    checkpoint: str
    started: str
    host_key: str
    spec: MachineSpec
    drives: tuple[Drive, ...] = ()
    stopped: bool = False
    in_namespace: bool = False
    """Whether its QEMU runs in its own namespaces (:mod:`harness.lab.criu`). The file calls this ``chamber``."""

    @property
    def image_path(self) -> Path:
        return Path(self.image)

    def key(self) -> str:
        """The private ssh key for root in the lab's dom0."""
        return (directory(self.name) / "id_ed25519").read_text()


def directory(name: str) -> Path:
    return paths.store() / "run" / name


def sockets(name: str) -> Path:
    return paths.runtime() / name


def names() -> list[str]:
    root = paths.store() / "run"
    # A lab's name begins with a letter or a digit.
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []


def read(name: str) -> LabRecord | None:
    """The record of a lab, or None if it is missing or unreadable."""
    try:
        data = json.loads((directory(name) / "lab.json").read_text())
        data["spec"] = MachineSpec(**(data["spec"] | {"drives": tuple(data["spec"]["drives"])}))
        data["drives"] = tuple(Drive(**drive) for drive in data["drives"])
        data["in_namespace"] = data.pop("chamber", False)
        return LabRecord(**data)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(record: LabRecord, private_key: str) -> None:
    """Write the record and the files for an ssh client: the private key and the pinned host key."""
    lab = directory(record.name)
    key = lab / "id_ed25519"
    if not key.exists() or key.read_text() != private_key:
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_text(private_key)
    (lab / "known_hosts").write_text(f"[127.0.0.1]:{record.ssh_port} {record.host_key}\n")
    _write(record)


def stopped(name: str) -> None:
    record = read(name)
    if record is not None:
        _write(replace(record, stopped=True))


def _write(record: LabRecord) -> None:
    data = asdict(record)
    data["chamber"] = data.pop("in_namespace")
    _replace(directory(record.name) / "lab.json", json.dumps(data, indent=1))


def mark_dead(name: str, why: str) -> None:
    if directory(name).is_dir():
        _replace(directory(name) / "dead", why + "\n")


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def state(name: str) -> str:
    """``up``, ``starting``, ``stopped``, ``stale`` (its owner or its QEMU was killed), or ``""`` if there is no such lab."""
    if not directory(name).is_dir():
        return ""
    if listening(sockets(name) / "qmp"):
        return "up"
    record = read(name)
    if record is None:
        try:
            # Another process makes the directory first, then the record.
            return "starting" if time.time() - directory(name).stat().st_mtime < _STARTS else "stale"
        except FileNotFoundError:  # it has removed the lab
            return ""
    if not record.stopped and _alive(record.owner_pid):
        return "up"  # it is being restored: one QEMU has ended, and the next one starts
    return "stopped" if record.stopped or record.kept else "stale"


def sweep() -> list[str]:
    """Remove leftovers of killed processes: labs without an owner, unfinished builds and checkpoints. Returns their names."""
    gone = []
    for name in names():
        if state(name) == "stale":
            shutil.rmtree(directory(name), ignore_errors=True)
            shutil.rmtree(sockets(name), ignore_errors=True)
            gone.append(f"lab {name}")
    labs = paths.store() / "labs"
    if labs.is_dir():
        gone += [f"unfinished build {work.name}" for work, _ in store.sweep("labs")]
        for half in labs.glob("*/checkpoints/.*@*"):
            if half.is_dir() and half.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(half, ignore_errors=True)
                gone.append(f"unfinished checkpoint {half.name}")
        for half in labs.glob("*/checkpoints/.gone-*"):
            shutil.rmtree(half, ignore_errors=True)
    return gone


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
