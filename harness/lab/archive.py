# SPDX-License-Identifier: BSD-2-Clause
"""Export a built lab as one file, for a machine that has QEMU but not the build tools, and import it there."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

from harness import store, untar
from harness.digest import file_sha256
from harness.errors import InfrastructureError, UsageError
from harness.images import debugfile
from harness.lab.store import XEN_SYMBOLS, LabImage

IMPORTED = ".imported"
"""Marks a lab that this machine did not build, and perhaps cannot build."""
_SUMS = "SHA256SUMS.json"
# Bytes of an archive, which must also fit on the disk.
_MOST = 64 << 30
FILES = (
    "manifest.json",
    "root.qcow2",
    "xen",
    XEN_SYMBOLS,
    "vmlinuz",
    "initrd",
    "control/vmlinuz",
    "control/vmlinux",
    f"control/{debugfile.NAME}",
    "control/initrd",
    "control/initrd.cpio",
)


def export(image: LabImage, file: Path) -> int:
    """Write ``image`` without its checkpoints. Returns the archive's size in bytes. Raises InfrastructureError."""
    sums = {name: file_sha256(image.directory / name) for name in FILES}
    part = file.with_name(file.name + ".part")
    try:
        with tempfile.TemporaryDirectory() as scratch, tarfile.open(part, "w") as tar:
            listing = Path(scratch) / _SUMS
            listing.write_text(json.dumps({"key": image.key, "files": sums}, indent=1))
            tar.add(listing, f"fxh-lab/{_SUMS}")
            for name in FILES:
                tar.add(image.directory / name, f"fxh-lab/{name}")
        part.replace(file)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise InfrastructureError(f"cannot write {file}: {exc.strerror}", hint="check the free space there") from exc
    return file.stat().st_size


def import_(file: Path) -> LabImage:
    """Check an archive and add it to the store. Raises UsageError if it is damaged or not a lab archive."""
    labs = store.directory("labs")
    with store.lock(labs / "import"):
        return _import(file, Path(tempfile.mkdtemp(prefix=".making-import.", dir=labs)))


def _import(file: Path, work: Path) -> LabImage:
    work.chmod(0o755)
    try:
        (work / "control").mkdir()
        # Extract only known names, so that an archive cannot write to any other path.
        missing = {f"fxh-lab/{name}": name for name in (_SUMS, *FILES)}
        for member, contents in untar.members(file, _MOST):
            if contents is not None and (name := missing.pop(member.name, "")):
                with contents, (work / name).open("wb") as target:
                    shutil.copyfileobj(contents, target)
        if missing:
            raise KeyError(", ".join(missing.values()))
        listing = json.loads((work / _SUMS).read_text())
        for name in FILES:
            if file_sha256(work / name) != listing["files"][name]:
                raise UsageError(f"{file}: its member {name} is damaged", hint="export the lab again")
        key = str(listing["key"])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,80}", key):
            raise UsageError(f"{file}: invalid lab name {key!r}")
        (work / _SUMS).unlink()
        (work / IMPORTED).touch()

        def damage(directory: Path) -> str:
            return "" if (directory / "manifest.json").is_file() else "no manifest.json"

        return LabImage(store.get_or_create("labs", key, lambda _: work, step="a lab from an archive", damage=damage))
    except (tarfile.TarError, KeyError, ValueError) as exc:
        raise UsageError(f"{file}: not a lab archive, or damaged ({exc})", hint="create it with: fxh lab export FILE") from exc
    except OSError as exc:
        hint = "give an archive that `fxh lab export` wrote; free some space at FXH_STORE"
        raise InfrastructureError(f"cannot import {file}: {exc.strerror or exc}", hint=hint) from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
