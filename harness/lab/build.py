# SPDX-License-Identifier: BSD-2-Clause
"""Build a lab's parts from Debian packages: root disk, hypervisor, dom0 kernel, initrds.

Only this module and the builds of kernel and firmware need Linux (mmdebstrap, e2fsprogs, a C compiler). They do not need root:
mmdebstrap works in a user namespace, and its hooks run as the namespace's root.
"""

from __future__ import annotations

import gzip
import json
import logging
import shlex
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import stamp, store
from harness.errors import UsageError
from harness.images import kernelfile
from harness.lab import cpio, progress, tools
from harness.lab.recipe import Recipe
from harness.lab.standby import MODULES
from harness.lab.store import XEN_SYMBOLS, LabImage

log = logging.getLogger("fxh.lab.build")

_ROOT_MIB = 640
# Free space for a build, which takes about half of it.
_ROOM_MIB = 2048
# The size of dom0's disk, with space for uploads, dumps and logs. Holes take no space.
_GROWN_MIB = 6144

# The share of a build that is done when mmdebstrap prints a message.
_STEPS = {
    "running apt-get update": 0.02, "downloading packages": 0.08, "extracting archives": 0.2, "installing essential": 0.25,
    "installing remaining": 0.35, "running special hook: upload": 0.75, "running --customize-hook": 0.8,
    "running special hook: copy-out": 0.9, "success": 0.92,
}  # fmt: skip

# Files of images/dom0 that the hook moves into the root.
_INTO_ROOT = ("init", "xl", "vif", "block")


def build(recipe: Recipe, *, force: bool = False) -> LabImage:
    """The lab for ``recipe``, from the store or built now. One process builds, others wait for its result.

    Raises BuildError with the last lines of the failing tool. A failed build leaves nothing in the store.
    """

    if force or find(recipe) is None:
        tools.require()  # before the store removes a damaged lab with its checkpoints

    def create(work: Path) -> Path:
        _build(recipe, work)
        return work

    step = f"lab with Xen {recipe.xen}"
    return LabImage(store.get_or_create("labs", recipe.key, create, step=step, damage=_damage, free_mib=_ROOM_MIB, force=force))


def find(recipe: Recipe) -> LabImage | None:
    """The image of ``recipe``, if the store has it complete."""
    target = store.directory("labs") / recipe.key
    return LabImage(target) if store.usable(target, _damage) else None


def _damage(directory: Path) -> str:
    return LabImage(directory).damage()


def _build(recipe: Recipe, work: Path) -> None:
    started = time.monotonic()
    files = dict(recipe.files)
    parts = work / "parts"
    parts.mkdir()
    (work / "pae_first.c").write_bytes(files["dom0/pae_first.c"])
    library, code = str(work / "pae_first.so"), str(work / "pae_first.c")
    tools.run(["cc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, code, "-ldl"], work)
    for name in _INTO_ROOT:
        (work / name).write_bytes(files[f"dom0/{name}"])
    env = {
        "MODULES": " ".join(recipe.modules),
        "INITRD_MODULES": " ".join(recipe.initrd_modules),
        "CONTROL_MODULES": " ".join(recipe.control_modules),
        "CONTROL_PROGRAMS": " ".join(recipe.control_programs),
        "TRIM": " ".join(recipe.trim),
        "SIZE": str(_ROOT_MIB),
    }
    setup = "\n".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    log.info("building dom0's root from Debian %s", recipe.suite)
    with (
        ThreadPoolExecutor(1) as pool,
        progress.shown(log, "dom0's root", progress.Steps(progress.Lines(work / tools.LOG), _STEPS)),
    ):
        symbols = pool.submit(_hypervisor_symbols, recipe, work)
        _root(recipe, work, parts, setup)
        symbols.result()
    out = parts / "fxh-out"
    initrd = _initrd(out, {**_modules(out, "initrd"), "init": (0o755, files["dom0/initrd-init"])})
    # Neither is compressed: the first boot would spend ten seconds of an emulated CPU on it.
    (work / "initrd").write_bytes(initrd)
    kernel = (recipe.dom0_kernel or out / "vmlinuz").read_bytes()
    (work / "vmlinuz").write_bytes(kernelfile.linux_elf(kernel) or kernel)
    control = work / "control"
    control.mkdir()
    applets = (out / "applets").read_text().split()
    links = {"sbin": (cpio.LINK, b"bin"), **{f"bin/{name}": (cpio.LINK, b"busybox") for name in applets if name != "busybox"}}
    own = {name.removeprefix("control/"): (0o755, data) for name, data in recipe.files if name.startswith("control/")}
    ramdisk = _initrd(out, {**links, **own, **_programs(out / "control-root")})
    (control / "initrd").write_bytes(gzip.compress(ramdisk, 6, mtime=0))
    (control / "initrd.cpio").write_bytes(ramdisk)
    (control / MODULES).write_bytes(cpio.archive(_modules(out, "control")))
    _hypervisor(recipe.hypervisor or out / "xen.gz", work / "xen")
    raw = out / "root.img"
    with raw.open("r+b") as file:
        file.truncate(_GROWN_MIB << 20)
    tools.run(["resize2fs", str(raw)], work)
    tools.run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", str(raw), str(work / "root.qcow2")], work)
    shutil.rmtree(parts)
    for name in (*_INTO_ROOT, "pae_first.c", "pae_first.so"):
        (work / name).unlink()
    sizes = {p.name: p.stat().st_size for p in sorted(work.iterdir()) if p.is_file() and p.suffix != ".log"}
    manifest = {
        "xen": recipe.xen, "suite": recipe.suite, "packages": recipe.packages, "sizes": sizes,
        "hypervisor": str(recipe.hypervisor or ""), "dom0_kernel": str(recipe.dom0_kernel or ""),
        "built": stamp.now(),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _root(recipe: Recipe, work: Path, parts: Path, setup: str) -> None:
    """Let mmdebstrap make dom0's root, and its hooks the files in ``parts``/fxh-out. ``setup``: variables of shrink.sh."""
    tools.run(
        [
            "mmdebstrap", "--mode=auto", "--format=null", "--variant=essential", "--architectures=amd64",
            f"--include={','.join(recipe.packages)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", '--aptopt=Apt::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={usr}/lib/modules/*/kernel/{name}/*" for usr in ("", "/usr") for name in recipe.unused_modules),
            *(f"--customize-hook=upload {shlex.quote(str(work / name))} /fxh-{name}" for name in _INTO_ROOT),
            f"--customize-hook=upload {shlex.quote(str(work / 'pae_first.so'))} /fxh-pae.so",
            f"--customize-hook={setup}\n{dict(recipe.files)['dom0/shrink.sh'].decode()}",
            f"--customize-hook=copy-out /fxh-out {shlex.quote(str(parts))}",
            recipe.suite,
        ],
        work,
        # The lab has an initrd of its own, so the package of dom0's kernel does not have to make one.
        env={"INITRD": "No"},
    )  # fmt: skip


def _initrd(out: Path, own: Mapping[str, cpio.File]) -> bytes:
    """An initrd with busybox and the files ``own``."""
    mountpoints = {f"{name}/.keep": (0o644, b"") for name in ("mnt", "proc", "root", "sys", "tmp")}
    return cpio.archive({"bin/busybox": (0o755, (out / "busybox").read_bytes()), **own, **mountpoints})


def _modules(out: Path, what: str) -> dict[str, cpio.File]:
    """The modules of dom0's kernel for ``what``, and the order in which they are loaded."""
    names = (out / f"{what}.order").read_text().split()
    files = {f"modules/{name}": (0o644, (out / "modules" / name).read_bytes()) for name in names}
    return {**files, "modules.order": (0o644, "\n".join(names).encode() + b"\n")}


def _programs(root: Path) -> dict[str, cpio.File]:
    """The programs that shrink.sh copied below ``root`` for the control guest."""
    return {str(path.relative_to(root)): (0o755, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()}


def _hypervisor_symbols(recipe: Recipe, work: Path) -> None:
    """Keep the symbols of Debian's hypervisor now: the archive has only those of the newest version."""
    packed, output = work / "packed-syms", "symbols.log"
    path = f"/usr/lib/debug/boot/xen-syms-{recipe.xen}-amd64"
    tools.extract(recipe.hypervisor_debug, recipe.suite, path, packed, work, output=output)
    tools.keep_debug(packed, work / XEN_SYMBOLS, work, output=output)
    packed.unlink()


def _hypervisor(source: Path, target: Path) -> None:
    """Copy the hypervisor uncompressed: QEMU's multiboot loader needs ELF, but Debian and Xen's build install a gzip file."""
    data = source.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:4] != b"\x7fELF":
        raise UsageError(f"hypervisor {source}: neither an ELF file nor a gzipped one", hint="give xen.gz or xen, not xen.efi")
    target.write_bytes(data)
