# SPDX-License-Identifier: BSD-2-Clause
"""Checkpoints in the store: the saved memory, devices and disks of a whole machine, shared by all labs restored from them.

``ram`` is the machine's memory as a sparse file. A restored lab maps it copy-on-write, so a restore reads little and many labs
share one copy. ``state`` is QEMU's migration stream of the devices (:mod:`harness.lab.snapshot`). A checkpoint belongs to one
QEMU version, one machine and one lab image; others do not find it.

A hot checkpoint is the QEMU process (:mod:`harness.lab.criu`): CRIU's images, ``ram`` and the disks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from filelock import FileLock

from harness import store
from harness.errors import InfrastructureError, LabDead, UsageError
from harness.lab.keys import Keys
from harness.lab.qemu import MachineSpec, Qemu, command
from harness.lab.store import LabImage
from harness.sparse import copy_sparse


class CheckpointKind(Enum):
    """The purpose of a checkpoint. The value is its name in the store, or the prefix before its key."""

    READY = "ready"
    """The idle dom0 after its boot; always cold."""
    READY_HOT = "ready-hot"
    """READY after a run of the programs that every case uses; hot only. All other hot checkpoints are derived from it."""
    REST = "rest-"
    """The idle dom0 with the kernel and ramdisk of a guest."""
    WARM = "warm-"
    """A booted guest."""
    USER = ""
    """Made by `fxh lab checkpoint`; always cold, because it must outlive a change of kernel or processor."""

    def name_of(self, key: str = "") -> str:
        """The name in the store. READY and READY_HOT have no key."""
        return f"{self.value}{key}"

    @classmethod
    def of(cls, name: str) -> CheckpointKind:
        """The kind of a checkpoint, by its name or its directory's name in the store."""
        name = name.partition("@")[0]
        for kind in (cls.READY, cls.READY_HOT):
            if name == kind.value:
                return kind
        for kind in (cls.REST, cls.WARM):
            if name.startswith(kind.value):
                return kind
        return cls.USER

    @property
    def may_be_hot(self) -> bool:
        """Whether the harness can create it again, so that it may depend on the kernel and the processor."""
        return self in (CheckpointKind.READY_HOT, CheckpointKind.REST, CheckpointKind.WARM)

    @property
    def of_suites(self) -> bool:
        """Whether suites made it, and create it again when they need it."""
        return self in (CheckpointKind.REST, CheckpointKind.WARM)


class CheckpointBroken(LabDead):
    """QEMU could not load a checkpoint, or another process replaced it. It can be created again."""


_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """``directory`` holds ``ram``, ``state``, ``root.qcow2``, a qcow2 for each drive, and ``meta.json``.

    A ``hot`` one has CRIU's images instead of ``state``, and its disks have the names that QEMU has opened. ``parent`` is the
    directory name of the cold one that it depends on.
    """

    directory: Path
    name: str
    spec: MachineSpec
    keys: Keys
    parent: str = ""
    note: str = ""
    hot: bool = False
    identity: str = ""
    """The identity of its ``meta.json``; it changes when the checkpoint is created again. See :func:`_identity`."""

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def ram(self) -> Path:
        return self.directory / "ram"

    @property
    def memory(self) -> Path:
        """The file that a QEMU restored from it maps. A hot checkpoint may use its parent's."""
        return self.ram if self.ram.exists() else self.directory.parent / self.parent / "ram"

    def disk(self, node: str) -> Path:
        return next(self.directory.glob(f"{node}-*.qcow2"), self.directory / f"{node}.qcow2")

    def is_there(self) -> bool:
        """Whether the directory still holds this checkpoint: another process may replace it while we read its files."""
        return _identity(self.directory / "meta.json") == self.identity

    def remove(self) -> None:
        """See :func:`remove`."""
        remove(self.directory)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return store.size(self.directory)


def fingerprint(spec: MachineSpec, qemu: Qemu, snapshot_key: str = "") -> str:
    """A short hash of all that must agree for a checkpoint to be usable.

    It covers QEMU's version, its whole command line, and the snapshotter's key.
    """
    here = Path("x")
    plain = Qemu("qemu", qemu.version)
    argv = command(
        plain, spec, run=here, directory=here, ssh_port=0, ram=here, share_ram=False, xen=here, vmlinuz=here, initrd=here
    )
    parts = [_FORMAT, qemu.version, argv, *([snapshot_key] if snapshot_key else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]


def path(image: LabImage, name: str, spec: MachineSpec, qemu: Qemu, snapshot_key: str = "") -> Path:
    """The directory of the checkpoint ``name``, whether it exists or not. Raises UsageError for an invalid name."""
    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UsageError(f"checkpoint name {name!r}", hint="use letters, digits, '-', '_' and '.'")
    return image.directory / "checkpoints" / f"{name}@{fingerprint(spec, qemu, snapshot_key)}"


def lock(image: LabImage, name: str, spec: MachineSpec, qemu: Qemu, snapshot_key: str = "") -> FileLock:
    """The lock of the process that creates a checkpoint. Other processes wait for it instead of creating the same one."""
    target = path(image, name, spec, qemu, snapshot_key)
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(target.with_name(f".{target.name}.lock"))


def find(image: LabImage, name: str, spec: MachineSpec, qemu: Qemu, snapshot_key: str = "") -> Checkpoint | None:
    """The checkpoint ``name`` for this QEMU and machine, marked as used now. None if it is missing or damaged."""
    found = read(path(image, name, spec, qemu, snapshot_key))
    if found is None:
        return None
    store.mark_used(found.directory)
    return found if found.is_there() else None  # another process may have removed it


def read(directory: Path) -> Checkpoint | None:
    """The checkpoint in ``directory``, or None if it is missing or damaged, or if its parent has been replaced."""
    try:
        identity = _identity(directory / "meta.json")
        meta = json.loads((directory / "meta.json").read_text())
        if any((directory / name).stat().st_size != size for name, size in meta["sizes"].items()):
            return None
        if meta["base"] != _identity(directory.parent / meta["parent"] / "root.qcow2"):
            return None
        spec = meta["spec"] | {"drives": tuple(meta["spec"]["drives"])}
        name = directory.name.rpartition("@")[0]
        hot = meta.get("hot", False)
        return Checkpoint(directory, name, MachineSpec(**spec), Keys(**meta["keys"]), meta["parent"], meta["note"], hot, identity)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def listing(image: LabImage) -> list[Path]:
    """Directories of all checkpoints of an image, for all QEMU versions, the least recently used first."""
    directory = image.directory / "checkpoints"
    found = [entry for entry in directory.iterdir() if (entry / "meta.json").is_file()] if directory.is_dir() else []
    return sorted(found, key=store.last_used)


def save(image: LabImage, checkpoint: Checkpoint, files: dict[str, Path], qemu: Qemu, *, replace: bool = True) -> Checkpoint:
    """Move ``files`` (see :class:`Checkpoint`) to ``checkpoint.directory`` atomically.

    With ``replace``, an older checkpoint there is removed. Otherwise it stays and is returned: another process was faster, and
    a third one may be loading it. Raises InfrastructureError if the disk is full.
    """
    target = checkpoint.directory
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, source in files.items():
            if name == "ram":
                copy_sparse(source, work / name)
                shutil.copymode(source, work / name)  # CRIU checks that a mapped file has not changed
            else:
                shutil.move(source, work / name)
                (work / name).chmod(0o400)
        meta = {
            "spec": asdict(checkpoint.spec), "keys": asdict(checkpoint.keys), "parent": checkpoint.parent,
            "base": _identity(target.parent / checkpoint.parent / "root.qcow2"), "note": checkpoint.note, "hot": checkpoint.hot,
            "qemu": qemu.label, "sizes": {name: (work / name).stat().st_size for name in files},
        }  # fmt: skip
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        (work / "meta.json").chmod(0o600)
        with FileLock(target.parent / ".saving.lock"):
            existing = None if replace else read(target)
            if existing is not None:
                shutil.rmtree(work)
                return existing
            if target.exists():
                remove(target)
            work.rename(target)
    except OSError as exc:
        shutil.rmtree(work, ignore_errors=True)
        raise InfrastructureError(
            f"cannot save the checkpoint {checkpoint.name} at {target.parent}: {exc.strerror}",
            hint="free some space there",
        ) from exc
    return dataclasses.replace(checkpoint, identity=_identity(target / "meta.json"))


def _identity(file: Path) -> str:
    """A mark that differs between a file and its replacement under the same name; "" if the file is missing.

    The inode number alone is not enough: a file system gives the number of a removed file to the next one.
    """
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_ino}-{status.st_mtime_ns}"


def parents(image: LabImage) -> set[Path]:
    """Directories of the checkpoints that others depend on."""
    found = (read(path) for path in listing(image))
    return {one.directory.with_name(one.parent) for one in found if one is not None and one.parent}


def remove(directory: Path) -> None:
    """Hide a checkpoint at once, then delete it. Labs that run from it keep its files open."""
    store.remove(directory)
