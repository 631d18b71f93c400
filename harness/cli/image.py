# SPDX-License-Identifier: BSD-2-Clause
"""fxh image: build FreeBSD images from sources, sets or disks, in the layouts that the suites need, and manage them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import completion, store
from harness.errors import InfrastructureError, UsageError

_group = typer.Typer(no_args_is_help=True, help="Build and manage FreeBSD images.")


def register(app: typer.Typer) -> None:
    app.add_typer(_group, name="image")


@_group.command()
def build(
    name: Annotated[str, typer.Argument(help="A recipe, or the name of the new image (default: freebsd).")] = "",
    src: Annotated[str, typer.Option("--src", help="Build from this FreeBSD source tree, such as /usr/src.")] = "",
    dist: Annotated[
        str, typer.Option("--dist", help="Install release sets from this URL or directory with MANIFEST, base.txz, kernel.txz.")
    ] = "",
    destdir: Annotated[str, typer.Option("--destdir", help="Copy this world, installed with -DNO_ROOT (it has a METALOG).")] = "",
    disk: Annotated[str, typer.Option("--disk", help="Import this disk image: raw or qcow2, also in .xz.")] = "",
    kernel: Annotated[str, typer.Option("--kernel", help="Use this kernel file (default: the kernel of the source).")] = "",
    base: Annotated[str, typer.Option("--base", help="Replace the kernel of this image.", autocompletion=completion.images)] = "",
    kernconf: Annotated[
        str,
        typer.Option(
            "--kernconf",
            help="Build this kernel configuration: XENA, XENB, XENREL, XENDEBUG, XENZFS, one of the tree, or a file "
            "(default: XENA; XENZFS for a ZFS layout).",
        ),
    ] = "",
    world: Annotated[
        str,
        typer.Option(
            "--world",
            help="Install this world: small (as the suites need), zfs (small with ZFS), full (default: small; zfs for a ZFS layout).",
            autocompletion=completion.one_of("small", "zfs", "full"),
        ),
    ] = "",
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="Arrange the disk in this layout of `fxh image layouts` (default: ufs1).",
            autocompletion=completion.layouts,
        ),
    ] = "",
    size: Annotated[
        int,
        typer.Option(
            "--size", help="Make the root file system this many MiB large (default: 512; 1024 for ZFS).", show_default=False
        ),
    ] = 0,
    bsize: Annotated[
        int,
        typer.Option("--bsize", help="Use UFS blocks of this many bytes: 8192 to 65536 (default: 32768).", show_default=False),
    ] = 0,
    root: Annotated[
        str, typer.Option("--root", help="Use this root device of --disk, such as xbd0p3 (default: read from the disk).")
    ] = "",
    jobs: Annotated[
        int,
        typer.Option("-j", "--jobs", help="Run this many compilers in parallel (default: one per CPU).", show_default=False),
    ] = 0,
) -> None:
    """Build an image, unless the store has it with the same inputs."""
    from harness.images import diskimage, recipe, recipes

    options = {
        "src": src, "dist": dist, "destdir": destdir, "disk": disk, "kernel": kernel, "base": base, "kernconf": kernconf,
        "world": world, "layout": layout, "size": size, "bsize": bsize, "root": root, "jobs": jobs,
    }  # fmt: skip
    begun = time.monotonic()
    made = recipes.build(recipe.resolve(name or "freebsd", options, recipe.available()))
    root = made.mountfrom if made.mountfrom.startswith("zfs:") else made.root
    print(f"{made.name} {made.entry.key}: FreeBSD {made.release}, {made.data['layout']}, {'/'.join(made.types)}, root {root}")
    if made.firmwares == ("uefi",):
        print(f"     {diskimage.UEFI_ONLY}", file=sys.stderr)
    print(f"     {time.monotonic() - begun:.1f} s; boot it: fxh boot --image {made.name}", file=sys.stderr)


@_group.command()
def layouts() -> None:
    """List the layouts of images."""
    from harness.images import layout

    for name, about in layout.available().items():
        print(f"{name:<10} {about}")


@_group.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the images and their inputs in the store."""
    from harness.images import entries, image

    known: dict[str, list[str]] = {}
    for name, key in image.names().items():
        known.setdefault(key, []).append(name)
    rows: list[dict[str, Any]] = []
    for kind, entry in entries.listing():
        data = entry.manifest
        rows.append({
            "kind": kind, "key": entry.key, "names": known.get(entry.key, []), "what": image.about(data), "bytes": entry.size,
            "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        })  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        names = ",".join(row["names"]) if row["kind"] == "images" else ""
        print(f"{row['kind']:<8} {row['key']}  {names:<16} {int(row['bytes']) >> 20:>6} MiB  {row['used']}  {row['what']}")


@_group.command()
def show(name: Annotated[str, typer.Argument(help="Name or key.")]) -> None:
    """Show an image: its disks, and each input with its hash and origin."""
    from harness.images import image

    found = image.find(name)
    data = found.data
    print(
        f"{name} {found.entry.key}: FreeBSD {found.release} {data['machine']}, {'/'.join(found.types)}{', pygrub' if found.pygrub else ''}"
    )
    print(f"version  {found.os_version}")
    print(f"layout   {data['layout']}: {data['about']}; root {found.mountfrom}")
    if found.firmwares:
        print(f"firmware {', '.join(found.firmwares)}")
    for disk in found.disks:
        print(f"disk     {disk.vdev} {disk.format} {disk.file.stat().st_size >> 20} MiB  {disk.file}")
    if found.kernel:
        print(f"kernel   {data['kernel']['sha256']}  {found.kernel}")
    print(f"built    {data['built']} in {data['seconds']} s")
    for item in found.inputs:
        print(f"input    {item.what:<28} {item.hash:<64}  {item.origin}")


@_group.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Images (default: all entries of the store).")] = None,
) -> None:
    """Compare the files of the store with their recorded hashes."""
    from harness.images import entries, image

    chosen = [("images", image.find(name).entry) for name in names] if names else entries.listing()
    bad = 0
    for kind, entry in chosen:
        damaged = entry.damage(thorough=True)
        print(f"{kind} {entry.key}: {'damaged: ' + ', '.join(damaged[:5]) if damaged else 'good'}")
        bad += bool(damaged)
    if bad:
        raise InfrastructureError(f"{bad} damaged entries in the store", hint="build them again: fxh image build")


@_group.command()
def export(
    name: Annotated[str, typer.Argument(help="Name or key.")],
    directory: Annotated[Path, typer.Argument(help="Write disks, kernel and manifest into this directory.")],
) -> None:
    """Export the files of an image, for xl or QEMU, or for `--image DIRECTORY` on another machine."""
    from harness.images import image, loader_conf_slot

    found = image.find(name)
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="use a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in found.entry.directory.iterdir() if p.is_file() and p.name != ".used"):
        if path.suffix == ".img":
            with (directory / path.name).open("wb") as out:
                out.truncate(path.stat().st_size)
                loader_conf_slot.copy_data(path, out.fileno(), 0)
        else:
            shutil.copyfile(path, directory / path.name)
        shutil.copystat(path, directory / path.name)
        print(directory / path.name)


@_group.command()
def sets(
    name: Annotated[str, typer.Argument(help="Name or key of an image built from sources or sets.")],
    directory: Annotated[Path, typer.Argument(help="Write into this mirror, below releases/<machine>/<release>.")],
    release: Annotated[str, typer.Option("--as", help="Name the release so (default: as the kernel, such as 15.1-RELEASE).")] = "",
) -> None:
    """Write the world and kernel of an image as release sets into a mirror: MANIFEST, base.txz, kernel.txz, kernel-dbg.txz."""
    from harness.images import image
    from harness.images import sets as writing

    made = writing.write(image.find(name), directory, release)
    for file in sorted(made.iterdir()):
        print(f"{file}  {file.stat().st_size >> 10} KiB")
    print(f"serve it:  python3 -m http.server -d {shlex.quote(str(directory))}", file=sys.stderr)
    print(f"take it:   FXH_MIRROR=http://127.0.0.1:8000/releases/{made.parent.name} make run", file=sys.stderr)


@_group.command()
def rm(names: Annotated[list[str], typer.Argument(help="Names or keys.")]) -> None:
    """Remove images. Their inputs stay until `fxh image gc`."""
    from harness import store as files
    from harness.images import entries, image

    known = image.names()
    for name in names:
        try:
            entry = image.find(name).entry
        except UsageError:
            entry = entries.StoreEntry(files.directory("images") / known.get(name, name))
            if not entry.directory.is_dir():
                raise
        files.remove(entry.directory)
        for other, key in known.items():
            if key == entry.key:
                (files.directory("names") / other).unlink(missing_ok=True)


@_group.command()
def gc(
    size: store.Size = 0,
    age: store.Age = 0,
    dry_run: store.DryRun = False,
) -> None:
    """Run `fxh store gc` for images and their inputs."""
    from harness.images import entries

    store.gc(size, age, [*entries.KINDS, *entries.CACHES], dry_run)
