# SPDX-License-Identifier: BSD-2-Clause
"""The parts of a lab: a recipe of ``images/dom0`` and, optionally, the user's hypervisor and dom0 kernel."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import paths, versions
from harness.digest import file_sha256
from harness.errors import UsageError

DEFAULT_XEN = "4.20"
# Increment when a builder's output for the same recipe changes.
_BUILDER, _KERNEL_BUILDER, _FIRMWARE_BUILDER = 8, 3, 1


@dataclass(frozen=True)
class KernelRecipe:
    """``package`` of Debian ``suite`` holds /usr/src/<package>.tar.xz; ``config`` has the lines that .config must contain.

    ``compiler`` is the code of the program that kbuild runs instead of gcc (images/dom0/kernel_cc.c). ``drop`` has pairs of a file of the source and the beginning of the lines to remove there. The C files of the directories
    ``unused`` are not unpacked. ``objects`` is the number of compiled files: it only serves to show the progress.
    """

    suite: str
    package: str
    config: bytes
    compiler: bytes = b""
    drop: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    objects: int = 0

    @property
    def key(self) -> str:
        """The name of its build in the store."""
        parts = f"builder {_KERNEL_BUILDER}\n{self.suite}\n{self.package}\n{self.drop}\n{self.unused}\n"
        digest = hashlib.sha256(parts.encode() + self.config + self.compiler)
        return f"{self.package}-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class FirmwareRecipe:
    """A UEFI firmware: ``platform`` of Debian ``suite``'s source ``package``, built by ``script`` with the packages ``tools``.

    ``defines`` go to edk2's ``build`` as its options -D.
    """

    suite: str
    package: str
    platform: str
    defines: tuple[str, ...]
    tools: tuple[str, ...]
    script: bytes

    @property
    def key(self) -> str:
        """The name of its build in the store."""
        digest = hashlib.sha256(f"builder {_FIRMWARE_BUILDER}\n{self.suite}\n{self.package}\n{self.platform}\n".encode())
        for part in (*self.defines, "|", *self.tools):
            digest.update(part.encode() + b"\n")
        digest.update(self.script)
        return f"{self.package}-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class Recipe:
    """One kind of lab. ``key`` is the name of its build in the store: a hash of all its inputs.

    ``hypervisor_debug`` is the package with the debugging information of the hypervisor in ``packages``.
    """

    xen: str
    suite: str
    packages: tuple[str, ...]
    hypervisor_debug: str
    modules: tuple[str, ...]
    unused_modules: tuple[str, ...]
    initrd_modules: tuple[str, ...]
    control_modules: tuple[str, ...]
    control_kernel: KernelRecipe
    control_programs: tuple[str, ...]
    trim: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]
    hypervisor: Path | None = None
    dom0_kernel: Path | None = None

    @property
    def base_key(self) -> str:
        """The identity of the root image, independent of the user's hypervisor and kernel."""
        digest = hashlib.sha256(f"builder {_BUILDER}\n".encode())
        lists = (
            self.packages,
            (self.hypervisor_debug,),
            self.modules,
            self.unused_modules,
            self.initrd_modules,
            self.control_modules,
        )
        for part in (self.suite, *(part for several in lists for part in (*several, "|"))):
            digest.update(part.encode() + b"\n")
        for part in (self.control_kernel.key, "|", *self.control_programs, "|", *self.trim):
            digest.update(part.encode() + b"\n")
        for name, data in self.files:
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return f"xen-{self.xen}-{digest.hexdigest()[:12]}"

    @property
    def key(self) -> str:
        own = [file_sha256(path)[:8] for path in (self.hypervisor, self.dom0_kernel) if path]
        return "-".join([self.base_key, *own])


def available() -> tuple[str, ...]:
    """The Xen versions that have a recipe, oldest first."""
    return tuple(sorted((path.stem for path in _directory().glob("[0-9]*.toml")), key=versions.numbers))


def available_quietly() -> tuple[str, ...]:
    """As :func:`available`, but empty if FXH_PROJECT is wrong. For help texts."""
    try:
        return available()
    except UsageError:
        return ()


def load(xen: str = DEFAULT_XEN, hypervisor: Path | None = None, dom0_kernel: Path | None = None) -> Recipe:
    """Read the recipe for a Xen version. Raises UsageError for an unknown version or a missing file."""
    directory = _directory()
    if xen not in available():
        raise UsageError(f"no lab recipe for Xen {xen!r}", hint=f"choose one of {', '.join(available())}")
    for what, path in (("hypervisor", hypervisor), ("dom0 kernel", dom0_kernel)):
        if path and not path.is_file():
            raise UsageError(f"{what} {path}: no such file", hint="check the path")
    own = tomllib.loads((directory / f"{xen}.toml").read_text())
    common = tomllib.loads((directory / "common.toml").read_text())
    config = directory.parent / "control" / "kernel.config"
    control = (path for path in (directory.parent / "control").rglob("*") if path.is_file() and path != config)
    parts = [*(path for path in directory.iterdir() if path.suffix != ".toml"), *control]
    return Recipe(
        xen=own["xen"],
        suite=own["suite"],
        packages=tuple(own["packages"]),
        hypervisor_debug=own["hypervisor_debug"],
        modules=tuple(common["modules"]),
        unused_modules=tuple(common["unused_modules"]),
        initrd_modules=tuple(common["initrd_modules"]),
        control_modules=tuple(common["control_modules"]),
        control_kernel=_kernel(config.read_bytes(), (directory / "kernel_cc.c").read_bytes(), common["control_kernel"]),
        control_programs=tuple(common["control_programs"]),
        trim=tuple(common["trim"]),
        files=tuple((str(path.relative_to(directory.parent)), path.read_bytes()) for path in sorted(parts)),
        hypervisor=hypervisor,
        dom0_kernel=dom0_kernel,
    )


def _kernel(config: bytes, compiler: bytes, data: dict[str, Any]) -> KernelRecipe:
    drop = tuple((file, start) for file, start in data["drop"])
    return KernelRecipe(**{**data, "config": config, "compiler": compiler, "drop": drop, "unused": tuple(data["unused"])})


def firmware() -> FirmwareRecipe:
    """The UEFI firmware of every lab."""
    directory = _directory()
    data = tomllib.loads((directory / "common.toml").read_text())["firmware"]
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return FirmwareRecipe(**{**data, **lists}, script=(directory.parent / "firmware" / "build.sh").read_bytes())


def _directory() -> Path:
    return paths.project() / "images" / "dom0"
