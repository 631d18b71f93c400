# SPDX-License-Identifier: BSD-2-Clause
"""Whole-machine checkpoints: memory, devices and disks as they were, shared by all labs restored from them.

``ram`` is the machine's memory as a sparse file. A restored lab maps it copy-on-write, so restoring reads next to nothing
and many labs share one copy. ``state`` is QEMU's migration stream of the devices alone (capability x-ignore-shared).
A checkpoint belongs to one QEMU version, one machine and one lab image; another finds none of its own and makes it anew.

A hot one is the QEMU process itself (:mod:`harness.lab.hot`), as CRIU's images, its ``ram``, and its disks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from harness import store
from harness.errors import InfrastructureError, LabDead, UsageError
from harness.lab.keys import Keys
from harness.lab.qemu import MachineSpec, Qemu, command
from harness.lab.sparse import copy_sparse
from harness.lab.store import LabImage, on_disk, used

READY = "ready"
# READY once more, with what every case uses translated.
READY_HOT = "ready-hot"
# What suites make begins with one of these.
REST = "rest-"
WARM = "warm-"


class CheckpointBroken(LabDead):
    """QEMU could not load a checkpoint; it has been removed, to be made anew."""


_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """``directory`` holds ``ram``, ``state``, ``root.qcow2``, a qcow2 for each drive, and ``meta.json``.

    A ``hot`` one has CRIU's images instead of the state, and its disks under the names that QEMU has opened.
    ``parent`` is the ordinary one that it stands on.
    """

    directory: Path
    name: str
    spec: MachineSpec
    keys: Keys
    parent: str = ""
    note: str = ""
    hot: bool = False
    identity: str = ""
    """Of its ``meta.json``: a checkpoint that is created again gets another. See :func:`_identity`."""

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def ram(self) -> Path:
        return self.directory / "ram"

    @property
    def memory(self) -> Path:
        """The file that a QEMU restored from it has mapped: a hot one's may be that of what it stands on."""
        return self.ram if self.ram.exists() else self.directory.parent / self.parent / "ram"

    def disk(self, node: str) -> Path:
        return next(self.directory.glob(f"{node}-*.qcow2"), self.directory / f"{node}.qcow2")

    def is_there(self) -> bool:
        """Whether the directory still holds this checkpoint: another process may replace it while we read its files."""
        return _identity(self.directory / "meta.json") == self.identity

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return on_disk(self.directory.iterdir())


def fingerprint(spec: MachineSpec, qemu: Qemu, hot: str = "") -> str:
    """What must agree for a checkpoint to be usable, as a short hash: QEMU's version and its whole command line.

    And for a hot one the key of what keeps it, ``hot``.
    """
    here = Path("x")
    plain = Qemu("qemu", qemu.version)
    argv = command(
        plain, spec, run=here, directory=here, ssh_port=0, ram=here, share_ram=False, xen=here, vmlinuz=here, initrd=here
    )
    return hashlib.sha256(json.dumps([_FORMAT, qemu.version, argv, *([hot] if hot else [])]).encode()).hexdigest()[:10]


def path(image: LabImage, name: str, spec: MachineSpec, qemu: Qemu, hot: str = "") -> Path:
    """Where a checkpoint of that name is or would be. Raises UsageError for a name that is none."""
    if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UsageError(f"checkpoint name {name!r}", hint="use letters, digits, '-', '_' and '.'")
    return image.directory / "checkpoints" / f"{name}@{fingerprint(spec, qemu, hot)}"


def lock(image: LabImage, name: str, spec: MachineSpec, qemu: Qemu, hot: str = "") -> FileLock:
    """Held by whoever makes a checkpoint, so that others wait for it instead of making it, too."""
    target = path(image, name, spec, qemu, hot)
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(target.with_name(f".{target.name}.lock"))


def find(image: LabImage, name: str, spec: MachineSpec, qemu: Qemu, hot: str = "") -> Checkpoint | None:
    """The checkpoint, or None when this QEMU and machine have none of that name (or a damaged one)."""
    found = read(path(image, name, spec, qemu, hot))
    try:
        if found is not None:
            used(found.directory)
    except FileNotFoundError:  # another has removed it since
        return None
    return found


def read(directory: Path) -> Checkpoint | None:
    """The checkpoint in ``directory``, or None where there is none, files of it are missing or cut, or what it stands on is new."""
    try:
        identity = _identity(directory / "meta.json")
        meta = json.loads((directory / "meta.json").read_text())
        if any((directory / name).stat().st_size != size for name, size in meta["sizes"].items()):
            return None
        if meta["base"] != _identity(directory.parent / meta["parent"] / "root.qcow2"):
            return None
        made = meta["spec"] | {"drives": tuple(meta["spec"]["drives"])}
        name = directory.name.rpartition("@")[0]
        hot = meta.get("hot", False)
        return Checkpoint(directory, name, MachineSpec(**made), Keys(**meta["keys"]), meta["parent"], meta["note"], hot, identity)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def listing(image: LabImage) -> list[Path]:
    """Directories of all checkpoints of an image, for whatever QEMU, the longest unused first."""
    directory = image.directory / "checkpoints"
    found = []
    for there in directory.iterdir() if directory.is_dir() else ():
        with suppress(FileNotFoundError):  # others remove, too
            if (there / "meta.json").is_file():
                found.append((there.stat().st_mtime, there))
    return [there for _, there in sorted(found)]


def save(image: LabImage, checkpoint: Checkpoint, files: dict[str, Path], qemu: Qemu, *, anew: bool = True) -> Checkpoint:
    """Move ``files`` (as :class:`Checkpoint` has them) in, atomically; an older checkpoint of the name goes.

    Or, without ``anew``, stays, and is returned: somebody was quicker, and others may be loading it.
    ``checkpoint.directory`` is where it shall be. Raises InfrastructureError when the disk is full.
    """
    target = checkpoint.directory
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, source in files.items():
            if name == "ram":
                copy_sparse(source, work / name)
                shutil.copymode(source, work / name)  # CRIU looks whether a file is as it was
            else:
                shutil.move(source, work / name)
                (work / name).chmod(0o400)
        meta = {
            "spec": asdict(checkpoint.spec), "keys": asdict(checkpoint.keys), "parent": checkpoint.parent,
            "base": _identity(target.parent / checkpoint.parent / "root.qcow2"), "note": checkpoint.note, "hot": checkpoint.hot, "qemu": qemu.label,
            "sizes": {name: (work / name).stat().st_size for name in files},
        }  # fmt: skip
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        (work / "meta.json").chmod(0o600)
        with FileLock(target.parent / ".saving.lock"):
            there = None if anew else read(target)
            if there is not None:
                shutil.rmtree(work)
                return there
            if target.exists():
                remove(target)
            work.rename(target)
    except OSError as exc:
        shutil.rmtree(work, ignore_errors=True)
        raise InfrastructureError(
            f"the checkpoint {checkpoint.name} could not be kept at {target.parent}: {exc.strerror}",
            hint="free some space there",
        ) from exc
    return replace(checkpoint, identity=_identity(target / "meta.json"))


def _identity(file: Path) -> str:
    """Tell a file from one that replaces it under the same name; "" where there is none.

    The inode number alone is not enough: a file system gives the number of a removed file to the next one.
    """
    try:
        there = file.stat()
    except OSError:
        return ""
    return f"{there.st_ino}-{there.st_mtime_ns}"


def is_disposable(name: str) -> bool:
    """Whether a checkpoint is made anew when it cannot be used: one that a user made has to outlive a change of kernel."""
    return name.startswith((REST, WARM, READY_HOT))


def of_suites(directory: Path) -> bool:
    """Whether suites made it, and make it anew when they need it."""
    return directory.name.startswith((REST, WARM))


def parents(image: LabImage) -> set[Path]:
    """Those on whose disks others stand."""
    made = (read(path) for path in listing(image))
    return {one.directory.with_name(one.parent) for one in made if one is not None and one.parent}


def remove(directory: Path) -> None:
    """Take it out of sight at once, then delete it. Labs that run from it keep the open files."""
    store.remove(directory)
