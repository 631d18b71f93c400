# SPDX-License-Identifier: BSD-2-Clause
"""Images: created, stored, found, damaged, removed; interrupted fetches; failed builds."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import lzma
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness import store
from harness.cli import image as cli
from harness.digest import file_sha256
from harness.errors import BuildError, InfrastructureError, UsageError
from harness.guests.os import freebsd_source
from harness.images import (
    build_log,
    buildworld,
    destdir,
    diskimport,
    dist,
    entries,
    fetch,
    image,
    kernelfile,
    layout,
    makefs,
    recipe,
    recipes,
    src_conf,
    treescan,
)
from harness.images.assemble import Parts, assemble
from harness.images.buildworld import BuildDirectory
from harness.images.hosttools import Compiler
from harness.images.inputs import Input, content_hash
from harness.images.kernconf import KernConf
from harness.images.srctree import SourceTree
from tests.processes import alive
from tests.unit.kernels import kernel as fake_kernel
from tests.unit.test_image_parts import elf

needs_makefs = pytest.mark.skipif(makefs.find(None) is None, reason="needs makefs (Debian: makefs)")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("FXH_MAKEFS", raising=False)
    return tmp_path / "store"


# -- the store --------------------------------------------------------------------------------------------------------


def filler(calls: list[str], text: str = "x"):  # type: ignore[no-untyped-def]
    def fill(work: Path) -> dict[str, object]:
        calls.append(text)
        (work / "below").mkdir()
        (work / "below/file").write_text(text)
        return {"version": "13.2"}

    return fill


def test_an_existing_entry_is_not_created_again() -> None:
    calls: list[str] = []
    first = entries.get_or_create("worlds", "k", filler(calls))
    second = entries.get_or_create("worlds", "k", filler(calls))
    assert (first, calls) == (second, ["x"])
    entries.get_or_create("worlds", "other", filler(calls, "y"))
    assert calls == ["x", "y"]


def test_a_corrupted_file_is_detected_and_the_entry_created_again() -> None:
    calls: list[str] = []
    entry = entries.get_or_create("worlds", "k", filler(calls))
    file = entry.directory / "below/file"
    file.chmod(0o644)
    file.write_text("z")
    assert entry.damage() == ["below/file"]
    assert entries.find("worlds", "k") is None
    assert (entries.get_or_create("worlds", "k", filler(calls)).directory / "below/file").read_text() == "x"
    assert calls == ["x", "x"]


def test_a_flipped_byte_with_the_old_time_is_found_by_verify() -> None:
    entry = entries.get_or_create("worlds", "k", filler([]))
    file = entry.directory / "below/file"
    stat = file.stat()
    file.chmod(0o644)
    file.write_text("z")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert entry.damage() == []
    assert entry.damage(thorough=True) == ["below/file"]


def test_an_unreadable_manifest_is_damage() -> None:
    entry = entries.get_or_create("worlds", "k", filler([]))
    (entry.directory / "manifest.json").chmod(0o644)
    (entry.directory / "manifest.json").write_text("{")
    assert entry.damage() == ["manifest.json"]


def test_a_touched_file_is_not_damaged() -> None:
    entry = entries.get_or_create("worlds", "k", filler([]))
    os.utime(entry.directory / "below/file", (1, 1))
    assert entry.damage() == []


def test_content_hash_depends_on_content_not_on_holes(tmp_path: Path) -> None:
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    data = bytes(300_000) + b"x" + bytes(99_999)
    full.write_bytes(data)
    with sparse.open("wb") as file:
        file.truncate(len(data))
        file.seek(300_000)
        file.write(b"x")
    assert content_hash(sparse) == content_hash(full)
    with sparse.open("r+b") as file:
        file.seek(1)
        file.write(b"y")
    assert content_hash(sparse) != content_hash(full)
    full.write_bytes(data + b"\0")
    assert content_hash(full) != content_hash(sparse)


def test_a_failed_creation_leaves_nothing(fresh: Path) -> None:
    def fail(work: Path) -> dict[str, object]:
        (work / "half").write_text("x")
        raise BuildError("no")

    with pytest.raises(BuildError):
        entries.get_or_create("worlds", "k", fail)
    assert [p.name for p in (fresh / "worlds").iterdir() if not p.name.endswith(".lock")] == []


def test_a_killed_creation_leaves_no_entry_and_the_next_cleans_up(fresh: Path) -> None:
    script = (
        "import sys, time\nfrom harness.images import entries\n"
        "def make(work):\n (work / 'half').write_text('x'); print('at it', flush=True); time.sleep(60)\nentries.get_or_create('worlds', 'k', make)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "FXH_STORE": str(fresh)})
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"at it\n"
        child.send_signal(signal.SIGKILL)
    child.wait()
    assert list((fresh / "worlds").glob(".making-k.*"))

    calls: list[str] = []
    entries.get_or_create("worlds", "k", filler(calls))

    assert calls == ["x"]
    assert list((fresh / "worlds").glob(".making-*")) == []


def test_one_creates_and_the_others_wait(fresh: Path) -> None:
    calls: list[str] = []

    def slow(work: Path) -> dict[str, object]:
        time.sleep(0.3)
        return dict(filler(calls)(work))

    threads = [threading.Thread(target=entries.get_or_create, args=("worlds", "k", slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["x"]


def test_gc_selects_by_age_and_size() -> None:
    items = [store.Item("images", Path(f"/{name}"), 100, float(used)) for name, used in zip("abc", (10, 20, 30), strict=True)]

    def selected(**limits: float | int | None) -> list[str]:
        given: dict[str, Any] = {"keep_bytes": None, "max_age": None, **limits}
        return [eviction.item.path.name for eviction in store.select_evictions(items, now=31, **given)]

    assert selected(max_age=15) == ["a"]
    assert selected(keep_bytes=150) == ["a", "b"]
    assert selected(keep_bytes=300, max_age=100) == []
    items[0] = replace(items[0], recreatable=False)
    assert selected(keep_bytes=150) == ["b", "c"], "a user's own work does not make room"
    assert selected(max_age=15) == ["a"]


def test_gc_removes() -> None:
    entry = entries.get_or_create("worlds", "k", filler([]))
    os.utime(entry.directory / ".used", (1, 1))
    evicted = store.evict(image.items(), max_age=86400, dry_run=True)
    assert [eviction.item.path for eviction in evicted] == [entry.directory]
    assert entries.find("worlds", "k") == entry
    store.evict(image.items(), max_age=86400)
    assert entries.find("worlds", "k") is None


def test_gc_takes_objects_and_downloads_but_no_build_under_way(fresh: Path) -> None:
    for name in ("idle", "busy"):
        (fresh / "objects" / name).mkdir(parents=True)
        (fresh / "objects" / name / ".used").touch()
        os.utime(fresh / "objects" / name / ".used", (1, 1))
    store.directory("downloads")
    (fresh / "downloads/base.txz").write_text("x")
    os.utime(fresh / "downloads/base.txz", (1, 1))
    with FileLock(fresh / "objects/.busy.lock"):
        gone = store.evict(image.items(), max_age=60)
    assert sorted(eviction.item.path.name for eviction in gone) == ["base.txz", "idle"]
    assert (fresh / "objects/busy").is_dir()
    assert not (fresh / "objects/idle").exists()


# -- images of a small DESTDIR ----------------------------------------------------------------------------------------

FILES = {
    "bin/freebsd-version": b'USERLAND_VERSION="13.2-RELEASE"\n',
    "etc/master.passwd": b"root::0:0::0:0:Charlie &:/root:/bin/sh\n",
    "etc/group": b"wheel:*:0:root\n",
    "etc/ttys": b'xc0\t"/usr/libexec/getty Pc"\txterm\tonifconsole\tsecure\n',
    "boot/mbr": b"\xeb\xfe" * 256,
    "boot/pmbr": b"\xeb\xfe" * 256,
    "boot/boot": b"\xeb\xfe" * 4096,
    "boot/gptboot": b"\xeb\xfe" * 20000,
    "usr/bin/vi": b"vi",
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A minimal DESTDIR as installworld writes it."""
    top, lines, seen = tmp_path / "dest", ["#mtree 2.0", ". type=dir uname=root gname=wheel mode=0755"], set()
    for name, data in FILES.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
        for parent in reversed(Path(name).parents[:-1]):
            if parent not in seen:
                seen.add(parent)
                lines.append(f"./{parent} type=dir uname=root gname=wheel mode=0755")
        lines.append(f"./{name} type=file uname=root gname=wheel mode=0444 size=99999")
    (top / "METALOG").write_text("\n".join(lines) + "\n")
    return top


def put_together(world: Path, kernel: Path, name: str, **options: int) -> image.Image:
    return assemble(Parts(destdir.world(world), kernelfile.read(kernel), layout.load(name, size=32, **options), ()), f"test-{name}")


@needs_makefs
@pytest.mark.parametrize("name", ["ufs1", "mbr", "mbr16", "vdevs"])
def test_an_image_of_each_layout(world: Path, tmp_path: Path, name: str) -> None:
    made = put_together(world, elf(tmp_path / "kernel"), name)

    assert [d.file.name for d in made.disks] == [f"{disk.name}.img" for disk in layout.load(name).vdevs]
    root = made.disks[0]
    assert diskimport.guess_root(root.file)[0] == made.root
    assert image.find(f"test-{name}").entry == made.entry
    assert made.types == (("pvh", "hvm") if name.startswith("mbr") else ("pvh",))
    if root.slot >= 0:
        assert root.file.read_bytes()[root.slot :].startswith(b"# fxh: variables of this run\n")
    assert {item.what for item in made.inputs} >= {"world", "kernel", "layout", "edits", "makefs"}


@needs_makefs
def test_unchanged_inputs_cost_nothing_and_changed_ones_rebuild(world: Path, tmp_path: Path) -> None:
    kernel = elf(tmp_path / "kernel")
    first = put_together(world, kernel, "ufs1")
    built = (first.disks[0].file.stat().st_mtime_ns, first.data["built"])

    again = put_together(world, kernel, "ufs1")
    assert (again.disks[0].file.stat().st_mtime_ns, again.data["built"]) == built

    keys = {first.entry.key}
    (world / "usr/bin/vi").write_bytes(b"another vi")
    keys.add(put_together(world, kernel, "ufs1").entry.key)
    keys.add(put_together(world, elf(kernel, text=b"FreeBSD 13.2-RELEASE XENB\0"), "ufs1").entry.key)
    keys.add(put_together(world, kernel, "ufs1", bsize=8192).entry.key)
    assert len(keys) == 4


@needs_makefs
def test_the_same_image_twice_byte_for_byte(world: Path, tmp_path: Path) -> None:
    kernel = elf(tmp_path / "kernel")
    first = put_together(world, kernel, "mbr")
    sums = [file_sha256(d.file) for d in first.disks]
    store.remove(first.entry.directory)
    assert [file_sha256(d.file) for d in put_together(world, kernel, "mbr").disks] == sums


@needs_makefs
def test_a_damaged_image_is_named_and_built_again(world: Path, tmp_path: Path) -> None:
    kernel = elf(tmp_path / "kernel")
    made = put_together(world, kernel, "ufs1")
    disk = made.disks[0].file
    disk.chmod(0o644)
    with disk.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(UsageError, match=r"xvda\.img is damaged"):
        image.find("test-ufs1")
    assert put_together(world, kernel, "ufs1").disks[0].file.stat().st_size == 32 << 20


@needs_makefs
def test_an_exported_image_is_found_by_its_path(world: Path, tmp_path: Path) -> None:
    made = put_together(world, elf(tmp_path / "kernel"), "ufs1")
    cli.export("test-ufs1", tmp_path / "elsewhere")
    store.remove(made.entry.directory)

    found = image.find(f"{tmp_path}/elsewhere")

    assert found.kernel == tmp_path / "elsewhere/kernel"
    assert found.disks[0].file == tmp_path / "elsewhere/xvda.img"
    (tmp_path / "elsewhere/kernel").chmod(0o644)
    (tmp_path / "elsewhere/kernel").write_bytes(b"another")
    with pytest.raises(UsageError, match="kernel is damaged"):
        image.find(f"{tmp_path}/elsewhere")
    with pytest.raises(UsageError, match="no directory"):
        image.find(f"{tmp_path}/nowhere")


@needs_makefs
def test_a_swapped_kernel_is_another_image_of_the_same_world(world: Path, tmp_path: Path) -> None:
    put_together(world, elf(tmp_path / "kernel"), "ufs1")
    other = elf(tmp_path / "other", text=b"FreeBSD 13.2-RELEASE XENB\0")
    made = recipes.build(recipe.resolve("swapped", {"kernel": str(other), "base": "test-ufs1", "size": 32}, {}))
    assert made.kernel is not None
    assert made.kernel.read_bytes() == other.read_bytes()
    assert made.data["world"] == image.find("test-ufs1").data["world"]
    assert (made.release, freebsd_source.from_image(made).label) == ("13.2", "freebsd-13.2")


@needs_makefs
def test_a_newer_kernel_on_an_older_world_says_both(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = Parts(
        destdir.world(world), kernelfile.read(elf(tmp_path / "kernel")), layout.load("ufs1", size=32),
        (Input("source/sys", "1" * 64, "/trees/13.2"), Input("kernel configuration XENA", "2" * 64, "images/kernels")),
    )  # fmt: skip
    assemble(base, "old")
    newer = elf(tmp_path / "newer", text=b"FreeBSD 15.1-RELEASE-p1 XENA\0")

    made = recipes.build(recipe.resolve("mixed", {"kernel": str(newer), "base": "old", "size": 32}, {}))
    again = recipes.build(recipe.resolve("again", {"kernel": str(newer), "base": "mixed", "size": 32}, {}))

    assert (made.version, made.world_version, made.release) == ("15.1", "13.2", "15.1 on world 13.2")
    assert again.entry == made.entry
    names = [item.what for item in made.inputs]
    assert "world's source/sys" in names
    assert not [name for name in names if name.startswith(("source", "kernel configuration"))], "those are not this kernel's"
    guest = freebsd_source.from_image(made)
    assert (guest.label, guest.os.version, guest.inputs["world"]) == ("freebsd-15.1-on-13.2", "15.1", "FreeBSD 13.2")
    cli.show("mixed")
    assert "FreeBSD 15.1 on world 13.2 amd64" in capsys.readouterr().out


@needs_makefs
def test_a_kernel_without_notes_needs_a_loader(world: Path, tmp_path: Path) -> None:
    kernel = elf(tmp_path / "kernel", notes=False)
    with pytest.raises(UsageError, match="neither PVH nor PV can start it"):
        put_together(world, kernel, "ufs1")
    assert put_together(world, kernel, "mbr").types == ("hvm",)


@needs_makefs
def test_an_image_larger_than_the_stores_disk(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1 << 20))  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match="the image needs 32 MiB, but the store has only 1 MiB free"):
        put_together(world, elf(tmp_path / "kernel"), "ufs1")


@needs_makefs
def test_files_that_do_not_fit(world: Path, tmp_path: Path) -> None:
    with (world / "usr/bin/vi").open("wb") as file:
        file.truncate(40 << 20)
    with pytest.raises(UsageError, match="40 MiB of files do not fit on a / of 32 MiB"):
        put_together(world, elf(tmp_path / "kernel"), "ufs1")


def test_ufs2_needs_freebsds_makefs() -> None:
    debian = makefs.Makefs(Path("/usr/sbin/makefs"), False, "/usr/sbin/makefs")
    with pytest.raises(BuildError, match="UFS2 needs FreeBSD's makefs"):
        makefs.check(debian, layout.FileSystem("/", "ufs2"))
    with pytest.raises(BuildError, match="there is none"):
        makefs.check(None, layout.FileSystem("/", "ufs1"))


def test_a_directory_that_is_no_destdir(tmp_path: Path, world: Path) -> None:
    with pytest.raises(UsageError, match="has no METALOG"):
        destdir.world(tmp_path)
    (world / "etc/group").unlink()
    with pytest.raises(UsageError, match="which is missing"):
        destdir.world(world)


def test_owners_of_a_destdir_that_its_files_do_not_have(tmp_path: Path, world: Path) -> None:
    with (world / "METALOG").open("a") as metalog:
        metalog.write(
            "./var/games type=dir uname=games gname=wheel mode=0775\n./var/ftp type=dir uname=ftp gname=wheel mode=0775\n"
        )
    with pytest.raises(UsageError, match=r"etc/master\.passwd lacks ftp, games, but METALOG has files of ftp, games") as caught:
        destdir.world(world)
    assert "make distribution" in caught.value.hint
    text = (world / "METALOG").read_text()
    (world / "METALOG").write_text("".join(line for line in text.splitlines(keepends=True) if "master.passwd" not in line))
    (world / "etc/master.passwd").unlink()
    with pytest.raises(UsageError, match=r"etc/master\.passwd is missing, but METALOG has files of ftp, games, root"):
        destdir.world(world)


def test_a_missing_image() -> None:
    with pytest.raises(UsageError, match="no image 'nosuch'"):
        image.find("nosuch")


@needs_makefs
def test_an_image_keeps_its_kernels_number(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel").write_bytes(fake_kernel("14.0-STABLE XENA", 1400507))
    made = put_together(world, tmp_path / "kernel", "ufs1")
    assert [made.data[name] for name in ("version", "branch", "osreldate")] == ["14.0", "STABLE", 1400507]
    cli.show("test-ufs1")
    assert "\nversion  14.0-STABLE (1400507)\n" in capsys.readouterr().out


# -- disks ------------------------------------------------------------------------------------------------------------


def test_a_disk_keeps_its_kernels_number(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(fake_kernel("15.1-RELEASE-p1 XENA", 1501000))
    (tmp_path / "disk").write_bytes(bytes(2 << 20))
    made = recipes.build(recipe.resolve("mine", {"disk": str(tmp_path / "disk"), "kernel": str(tmp_path / "kernel")}, {}))
    assert [made.data[name] for name in ("version", "branch", "osreldate")] == ["15.1", "RELEASE-p1", 1501000]


def test_a_disk_in_xz_with_its_kernel(tmp_path: Path) -> None:
    raw = bytearray(2 << 20)
    raw[8192 + 1372 : 8192 + 1376] = b"\x54\x19\x01\x00"
    (tmp_path / "disk.raw.xz").write_bytes(lzma.compress(bytes(raw)))
    options = {"disk": str(tmp_path / "disk.raw.xz"), "kernel": str(elf(tmp_path / "kernel"))}
    made = recipes.build(recipe.resolve("mine", options, {}))
    assert (made.root, made.types, made.disks[0].file.read_bytes()) == ("xbd0", ("pvh",), bytes(raw))
    assert (tmp_path / "disk.raw.xz").read_bytes() == lzma.compress(bytes(raw))


def test_an_i386_pv_kernel_with_its_disk(tmp_path: Path) -> None:
    raw = bytearray(2 << 20)
    raw[8192 + 1372 : 8192 + 1376] = b"\x54\x19\x01\x00"
    (tmp_path / "disk").write_bytes(bytes(raw))
    note = struct.pack("<III", 4, 4, 1) + b"Xen\0" + struct.pack("<I", 0xC0001000)
    text = b"FreeBSD 10.4-RELEASE XEN\0\0\0\0"
    header = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, 52 + len(text) + len(note), 0, 52, 32, 0, 40, 1, 0
    )  # fmt: skip
    section = struct.pack("<10I", 0, 7, 0, 0, 52 + len(text), len(note), 0, 0, 4, 0)
    (tmp_path / "kernel").write_bytes(header + text + note + section)
    made = recipes.build(recipe.resolve("old", {"disk": str(tmp_path / "disk"), "kernel": str(tmp_path / "kernel")}, {}))
    assert (made.version, made.data["machine"], made.types, made.root) == ("10.4", "i386", ("pv",), "xbd0")


def test_invalid_disks(tmp_path: Path) -> None:
    def take(data: bytes) -> None:
        (tmp_path / "disk").write_bytes(data)
        recipes.build(recipe.resolve("mine", {"disk": str(tmp_path / "disk")}, {}))

    with pytest.raises(UsageError, match="is not a disk image"):
        take(b"hello")
    with pytest.raises(UsageError, match="no FreeBSD on it"):
        take(bytes(2 << 20))
    with pytest.raises(UsageError, match="the xz file ends too early"):
        take(lzma.compress(bytes(2 << 20))[:-20])


# -- release sets over HTTP -------------------------------------------------------------------------------------------


class Mirror:
    """Serves files and records the requests. ``cut``: end each answer after that many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = 0
        self.requests: list[tuple[str, str]] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = mirror.files.get(self.path.lstrip("/"))
                wanted = self.headers.get("Range", "")
                mirror.requests.append((self.path, wanted))
                if data is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                rest = data[start:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                piece = rest[: mirror.cut] if mirror.cut and self.path != "/MANIFEST" else rest
                self.wfile.write(piece)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # shutdown() waits for the end of a poll.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def manifest(self) -> None:
        lines = [
            f"{name}\t{hashlib.sha256(data).hexdigest()}\t1\t{name.partition('.')[0]}\tx\ton" for name, data in self.files.items()
        ]
        self.files["MANIFEST"] = ("\n".join(lines) + "\n").encode()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    served = Mirror()

    def txz(files: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:xz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mode, info.uid = len(data), 0o4555 if name.startswith("bin/") else 0o444, 0
                tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("./sys")
            link.type, link.linkname = tarfile.SYMTYPE, "usr/src/sys"
            tar.addfile(link)
            hard = tarfile.TarInfo("./again")
            hard.type, hard.linkname = tarfile.LNKTYPE, f"./{next(iter(files))}"
            tar.addfile(hard)
        return out.getvalue()

    served.files["base.txz"] = txz(FILES | {"bin/big": os.urandom(200_000), "usr/tests/x": b"no"})
    served.files["kernel.txz"] = txz({"boot/kernel/kernel": elf(tmp_path / "k").read_bytes()})
    served.manifest()
    yield served
    served.server.shutdown()
    served.server.server_close()


@needs_makefs
def test_sets_become_an_image_and_are_fetched_once(mirror: Mirror) -> None:
    options = {"dist": mirror.url, "size": 32}
    made = recipes.build(recipe.resolve("release", options, {}))
    assert (made.version, made.types) == ("13.2", ("pvh",))
    mirror.requests.clear()
    assert recipes.build(recipe.resolve("release", options, {})).entry == made.entry
    assert mirror.requests == [("/MANIFEST", "")]


def test_unpacked_sets_keep_modes_and_links(mirror: Mirror) -> None:
    entry, kernel, inputs = dist.world(mirror.url)
    lines = dict(line.split(" ", 1) for line in (entry.directory / "METALOG").read_text().splitlines())
    assert lines["./bin/big"] == "type=file uid=0 gid=0 mode=4555"
    assert lines["./sys"].endswith("link=usr/src/sys")
    assert lines["./again"] == lines["./bin/freebsd-version"]
    assert "./usr/tests/x" not in lines
    assert kernel.read_bytes()[:4] == b"\x7fELF"
    assert {item.what for item in inputs} >= {"set base", "set kernel"}


def test_an_interrupted_fetch_is_resumed(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    size = len(mirror.files["base.txz"])
    mirror.cut = size // 3 + 1
    sha256 = hashlib.sha256(mirror.files["base.txz"]).hexdigest()
    assert fetch.checked(mirror.url, "base.txz", sha256).read_bytes() == mirror.files["base.txz"]
    assert [wanted for _, wanted in mirror.requests] == ["", f"bytes={mirror.cut}-", f"bytes={2 * mirror.cut}-"]


def test_a_mirror_that_always_interrupts(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    mirror.cut = 100
    with pytest.raises(InfrastructureError, match=r"base\.txz"):
        fetch.checked(mirror.url, "base.txz", "0" * 64)


@pytest.mark.parametrize(("status", "header", "value"), [(302, "Location", "http://[invalid"), (200, "Content-Length", "abc")])
def test_an_invalid_answer_of_a_mirror(mirror: Mirror, status: int, header: str, value: str) -> None:
    def answer(self: http.server.BaseHTTPRequestHandler) -> None:
        self.send_response(status)
        self.send_header(header, value)
        self.end_headers()

    mirror.server.RequestHandlerClass.do_GET = answer  # type: ignore[attr-defined]
    with pytest.raises(InfrastructureError, match=r"/base\.txz: invalid answer: ") as caught:
        fetch.checked(mirror.url, "base.txz", "0" * 64)
    assert "another mirror" in caught.value.hint


def test_a_mirror_that_sends_too_slowly(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, so no read expires."""

    def trickle(self: http.server.BaseHTTPRequestHandler) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.02)

    mirror.server.RequestHandlerClass.do_GET = trickle  # type: ignore[attr-defined]
    monkeypatch.setattr(fetch, "_WINDOW", 0.2)
    monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
    for read in (lambda: fetch.text(mirror.url, "MANIFEST"), lambda: fetch.checked(mirror.url, "base.txz", "0" * 64)):
        with pytest.raises(InfrastructureError, match=r"/(MANIFEST|base\.txz): the server sent \d+ bytes in \d+ s"):
            read()


def test_a_tampered_set(mirror: Mirror) -> None:
    mirror.files["base.txz"] = mirror.files["base.txz"][:-1] + b"!"
    with pytest.raises(BuildError, match=r"base\.txz of http://.* differs from its MANIFEST"):
        dist.world(mirror.url)


def test_a_truncated_set_in_a_directory(mirror: Mirror, tmp_path: Path) -> None:
    for name, data in mirror.files.items():
        (tmp_path / name).write_bytes(data if name != "kernel.txz" else data[:100])
    with pytest.raises(BuildError, match=r"kernel\.txz of .* differs from its MANIFEST .* 100 bytes"):
        dist.world(str(tmp_path))


def test_a_set_that_is_missing(mirror: Mirror) -> None:
    del mirror.files["kernel.txz"]
    with pytest.raises(InfrastructureError, match="404"):
        dist.world(mirror.url)
    mirror.manifest()
    with pytest.raises(UsageError, match="has no kernel"):
        dist.world(mirror.url)
    del mirror.files["MANIFEST"]
    with pytest.raises(UsageError, match="MANIFEST: 404"):
        dist.world(mirror.url)


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    """A packed archive of (name, type, link target), each without content. The names can be ones that no FreeBSD set has."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo("name")
            # The header of a long name or one with a NUL: a pax record.
            info.pax_headers, info.type, info.linkname = {"path": name}, kind, target
            tar.addfile(info, io.BytesIO())
    return out.getvalue()


FILE, DIRECTORY, SYMBOLIC, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("../../evil", FILE, "")], r"the path '\.\./\.\./evil' has \.\. in it"),
        ([("./etc/../../evil", FILE, "")], r"has \.\. in it"),
        ([("./a\0b", FILE, "")], r"the path './a\\x00b' has a NUL in it"),
        ([(f"./{'n' * 256}", FILE, "")], r"the path './n{78}\.\.\.' is longer than 255 bytes for a name"),
        ([(f"./{'d/' * 600}x", FILE, "")], "or 1023 for all"),
        ([("./again", HARD, "./again")], "'again' is a hard link to itself"),
        ([("./bin/cat", FILE, ""), ("./bin/cat/x", FILE, "")], "a file and a directory have one name: 'bin/cat/x'"),
        ([("./bin/cat", FILE, ""), ("./bin", FILE, "")], "a file and a directory have one name: 'bin'"),
        # These would be written through the link, outside of the world.
        ([("./out", SYMBOLIC, "/tmp"), ("./out/evil", FILE, "")], r"\./out is a link, and evil is below it"),
        ([("./out/evil", FILE, ""), ("./out", SYMBOLIC, "/tmp")], r"\./out is a link, and evil is below it"),
        ([("./out/a/evil", FILE, ""), ("./out", SYMBOLIC, "/tmp")], r"\./out is a link, and a is below it"),
        ([("./", SYMBOLIC, "/tmp")], "the top of the tree is a link"),
    ],
)
def test_a_set_that_does_not_fit_a_world(mirror: Mirror, members: list[tuple[str, bytes, str]], says: str) -> None:
    mirror.files["base.txz"] = tar_of(*members)
    mirror.manifest()
    with pytest.raises(BuildError, match=rf"^base\.txz of http://\S+: (METALOG: )?.*{says}") as caught:
        dist.world(mirror.url)
    assert "another mirror" in caught.value.hint
    left = [path.name for kind in ("worlds", "downloads") for path in store.directory(kind).iterdir()]
    assert [name[16:] for name in left if not name.startswith(".")] == ["-kernel.txz"]
    assert not [name for name in left if name.startswith((".making", ".gone"))]


@pytest.mark.parametrize(
    ("files", "says"),
    [({}, "has no file boot/kernel/kernel"), ({"boot/kernel/kernel": b""}, "boot/kernel/kernel: not an ELF file")],
)
def test_a_kernel_set_without_a_kernel(mirror: Mirror, files: dict[str, bytes], says: str) -> None:
    mirror.files["kernel.txz"] = tar_of(*((name, FILE, "") for name in files))
    mirror.manifest()
    with pytest.raises(UsageError, match=rf"^kernel\.txz of http://\S+:? {says}"):
        dist.world(mirror.url)
    assert [path.name for path in store.directory("downloads").iterdir() if not path.name.startswith(".")] == []


def test_no_network() -> None:
    assert fetch.reachable("http://127.0.0.1:9", 1) != ""
    with pytest.raises(InfrastructureError) as caught:
        fetch.text("http://127.0.0.1:9", "MANIFEST")
    assert "check the network" in caught.value.hint


# -- builds that fail or are killed -----------------------------------------------------------------------------------


@pytest.fixture
def build_directory(tmp_path: Path) -> BuildDirectory:
    """A tree whose tools/build/make.py is our script: it prints, starts jobs in process groups as bmake does, and fails."""
    script = tmp_path / "src/tools/build/make.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import os, subprocess, sys, time\n"
        "if 'fails' in sys.argv:\n"
        "    print('--- a.o ---\\n/s/a.c:1:2: error: bad\\n*** [a.o] Error code 1\\nmake: stopped'); sys.exit(2)\n"
        "if 'hangs' in sys.argv:\n"
        "    subprocess.Popen(['sleep', '300'], process_group=0); print('running', flush=True); time.sleep(300)\n"
        "print('MAKEFLAGS' in os.environ, os.environ['MAKEOBJDIRPREFIX'], sys.stdin.read() == '')\n"
    )
    tree = SourceTree(tmp_path / "src", "13.2", "RELEASE")
    return BuildDirectory(tree, Compiler(Path("/usr/bin"), "clang 14"), "", "small", 1, treescan.scan(tree.path))


def test_a_failed_build_names_its_cause(build_directory: BuildDirectory) -> None:
    with build_directory.open(), pytest.raises(BuildError, match=r"world failed:\n  /s/a.c:1:2: error: bad") as caught:
        build_directory.make("world", "fails")
    log = Path(caught.value.hint.removeprefix("the whole log is "))
    assert build_log.causes(log.read_text())[0] == "/s/a.c:1:2: error: bad"


def test_a_build_has_no_terminal_and_no_flags_of_ours(build_directory: BuildDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-k")
    with build_directory.open():
        build_directory.make("world", "works")
    assert f"False {build_directory.directory}/obj True" in (build_directory.directory / "log/world.log").read_text()


def test_warnings_of_a_newer_compiler_do_not_end_a_kernel_build(
    build_directory: BuildDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """clang 19 warns of the function definitions in 13.2's DDB; kern.pre.mk adds -Werror unless WERROR is set."""
    monkeypatch.setattr(BuildDirectory, "_configuration", lambda self, conf: "")
    monkeypatch.setattr(BuildDirectory, "_seed", lambda self, conf, flags: None)
    with build_directory.open(), pytest.raises(BuildError, match="there is no"):
        build_directory.kernel(KernConf("MINE", (), "the tree"))
    command = (build_directory.directory / "log/kernel-MINE.log").read_text().splitlines()[0]
    assert "buildkernel KERNCONF=MINE" in command
    make_conf = next(word.partition("=")[2] for word in command.split() if word.startswith("__MAKE_CONF="))
    assert "WERROR=\n" in Path(make_conf).read_text()


@pytest.mark.parametrize(("linker", "options"), [("lld", "-shared -Wl,--undefined-version"), ("bfd", "-shared"), ("", "-shared")])
def test_a_version_script_may_name_undefined_symbols(tmp_path: Path, linker: str, options: str) -> None:
    """lld 16 and later refuses them, and the libc of 13.2 has some in the small world. GNU ld may not know the option."""
    if not (bmake := shutil.which("bmake")):
        pytest.skip("bmake is missing: apt-get install bmake")
    (tmp_path / "make.conf").write_text(src_conf.MAKE_CONF)
    (tmp_path / "Makefile").write_text(
        f'.include "make.conf"\nSOLINKOPTS+=-shared\nLINKER_TYPE={linker}\nall:\n\t@echo ${{SOLINKOPTS}}\n'
    )
    done = subprocess.run([bmake, "-C", str(tmp_path), "all"], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(options.split())


def test_an_interrupted_build_leaves_no_process(build_directory: BuildDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(buildworld.Progress):
        def line(self, text: str) -> None:
            if text.startswith("running"):
                raise KeyboardInterrupt

    monkeypatch.setattr(buildworld, "Progress", Interrupted)
    with build_directory.open(), pytest.raises(KeyboardInterrupt):
        build_directory.make("world", "hangs")
    assert running(build_directory) == []


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, False), (BuildError, True)])
def test_the_last_files_of_an_interrupted_build_are_built_again(
    build_directory: BuildDirectory, error: type[BaseException], kept: bool
) -> None:
    """make would take a library that was cut short for a finished one. A make that fails by itself leaves none."""
    objects = build_directory.directory / "obj"

    def make() -> None:
        for name, age in (("old.a", 600), ("new.a", 5), ("newest.a", 0)):
            (objects / name).write_text("archive")
            os.utime(objects / name, (time.time() - age,) * 2)
        (build_directory.directory / "toolchain.done").write_text("hash")
        raise error("ended")

    with pytest.raises(error), build_directory.open():
        make()
    with build_directory.open():
        assert sorted(path.name for path in objects.iterdir()) == (["new.a", "newest.a"] if kept else []) + ["old.a"]
        assert (build_directory.directory / "toolchain.done").exists() == kept
    with build_directory.open():
        assert (objects / "old.a").exists(), "a build that ended by itself after the interrupted one loses nothing"


def test_a_build_directory_survives_a_damaged_record_and_a_file_from_the_future(build_directory: BuildDirectory) -> None:
    with build_directory.open():
        for name, age in (("old.a", 600), ("half.a", 0), ("future.h", -86400)):
            (build_directory.directory / "obj" / name).write_text("content")
            os.utime(build_directory.directory / "obj" / name, (time.time() - age,) * 2)
    (build_directory.directory / "times").write_text("")
    with build_directory.open():
        assert [path.name for path in (build_directory.directory / "obj").iterdir()] == ["old.a"]


def test_the_next_build_ends_processes_of_a_killed_one(build_directory: BuildDirectory) -> None:
    """A make in its own session, with a job in another process group and without our variable."""
    job_of_make = "import subprocess, time; print(subprocess.Popen(['sleep', '300'], process_group=0, env={}).pid, flush=True); "
    orphan = subprocess.Popen(
        [sys.executable, "-c", f"{job_of_make} time.sleep(300)"], start_new_session=True, stdout=subprocess.PIPE,
        env={"HARNESS_BUILD": str(build_directory.directory / "obj"), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert orphan.stdout is not None
    with orphan.stdout:
        job = int(orphan.stdout.readline())
    # The killed make is our child, so it stays as a zombie until it is waited for.
    waiter = threading.Thread(target=orphan.wait)
    waiter.start()
    with build_directory.open():
        waiter.join(60)
        assert orphan.returncode == -signal.SIGKILL
        assert not alive(job)


def test_a_build_that_does_not_fit(build_directory: BuildDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1 << 20))  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match="only 1 MiB free"), build_directory.open():
        pass


def running(build_directory: BuildDirectory) -> list[str]:
    mark = f"HARNESS_BUILD={build_directory.directory}/obj".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found
