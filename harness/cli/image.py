# SPDX-License-Identifier: BSD-2-Clause
"""fxh image: FreeBSD images, from what people have, in the layouts that the suites need."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import completion
from harness.errors import InfrastructureError, UsageError

app = typer.Typer(no_args_is_help=True, help="FreeBSD images: build, list, show, verify, export, sets, rm, gc.")


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="A recipe, or the name of the image to be.")] = "",
    src: Annotated[str, typer.Option("--src", help="A FreeBSD source tree, such as /usr/src.")] = "",
    dist: Annotated[str, typer.Option("--dist", help="Release sets: URL or directory with MANIFEST, base.txz, kernel.txz.")] = "",
    destdir: Annotated[str, typer.Option("--destdir", help="A world installed with -DNO_ROOT (its METALOG in it).")] = "",
    disk: Annotated[str, typer.Option("--disk", help="A disk image: raw, qcow2, or one of them in .xz.")] = "",
    kernel: Annotated[str, typer.Option("--kernel", help="A kernel file.")] = "",
    base: Annotated[str, typer.Option("--base", help="An image whose kernel is swapped.", autocompletion=completion.images)] = "",
    kernconf: Annotated[str, typer.Option("--kernconf", help="XENA, XENB, XENREL, one of the tree's, or a file.")] = "",
    world: Annotated[
        str,
        typer.Option(
            "--world",
            help="small (what the suites need), zfs (small with ZFS) or full.",
            autocompletion=completion.one_of("small", "zfs", "full"),
        ),
    ] = "",
    layout: Annotated[str, typer.Option("--layout", help="See `fxh image layouts`.", autocompletion=completion.layouts)] = "",
    size: Annotated[int, typer.Option("--size", help="MiB of the root file system.")] = 0,
    bsize: Annotated[int, typer.Option("--bsize", help="Bytes of a UFS block: 8192 to 65536.")] = 0,
    root: Annotated[str, typer.Option("--root", help="With --disk: the root device, such as xbd0p3.")] = "",
    jobs: Annotated[int, typer.Option("-j", "--jobs", help="Compilers side by side (default: all CPUs).")] = 0,
) -> None:
    """Build an image, or take it from the store when nothing has changed."""
    from harness.images import diskread, recipe, recipes

    options = {
        "src": src, "dist": dist, "destdir": destdir, "disk": disk, "kernel": kernel, "base": base, "kernconf": kernconf,
        "world": world, "layout": layout, "size": size, "bsize": bsize, "root": root, "jobs": jobs,
    }  # fmt: skip
    begun = time.monotonic()
    made = recipes.build(recipe.resolve(name or "freebsd", options, recipe.available()))
    root = made.mountfrom if made.mountfrom.startswith("zfs:") else made.root
    print(f"{made.name} {made.entry.key}: FreeBSD {made.release}, {made.data['layout']}, {'/'.join(made.types)}, root {root}")
    if made.firmwares == ("uefi",):
        print(f"     {diskread.UEFI_ONLY}", file=sys.stderr)
    print(f"     {time.monotonic() - begun:.1f} s; boot it: fxh boot --image {made.name}", file=sys.stderr)


@app.command()
def layouts() -> None:
    """The layouts an image can have."""
    from harness.images import layout

    for name, about in layout.available().items():
        print(f"{name:<10} {about}")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """The images in the store, and what else takes room there."""
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


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name or key.")]) -> None:
    """One image: its disks, and every input with its hash and where it came from."""
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


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Images (default: all, and all else in the store).")] = None,
) -> None:
    """Read everything and compare it with what was made."""
    from harness.images import entries, image

    chosen = [("images", image.find(name).entry) for name in names] if names else entries.listing()
    bad = 0
    for kind, entry in chosen:
        damaged = entry.damage(thorough=True)
        print(f"{kind} {entry.key}: {'damaged: ' + ', '.join(damaged[:5]) if damaged else 'good'}")
        bad += bool(damaged)
    if bad:
        raise InfrastructureError(f"{bad} damaged in the store", hint="build again: what is damaged is made anew")


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name or key.")],
    directory: Annotated[Path, typer.Argument(help="Where disks, kernel and manifest go.")],
) -> None:
    """Copy an image's files, holes kept: for xl or QEMU by hand, or as `--image DIRECTORY` on another machine."""
    from harness.images import image, loader_conf_slot

    found = image.find(name)
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="give a new directory")
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


@app.command()
def sets(
    name: Annotated[str, typer.Argument(help="Name or key of an image that was built.")],
    directory: Annotated[Path, typer.Argument(help="The mirror's top: the sets go to releases/<machine>/<release> below it.")],
    release: Annotated[str, typer.Option("--as", help="The release's name (default: the kernel's, such as 15.1-RELEASE).")] = "",
) -> None:
    """Write an image's world and kernel as release sets: MANIFEST, base.txz, kernel.txz, in a mirror's layout."""
    from harness.images import image
    from harness.images import sets as writing

    made = writing.write(image.find(name), directory, release)
    for file in sorted(made.iterdir()):
        print(f"{file}  {file.stat().st_size >> 10} KiB")
    print(f"serve it:  python3 -m http.server -d {shlex.quote(str(directory))}", file=sys.stderr)
    print(f"take it:   FXH_MIRROR=http://127.0.0.1:8000/releases/{made.parent.name} make run", file=sys.stderr)


@app.command()
def rm(names: Annotated[list[str], typer.Argument(help="Names or keys.")]) -> None:
    """Remove images. What they were made from stays until `gc`."""
    from harness import store
    from harness.images import entries, image

    known = image.names()
    for name in names:
        try:
            entry = image.find(name).entry
        except UsageError:
            entry = entries.StoreEntry(store.directory("images") / known.get(name, name))
            if not entry.directory.is_dir():
                raise
        store.remove(entry.directory)
        for other, key in known.items():
            if key == entry.key:
                (store.directory("names") / other).unlink(missing_ok=True)


@app.command()
def gc(
    size: Annotated[int, typer.Option("--size", help="MiB that may stay.")] = 0,
    age: Annotated[float, typer.Option("--age", help="Days without use after which something goes.")] = 0,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Run `fxh store gc` for images and what they are made from."""
    from harness.cli import store
    from harness.images import entries

    store.gc(size, age, [*entries.KINDS, *entries.CACHES], dry)
