"""Builds a lab's parts from Debian packages: root disk, hypervisor, dom0 kernel, initrds.

The only room of the lab that needs Linux (mmdebstrap, e2fsprogs, a C compiler). No root: mmdebstrap does its work in
a user namespace, and everything that needs ownership happens in its hooks, as the namespace's root.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from harness import paths, stamp
from harness.errors import BuildError, UsageError
from harness.lab import bzimage, cpio
from harness.lab.recipe import Recipe
from harness.lab.store import LabImage, used

log = logging.getLogger("fxh.lab.build")

_ROOT_MIB = 640
# Room in dom0 for uploads, dumps and logs; holes cost nothing.
_GROWN_MIB = 6144

# Files of images/dom0 that the hook moves to their places in the root.
_INTO_ROOT = ("init", "xl", "vif", "block")

# Debian packages that bring the tools; a name differs from its package now and then.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "cc": "gcc",
    "xz": "xz-utils",
}


def missing_packages() -> list[str]:
    """Debian packages that bring the tools a build needs and this machine lacks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return sorted({package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)})


def build(recipe: Recipe, *, force: bool = False) -> LabImage:
    """The lab for ``recipe``, from the store or built now (one builder at a time; the others wait and find it there).

    Raises BuildError with the failing tool's last lines; a half build never stays in the store.
    """
    target = paths.store() / "labs" / recipe.key
    if not force and _whole(target):
        used(target)
        return LabImage(target)
    missing = missing_packages()
    if missing:
        raise BuildError(
            f"a lab build needs Debian packages this machine lacks: {' '.join(missing)}",
            mend=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not force and _whole(target):
            return LabImage(target)
        if target.exists():
            shutil.rmtree(target)
        with _scratch(target) as work:
            _make(recipe, work)
            work.rename(target)
    return LabImage(target)


def find(recipe: Recipe) -> LabImage | None:
    """The image of ``recipe`` where the store has it, whole."""
    target = paths.store() / "labs" / recipe.key
    return LabImage(target) if _whole(target) else None


def _whole(target: Path) -> bool:
    """Whether the store has it undamaged; damage is told, and mended by building anew."""
    if not target.exists():
        return False
    damage = LabImage(target).damage()
    if damage:
        log.warning("lab image %s is damaged (%s) and is built anew", target.name, damage)
    return not damage


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.making-", dir=target.parent))
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make(recipe: Recipe, work: Path) -> None:
    started = time.monotonic()
    free = shutil.disk_usage(work).free
    if free < 2 << 30:
        raise BuildError(
            f"{free >> 20} MiB free at {work.parent}, a lab build needs 2048",
            mend="free some space, or point FXH_STORE at a larger disk",
        )
    files = dict(recipe.files)
    parts = work / "parts"
    parts.mkdir()
    (work / "pae_first.c").write_bytes(files["dom0/pae_first.c"])
    library, code = str(work / "pae_first.so"), str(work / "pae_first.c")
    _run(["cc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, code, "-ldl"], work)
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
    log.info("making dom0's root from Debian %s", recipe.suite)
    _run(
        [
            "mmdebstrap", "--mode=auto", "--format=null", "--variant=essential", "--architectures=amd64",
            f"--include={','.join(recipe.packages)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", '--aptopt=Apt::Install-Recommends "false"',
            *(f"--customize-hook=upload {shlex.quote(str(work / name))} /fxh-{name}" for name in _INTO_ROOT),
            f"--customize-hook=upload {shlex.quote(str(work / 'pae_first.so'))} /fxh-pae.so",
            f"--customize-hook={setup}\n{files['dom0/shrink.sh'].decode()}",
            f"--customize-hook=copy-out /fxh-out {shlex.quote(str(parts))}",
            recipe.suite,
        ],
        work,
    )  # fmt: skip
    out = parts / "fxh-out"
    initrd = _initrd(out, "initrd", {"init": (0o755, files["dom0/initrd-init"])})
    (work / "initrd").write_bytes(gzip.compress(initrd, 6, mtime=0))
    control = work / "control"
    control.mkdir()
    shutil.copy(out / "vmlinuz", control / "vmlinuz")
    (control / "vmlinux").write_bytes(bzimage.vmlinux((out / "vmlinuz").read_bytes()))
    applets = (out / "applets").read_text().split()
    links = {"sbin": (cpio.LINK, b"bin"), **{f"bin/{name}": (cpio.LINK, b"busybox") for name in applets if name != "busybox"}}
    own = {name.removeprefix("control/"): (0o755, data) for name, data in recipe.files if name.startswith("control/")}
    ramdisk = _initrd(out, "control", {**links, **own})
    (control / "initrd").write_bytes(gzip.compress(ramdisk, 6, mtime=0))
    (control / "initrd.cpio").write_bytes(ramdisk)
    _hypervisor(recipe.hypervisor or out / "xen.gz", work / "xen")
    shutil.copy(recipe.dom0_kernel or out / "vmlinuz", work / "vmlinuz")
    raw = out / "root.img"
    with raw.open("r+b") as file:
        file.truncate(_GROWN_MIB << 20)
    _run(["resize2fs", str(raw)], work)
    _run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", str(raw), str(work / "root.qcow2")], work)
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


def _initrd(out: Path, order: str, own: Mapping[str, tuple[int, bytes]]) -> bytes:
    """With the modules of ``order``, the programs laid out for it, and ``own`` files (as :func:`cpio.archive` takes them)."""
    names = (out / f"{order}.order").read_text().split()
    files = {f"modules/{name}": (0o644, (out / "modules" / name).read_bytes()) for name in names}
    files["modules.order"] = (0o644, "\n".join(names).encode() + b"\n")
    files["bin/busybox"] = (0o755, (out / "busybox").read_bytes())
    files |= own
    programs = out / f"{order}-root"
    for path in sorted(programs.rglob("*")) if programs.is_dir() else ():
        if path.is_file():
            files[str(path.relative_to(programs))] = (0o755, path.read_bytes())
    for mountpoint in ("mnt", "proc", "root", "sys", "tmp"):
        files[f"{mountpoint}/.keep"] = (0o644, b"")
    return cpio.archive(files)


def _hypervisor(source: Path, target: Path) -> None:
    """QEMU's multiboot loader wants the plain ELF file; Debian and Xen's own build install it gzipped."""
    data = source.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:4] != b"\x7fELF":
        raise UsageError(f"hypervisor {source}: neither an ELF file nor a gzipped one", mend="give xen.gz or xen, not xen.efi")
    target.write_bytes(data)


def _run(argv: list[str], work: Path) -> None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    with (work / "build.log").open("ab") as file:
        file.write(f"$ {argv[0]} ...\n".encode())
        file.flush()
        status = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, "PATH": path}
        ).returncode
    if status:
        text = (work / "build.log").read_text(errors="replace")
        kept = paths.store() / "labs" / "last-failed-build.log"
        kept.write_text(text)
        tail = "\n".join(text.splitlines()[-15:])
        raise BuildError(f"{argv[0]} ended with {status}:\n{tail}", mend=f"the whole log is {kept}")
