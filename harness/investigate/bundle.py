# SPDX-License-Identifier: BSD-2-Clause
"""Export a failure as one archive: its description, its logs, its small inputs, and how to obtain the large ones.

An archive contains no code to run: the recipient's own harness runs its case of the same name.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import untar
from harness.digest import file_sha256
from harness.errors import UsageError
from harness.investigate.scrub import Scrubber
from harness.results.model import DUMP_SUFFIX, CaseResult, Outcome, RunResult
from harness.results.where import CONTROL_GUEST

SCHEMA = 1
MANIFEST = "bundle.json"
# A bundle includes inputs of up to _SMALL bytes (a kernel, usually not a disk) and the last _LOG bytes of each log. An archive is
# refused if it unpacks to more than _WHOLE bytes or has more than _MEMBERS files.
_SMALL, _LOG, _WHOLE, _MEMBERS = 64 << 20, 4 << 20, 512 << 20, 1000
# Options whose value is a file, and all options of a bundle that are passed to ``fxh run``.
FILES = ("kernel", "disk", "hypervisor", "dom0-kernel")
OPTIONS = (*FILES, "control", "guest", "type", "firmware", "xen", "root", "scale", "image", "bootloader")
_CONTROL = ("vmlinuz", "initrd")


@dataclass(frozen=True)
class BundleInput:
    """A file that the case needs. ``member`` is its name in the archive, or "" if it is not included; ``obtain`` says how to get it."""

    option: str
    name: str
    sha256: str
    size: int
    member: str = ""
    obtain: str = ""


@dataclass(frozen=True)
class Bundle:
    """The content of ``bundle.json``."""

    case: str
    nodeid: str
    suite: str
    name: str
    cell: str
    outcome: str
    identity: str
    reason: str
    title: str
    run: str
    harness: str
    options: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    inputs: tuple[BundleInput, ...] = ()

    def result(self) -> CaseResult:
        return CaseResult(self.nodeid, self.suite, self.name, self.cell, Outcome(self.outcome), 0.0, self.reason, self.identity)


def export(target: Path, directory: Path, run: RunResult, case: CaseResult, scrub: Scrubber) -> Bundle:
    """Write the archive. ``directory`` has the case's logs. Inputs that are missing or have changed since the run are only named."""
    found, members = _inputs(run.options, case)
    options = {name: value for name, value in run.options.items() if name in OPTIONS and name not in (*FILES, "control")}
    bundle = Bundle(
        case.key, case.nodeid, case.suite, case.case, case.cell, case.outcome, case.identity, case.reason, case.title, run.run,
        run.inputs.get("harness", ""), options, run.inputs | case.inputs, tuple(found),
    )  # fmt: skip
    manifest = {"schema": SCHEMA, **_scrubbed(asdict(bundle), scrub)}
    clean = _bundle(manifest)
    with tarfile.open(target, "w:gz", compresslevel=6) as archive:
        _add(archive, MANIFEST, json.dumps(manifest, indent=1).encode())
        _add(archive, "README.txt", scrub(_readme(clean)).encode())
        for name in case.files:
            if "/" not in name and not name.endswith((".idx", DUMP_SUFFIX)) and (directory / name).is_file():
                with (directory / name).open("rb") as stream:
                    stream.seek(max(0, (directory / name).stat().st_size - _LOG))
                    _add(archive, f"logs/{name}", scrub(stream.read().decode("utf-8", "replace")).encode())
        for member, path in members.items():
            archive.add(path.resolve(), member, recursive=False, filter=_anonymous)
    return clean


def read(path: Path, into: Path) -> Bundle:
    """Unpack an archive into ``into``. Raises UsageError if it is invalid, was modified, or has members outside of ``into``."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="give a file that `fxh repro export` wrote")
    try:
        # extractall() has filters only from Python 3.11.4 on, and Debian 12 has 3.11.2. A bundle contains regular files only.
        for number, (member, contents) in enumerate(untar.members(path, _WHOLE)):
            if number >= _MEMBERS:
                raise UsageError(f"{path}: too large for a bundle", hint=f"a bundle has at most {_MEMBERS} files")
            if contents is None or Path(member.name).is_absolute() or ".." in Path(member.name).parts:
                raise UsageError(f"{path}: not a bundle ({member.name!r} is not a regular file inside it)")
            target = into / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with contents, target.open("wb") as file:
                shutil.copyfileobj(contents, file)
        data = json.loads((into / MANIFEST).read_text("utf-8"))
        if data.get("schema") != SCHEMA:
            raise UsageError(f"{path}: schema {data.get('schema')} is unknown", hint="use the version of the harness that wrote it")
        bundle = _bundle(data)
        Outcome(bundle.outcome)  # raises ValueError for an unknown word
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UsageError(f"{path}: not a bundle ({exc})", hint="give a file that `fxh repro export` wrote") from exc
    for item in bundle.inputs:
        if item.member and file_sha256(_inside(into, item.member)) != item.sha256:
            raise UsageError(f"{path}: {item.member} does not match its sha256", hint="get the bundle again")
    return bundle


def options_for(bundle: Bundle, into: Path, given: Mapping[str, Path], *, anyway: bool = False) -> dict[str, str]:
    """The options of ``fxh run``. The files in ``given`` replace inputs of the bundle.

    Raises UsageError if an input is missing or, unless ``anyway``, has another content than the bundle's.
    """
    found = {name: value for name, value in bundle.options.items() if name in OPTIONS and name not in (*FILES, "control")}
    for item in bundle.inputs:
        if item.option == "control":
            found["control"] = str(into / "inputs" / "control")
            continue
        path = given.get(item.option) or (_inside(into, item.member) if item.member else None)
        if path is None:
            raise UsageError(
                f"the bundle needs {item.name} (sha256 {item.sha256})", hint=f"{item.obtain} Then add --{item.option} FILE"
            )
        if item.option in given and file_sha256(path) != item.sha256 and not anyway:
            raise UsageError(f"{path} is not the {item.option} of the bundle (sha256 {item.sha256})", hint="use it with --anyway")
        found[item.option] = str(path.absolute())
    return found


def _inputs(options: Mapping[str, str], case: CaseResult) -> tuple[list[BundleInput], dict[str, Path]]:
    found, members = [], {}
    wanted = [(name, Path(options[name])) for name in FILES if name in options]
    if "control" in options and case.where.guest == CONTROL_GUEST:
        wanted += [("control", Path(options["control"]) / name) for name in _CONTROL]
    if case.where.guest == CONTROL_GUEST:
        wanted = [(name, path) for name, path in wanted if name not in ("kernel", "disk")]
    for option, path in wanted:
        recorded = _recorded(option, path, case)
        if not path.is_file() or (recorded and file_sha256(path) != recorded):
            found.append(
                BundleInput(option, path.name, recorded, 0, "", "It was missing or changed at the export: ask the exporter.")
            )
            continue
        member = f"inputs/{'control/' if option == 'control' else ''}{path.name}" if path.stat().st_size <= _SMALL else ""
        if member:
            members[member] = path
        found.append(
            BundleInput(option, path.name, recorded or file_sha256(path), path.stat().st_size, member, _OBTAIN.get(option, ""))
        )
    return found, members


_OBTAIN = {
    "kernel": "Build it from the sources of its version, or ask the exporter.",
    "disk": "Build the image again (`fxh image show` describes an image of the store), or ask the exporter.",
}


def _recorded(option: str, path: Path, case: CaseResult) -> str:
    """The SHA-256 that the run recorded for a file, or ""."""
    names = {"kernel": ("kernel",), "disk": ("disk", "xvda"), "control": ("kernel",) if path.name == "vmlinuz" else ("ramdisk",)}
    for name in names.get(option, ()):
        _, mark, value = case.inputs.get(name, "").partition("sha256:")
        if mark:
            return value
    return ""


def _readme(bundle: Bundle) -> str:
    versions = "\n".join(f"  {name}: {value}" for name, value in sorted(bundle.versions.items()))
    missing = [item for item in bundle.inputs if not item.member]
    needs = "".join(f"\nNot included: {item.name}, {item.size} bytes, sha256 {item.sha256}. {item.obtain}" for item in missing)
    more = "".join(f" --{item.option} FILE" for item in missing)
    head = textwrap.fill(f"{bundle.title or bundle.case}, in {bundle.cell}: {bundle.reason}", 72)
    return (
        f"{head}\n\nRun it (freebsd-xen-harness, {bundle.harness}):\n  fxh repro run THIS-FILE{more}\n{needs}\n\nVersions:\n{versions}\n\n"
        "logs/ contains the console, the logs of Xen and xl, and the domain's configuration. Paths, names and probable\n"
        "secrets were removed from texts. Kernels are unchanged.\n"
    )


def _scrubbed(value: Any, scrub: Scrubber) -> Any:
    """``value`` with each text in it scrubbed before JSON encoding, whose escapes would hide secrets."""
    if isinstance(value, dict):
        return {key: _scrubbed(item, scrub) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, scrub) for item in value]
    return scrub(value) if isinstance(value, str) else value


def _bundle(data: dict[str, Any]) -> Bundle:
    data = {name: value for name, value in data.items() if name != "schema"}
    return Bundle(**data | {"inputs": tuple(BundleInput(**item) for item in data["inputs"])})


def _inside(into: Path, member: str) -> Path:
    path = (into / member).resolve()
    if not path.is_relative_to(into.resolve()):
        raise UsageError(f"the bundle refers to a file outside of it: {member}", hint="do not trust this bundle")
    return path


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode, info.mtime = 0o644, 0
    return info
