# SPDX-License-Identifier: BSD-2-Clause
"""What a lab needs of this machine, as checks with their hints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from harness import debian, paths
from harness.errors import HarnessError
from harness.hosts.doctor import FAIL, OK, WARN, Check
from harness.lab import accel, build, checkpoint, criu_probe, qemu, recipe, registry, tools
from harness.lab.checkpoint import CheckpointKind
from harness.lab.factory import LabSpec, machine

_SPACE = 3072


def examine(wish: LabSpec) -> Iterator[Check]:
    """Without starting anything, but for the probes of KVM and CRIU where their answer is not known yet."""
    free = shutil.disk_usage(paths.store()).free >> 20
    hint = "free some, or point FXH_STORE at a larger disk"
    yield Check("store", OK if free >= _SPACE else FAIL, f"{paths.store()}, {free} MiB free", "" if free >= _SPACE else hint)
    try:
        found = qemu.find(wish.binary)
    except HarnessError as exc:
        yield Check("QEMU", FAIL, exc.message, exc.hint)
        return
    yield Check("QEMU", OK, f"{found.label}, {found.binary}")
    chosen = accel.choose(found, wish.accel)
    slow = chosen.name == "tcg" and wish.accel != "tcg"
    yield Check("KVM", WARN if slow else OK, chosen.why, "labs work, more slowly: nothing needs to be done" if slow else "")
    if chosen.name == "tcg":
        kept, why = criu_probe.find()
        hint = "" if kept else "labs work, more slowly: nothing needs to be done (docs/lab.md, hot checkpoints)"
        yield Check("hot checkpoints", OK if kept else WARN, why, hint)
    yield _parts(wish)
    yield _disks()
    image = build.find(recipe.load(wish.xen, wish.hypervisor, wish.dom0_kernel))
    if image is None:
        yield Check(
            "lab image", WARN, f"none for Xen {wish.xen} yet", f"fxh lab build --xen {wish.xen}; the first use does it by itself"
        )
        return
    yield Check("lab image", OK, f"{image.key}, {image.size >> 20} MiB")
    ready = checkpoint.find(image, CheckpointKind.READY.name_of(), machine(wish, chosen), found)
    if ready is None:
        yield Check("checkpoint", WARN, "no valid 'ready' of this lab for this QEMU", "the first use makes it: a minute")
    else:
        yield Check("checkpoint", OK, f"{ready.directory.name}, {ready.size >> 20} MiB")
    stale = [name for name in registry.names() if registry.state(name) == "stale"]
    yield Check(
        "labs",
        WARN if stale else OK,
        f"left by killed runs: {', '.join(stale)}" if stale else "none left behind",
        "fxh clean" if stale else "",
    )


def _disks() -> Check:
    """Whether disk images of all kinds can be read."""
    missing = debian.lacking(debian.READERS)
    if missing:
        return Check("disk images", WARN, f"qcow2 or ZFS cannot be read; missing: {', '.join(missing)}", "fxh setup")
    return Check("disk images", OK, "raw, qcow2, xz; UFS and ZFS")


def _parts(wish: LabSpec) -> Check:
    missing = tools.missing_packages()
    if missing:
        return Check("build tools", WARN, f"missing: {', '.join(missing)}", "fxh setup; or fxh lab import what was built elsewhere")
    return Check("build tools", OK, "all there")
