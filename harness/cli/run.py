# SPDX-License-Identifier: BSD-2-Clause
"""fxh run: suites against guests, with an exit code that can be trusted."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import completion, run_lookup
from harness.errors import ExitCode, UsageError


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    context: typer.Context,
    suites: Annotated[
        list[str] | None,
        typer.Argument(help="Suites by name, or paths of test files (default: all).", autocompletion=completion.suites),
    ] = None,
    keyword: Annotated[str, typer.Option("-k", help="Only cases that match, as pytest's -k.")] = "",
    workers: Annotated[int, typer.Option("-n", "--workers", help="Workers side by side, each on a lab or a host of its own.")] = 0,
    guest: Annotated[
        str, typer.Option("--guest", help="control, freebsd (by commas).", autocompletion=completion.one_of("control", "freebsd"))
    ] = "",
    guest_type: Annotated[
        str,
        typer.Option(
            "--type",
            help="pv, pvh, hvm (by commas); pvshim: pv in the PV shim.",
            autocompletion=completion.one_of("pv", "pvh", "hvm", "pvshim"),
        ),
    ] = "",
    pvshim: Annotated[bool, typer.Option("--pvshim", help="The same as --type pvshim.")] = False,
    firmware: Annotated[
        str,
        typer.Option(
            "--firmware", help="Firmwares of HVM guests: bios, uefi (by commas).", autocompletion=completion.one_of("bios", "uefi")
        ),
    ] = "",
    xen: Annotated[str, typer.Option("--xen", help="Xen versions of the lab (by commas).", autocompletion=completion.xens)] = "",
    kernel: Annotated[Path | None, typer.Option("--kernel", help="A FreeBSD kernel, instead of the disk's own.")] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", help="A FreeBSD disk image: raw or qcow2, perhaps in .xz; it is only read.")
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            "--image", help="A FreeBSD image of the store, or an exported one's directory.", autocompletion=completion.images
        ),
    ] = "",
    bootloader: Annotated[
        str,
        typer.Option(
            "--bootloader", help="pygrub: dom0 reads the kernel from the image's disk.", autocompletion=completion.one_of("pygrub")
        ),
    ] = "",
    root: Annotated[
        str, typer.Option("--root", help="The root device: xbd0p2, gpt/rootfs, zfs:POOL/DATASET (default: what the disk says).")
    ] = "",
    xen_host: Annotated[
        str,
        typer.Option(
            "--xen-host",
            help="Real hosts (by commas): names or tag:TAG of fxh.toml, user@host, local, lab.",
            autocompletion=completion.hosts,
        ),
    ] = "",
    hypervisor: Annotated[Path | None, typer.Option("--hypervisor", help="The lab's hypervisor, of your own.")] = None,
    dom0_kernel: Annotated[Path | None, typer.Option("--dom0-kernel", help="The lab's dom0 kernel, of your own.")] = None,
    accel: Annotated[
        str, typer.Option("--accel", help="auto, tcg or kvm.", autocompletion=completion.one_of("auto", "tcg", "kvm"))
    ] = "",
    scale: Annotated[float, typer.Option("--scale", help="Stretches every time budget of a guest.")] = 0.0,
    control: Annotated[Path | None, typer.Option("--control", help="A control guest of your own: vmlinuz and initrd.")] = None,
    branch: Annotated[str, typer.Option("--branch", help="The line of development tested, for verdicts: main, stable/14.")] = "",
    with_release: Annotated[
        bool, typer.Option("--with-release", help="The current FreeBSD release beside the control guest, if it can be fetched.")
    ] = False,
    exitfirst: Annotated[bool, typer.Option("-x", help="Stop at the first failure.")] = False,
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            help="failed: leave a dead guest paused, to be looked at; it goes by itself.",
            autocompletion=completion.one_of("failed"),
        ),
    ] = "",
    shard: Annotated[str, typer.Option("--shard", help="I/N: the I-th of N parts, the same on every machine.")] = "",
    resume: Annotated[
        str, typer.Option("--resume", help="A run that was killed (name, path, latest): run what it has not judged.")
    ] = "",
    reports: Annotated[Path | None, typer.Option("--reports", help="Where results go (default: reports/).")] = None,
) -> None:
    """Run suites and write reports/latest/. Exit code: 0 all judged cases passed, 1 product failure, 2 usage, 3 bug of the
    harness, 4 infrastructure (nothing was learned of some case), 5 nothing selected, 130 interrupted."""
    import pytest

    from harness import paths
    from harness.config import load
    from harness.plugin.progress import Progress
    from harness.results import run_dir

    if with_release and not (guest or image or disk):
        from harness.images import current_release

        found, why = current_release.release()
        if found is not None:
            guest, image = "control,freebsd", found.name
        else:
            print(why, file=sys.stderr)
    if disk is not None and kernel is None and not image:
        run_lookup.disk(disk, root)
    project = paths.project()
    where = run_lookup.reports(reports)
    if resume:
        path = run_lookup.run_directory(where, resume)
        again = _again(path)
        if again is not None:
            sys.argv[1:] = again
            code = context.find_root().command.main(again, standalone_mode=False)
            raise typer.Exit(code if isinstance(code, int) else 0)
    chosen = _paths(project, suites or [])
    argv = [
        *chosen,
        *run_lookup.pytest_root(project, _root(project, chosen)),
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        # Of the harness's own tests; it takes seconds to load at the end of a run.
        "-p",
        "no:hypothesispytest",
        "--tb=short",
    ]
    if context.find_root().params.get("verbose"):
        argv += ["-o", "log_cli=true", "--log-cli-level=DEBUG"]
    if keyword:
        argv += ["-k", keyword]
    if exitfirst:
        argv += ["-x"]
    workers = workers or load().config.run.workers
    if workers > 1:
        argv += ["-n", str(workers), "--dist", "worksteal"]
    for name, value in (
        ("guest", guest), ("type", "pvshim" if pvshim else guest_type), ("xen", xen), ("kernel", kernel), ("disk", disk), ("root", root),
        ("firmware", firmware), ("image", image), ("bootloader", bootloader), ("control", control), ("branch", branch),
        ("xen-host", xen_host), ("hypervisor", hypervisor), ("dom0-kernel", dom0_kernel), ("accel", accel), ("scale", scale),
        ("keep", keep), ("shard", shard),
    ):  # fmt: skip
        if value:
            argv += [f"--{name}", str(value.absolute() if isinstance(value, Path) else value)]
    if not resume:
        path = run_dir.new(where)
    argv += ["--resume"] if resume else []
    argv += ["--reports", str(where), "--fxh-run", str(path)]
    argv += ["--junitxml", str(path / "junit.xml"), "--alluredir", str(path / "allure")]
    status = pytest.main(argv, plugins=[Progress()])
    raise typer.Exit(_exit_code(int(status), path))


def _paths(project: Path, suites: list[str]) -> list[str]:
    """Suites by name or path. Raises UsageError for one that is not there."""
    known = sorted(p.name for p in (project / "suites").iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    found = []
    for suite in suites:
        if suite in known:
            found.append(str(project / "suites" / suite))
        elif Path(suite.partition("::")[0]).exists():
            found.append(suite)
        else:
            raise UsageError(f"no suite {suite!r}", hint=f"there are: {', '.join(known)}")
    return found or [str(project / "suites")]


def _root(project: Path, chosen: list[str]) -> Path:
    """What cases are named relative to: the project, or whatever holds a suite that lies elsewhere."""
    first = Path(chosen[0].partition("::")[0]).resolve()
    if first.is_relative_to(project.resolve()):
        return project
    return (first if first.is_dir() else first.parent).parent


def _bare(words: list[str]) -> bool:
    """Whether a command line of `fxh run` says no more than which run, and where."""
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    return options <= {"--resume", "--reports"} and len(words) <= 2 * len(options)


def _again(path: Path) -> list[str] | None:
    """The words that do again what the run was asked to do, where this command line does not say; None where it does."""
    from harness.results.model import read_run

    words = shlex.split(read_run(path).command)
    if not _bare(sys.argv[2:]) or words[1:2] != ["run"] or _bare(words[2:]):
        return None
    return [*words[1:], "--resume", str(path)]


def _tell(path: Path) -> None:
    """The run in one sentence, and where the rest is."""
    try:
        sentence = json.loads((path / "report.json").read_text())["sentence"]
    except (OSError, ValueError, KeyError):
        sentence = "no report was written"
    sys.stdout.flush()  # pytest's summary comes before it, also where both go into one file
    print(f"{sentence}\nreport: {path / 'index.html'}", file=sys.stderr)


def _exit_code(status: int, path: Path) -> int:
    """pytest's status and our results as one code."""
    from harness.results.model import read_run

    if status == 4:
        return ExitCode.USAGE
    try:
        code = read_run(path).exit_code
    except (OSError, ValueError):
        return {2: ExitCode.HARNESS, 5: ExitCode.NOTHING_SELECTED}.get(status, ExitCode.HARNESS)
    _tell(path)
    # 2 and 3: pytest stopped, perhaps for something that no case shows.
    if code is None or (status in (2, 3) and code in (ExitCode.OK, ExitCode.NOTHING_SELECTED)):
        return ExitCode.HARNESS
    return code
