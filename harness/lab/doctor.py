# SPDX-License-Identifier: BSD-2-Clause
"""Check the prerequisites of a lab on this machine, each with a hint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from harness import debian, paths
from harness.errors import BuildError, HarnessError
from harness.hosts.doctor import FAIL, OK, WARN, Check
from harness.lab import accel, build, checkpoint, criu_probe, qemu, recipe, registry, tools
from harness.lab.checkpoint import CheckpointKind
from harness.lab.factory import LabSpec, machine

_SPACE = 3072


def examine(lab: LabSpec) -> Iterator[Check]:
    """Check without starting a lab. KVM and CRIU are tried if their result is not cached."""
    free = shutil.disk_usage(paths.store()).free >> 20
    hint = "free some, or point FXH_STORE at a larger disk"
    yield Check("store", OK if free >= _SPACE else FAIL, f"{paths.store()}, {free} MiB free", "" if free >= _SPACE else hint)
    try:
        found = qemu.find(lab.binary)
    except HarnessError as exc:
        yield Check("QEMU", FAIL, exc.message, exc.hint)
        return
    yield Check("QEMU", OK, f"{found.label}, {found.binary}")
    chosen = accel.choose(found, lab.accel)
    slow = chosen.name == "tcg" and lab.accel != "tcg"
    yield Check("KVM", WARN if slow else OK, chosen.why, "no action is needed: labs work, but more slowly" if slow else "")
    if chosen.name == "tcg":
        criu, why = criu_probe.find()
        hint = "" if criu else "no action is needed: labs work, but more slowly (docs/lab.md, hot checkpoints)"
        yield Check("hot checkpoints", OK if criu else WARN, why, hint)
    yield _parts()
    yield _disks()
    image = build.find(recipe.load(lab.xen, lab.hypervisor, lab.dom0_kernel))
    if image is None:
        yield Check(
            "lab image", WARN, f"none for Xen {lab.xen} yet", f"fxh lab build --xen {lab.xen}; otherwise the first use builds it"
        )
        return
    yield Check("lab image", OK, f"{image.key}, {image.size >> 20} MiB")
    ready = checkpoint.find(image, CheckpointKind.READY.name_of(), machine(lab, chosen), found)
    if ready is None:
        yield Check(
            "checkpoint",
            WARN,
            "no valid ready checkpoint for this QEMU",
            "no action is needed: the first use creates it within a minute",
        )
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


def _parts() -> Check:
    missing = tools.missing_packages()
    if missing:
        return Check(
            "build tools", WARN, f"missing: {', '.join(missing)}", "fxh setup; or fxh lab import FILE, from a machine that has them"
        )
    try:
        tools.require_ids()
    except BuildError as exc:
        return Check("build tools", WARN, exc.message, exc.hint)
    return Check("build tools", OK, "all installed")
