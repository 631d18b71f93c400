# SPDX-License-Identifier: BSD-2-Clause
"""The debug set of a release: fetched once, found by build-id; hostile archives; a failure is a warning."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import store
from harness.digest import file_sha256
from harness.errors import BuildError
from harness.images import debugfile, debugset, entries, fetch, image, recipe, recipes, sets
from harness.images.debugfile import KernelSymbols
from harness.xen import elfnotes, symbolizer
from tests.unit.test_image_store import Mirror, needs_makefs

needs_tools = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("nm") and [*Path("/usr/lib").glob("llvm-*/bin/llvm-symbolizer")]),
    reason="needs cc, nm and llvm-symbolizer (Debian: gcc binutils llvm)",
)
# A FreeBSD kernel as far as the builder reads it, with Xen's note PHYS32_ENTRY.
SOURCE = """\
const char version[] = "FreeBSD 15.1-RELEASE XENA\\n";
int osreldate = 1501000;
__asm__(".pushsection .note.Xen,\\"a\\",@note; .long 4, 4, 18; .asciz \\"Xen\\"; .long 4096; .popsection");
int main(void) { return osreldate; }
"""
INSTALLED = "./usr/lib/debug/boot/kernel/kernel.debug"


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_store(tmp_path / "store", monkeypatch)


def use_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(path))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kernel`` without source lines, its ``kernel.full``, and those of ``other``."""
    directory = tmp_path_factory.mktemp("kernels")
    for name, text in (("kernel", ""), ("other", "int more;\n")):
        (directory / "kernel.c").write_text(SOURCE + text)
        subprocess.run(["cc", "-g", "-Wl,--build-id=sha1", "-o", f"{name}.full", "kernel.c"], cwd=directory, check=True)
        subprocess.run(["objcopy", "--strip-debug", f"{name}.full", name], cwd=directory, check=True)
    return directory


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    served = Mirror()
    yield served
    served.server.shutdown()
    served.server.server_close()


def txz(*members: tuple[str, bytes], **attributes: Any) -> bytes:
    """An archive; ``attributes`` are set in all members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def stored() -> list[str]:
    return [entry.key for _, entry in entries.listing("kernels")]


# -- the way from a mirror to a line ----------------------------------------------------------------------------------


@needs_tools
def test_the_set_is_fetched_once_and_found_by_build_id(kernels: Path, mirror: Mirror) -> None:
    kernel = kernels / "kernel"
    module = ("./usr/lib/debug/boot/kernel/if_x.ko.debug", b"of a module")
    mirror.files["kernel-dbg.txz"] = txz(module, (INSTALLED, (kernels / "kernel.full").read_bytes()))
    mirror.manifest()

    debugset.keep(mirror.url, kernel)

    debug = KernelSymbols(kernel).debug
    assert debug is not None
    assert [path.name for path in debug.parent.iterdir() if "debug" in path.name] == ["kernel.debug"]
    table = subprocess.run(["nm", debug], capture_output=True, text=True, check=True).stdout
    main = int(re.search(r"^([0-9a-f]+) T main$", table, re.MULTILINE)[1], 16)  # type: ignore[index]
    assert [(line.function, line.line) for line in symbolizer.lookup(debug, [main])[0]] == [("main", 4)]
    assert KernelSymbols(kernels / "other").debug is None

    mirror.requests.clear()
    store.remove(store.directory("downloads"))
    debugset.keep(mirror.url, kernel)
    assert mirror.requests == []


@needs_tools
@needs_makefs
def test_an_image_from_sets_has_the_lines_of_the_image_they_were_made_of(
    kernels: Path, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def world(work: Path) -> dict[str, Any]:
        texts = {
            "bin/freebsd-version": 'USERLAND_VERSION="15.1-RELEASE"\n', "etc/group": "wheel:*:0:root\n",
            "etc/master.passwd": "root::0:0::0:0:Charlie:/root:/bin/sh\n",
        }  # fmt: skip
        lines = [". type=dir mode=0755", "./bin type=dir mode=0755", "./etc type=dir mode=0755"]
        for name, text in texts.items():
            (work / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (work / "tree" / name).write_text(text)
            lines.append(f"./{name} type=file mode=0555")
        (work / "METALOG").write_text("\n".join(lines) + "\n")
        return {"what": "a world", "version": "15.1", "leave_out": [], "inputs": []}

    def kernel_image(work: Path) -> dict[str, Any]:
        shutil.copyfile(kernels / "kernel", work / "kernel")
        return {"version": "15.1", "machine": "amd64", "world": "0123456789abcdef", "inputs": [], "disks": []}

    def debug_file(work: Path) -> dict[str, Any]:
        shutil.copyfile(kernels / "kernel.full", work / debugfile.NAME)
        return {}

    entries.get_or_create("worlds", "0123456789abcdef", world)
    entries.get_or_create("kernels", "0123456789abcdef", debug_file)
    image.tag("own", entries.get_or_create("images", "0123456789abcdef", kernel_image))
    where = sets.write(image.find("own"), tmp_path)
    assert (where / "MANIFEST").read_text().splitlines()[2].split("\t")[2:] == ["7", "kernel_dbg", '"Kernel (Debugging)"', "on"]
    mirror.files |= {path.name: path.read_bytes() for path in where.iterdir()}

    use_store(tmp_path / "second", monkeypatch)
    options = {"dist": mirror.url, "size": 32}
    made = recipes.build(recipe.resolve("release", options, {}))

    assert made.kernel is not None
    debug = KernelSymbols(made.kernel).debug
    assert debug is not None
    assert debug.is_relative_to(tmp_path / "second/kernels")
    assert debugfile.has_lines(debug)
    mirror.requests.clear()
    recipes.build(recipe.resolve("release", options, {}))
    assert mirror.requests == [("/MANIFEST", "")], "the world's"
    recipes.build(recipe.resolve("mine", options | {"kernel": str(kernels / "other")}, {}))
    assert mirror.requests == [("/MANIFEST", "")] * 2, "the set of another kernel is not needed"


@needs_tools
def test_a_file_in_use_survives_garbage_collection(kernels: Path, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/kernel-dbg.txz").write_bytes(txz((INSTALLED, (kernels / "kernel.full").read_bytes())))
    write_manifest(tmp_path / "sets")
    debugset.keep(str(tmp_path / "sets"), kernels / "kernel")
    (entry,) = (entry for _, entry in entries.listing("kernels"))
    os.utime(entry.directory / ".used", (0, 0))
    assert KernelSymbols(kernels / "kernel").debug is not None
    assert entry.used > 0


# -- failures ---------------------------------------------------------------------------------------------------------


def write_manifest(directory: Path) -> None:
    rows = [f"{path.name}\t{file_sha256(path)}\t1\t{path.stem.replace('-', '_')}\tx\ton\n" for path in directory.glob("*.txz")]
    (directory / "MANIFEST").write_text("".join(rows))


@needs_tools
@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda files: files.clear(), "MANIFEST: 404"),
        (lambda files: files.update(MANIFEST=b"<html>"), "names no set"),
        (lambda files: files.update(MANIFEST=b""), "has no kernel-dbg.txz"),
        (lambda files: files.pop("kernel-dbg.txz"), "kernel-dbg.txz: 404"),
        (lambda files: files.update({"kernel-dbg.txz": b"changed"}), "differs from its MANIFEST"),
    ],
    ids=["no MANIFEST", "damaged MANIFEST", "not listed", "not there", "changed"],
)
def test_a_set_that_cannot_be_had_is_a_warning(
    kernels: Path, mirror: Mirror, caplog: pytest.LogCaptureFixture, break_it: Any, says: str
) -> None:
    mirror.files["kernel-dbg.txz"] = txz((INSTALLED, (kernels / "kernel.full").read_bytes()))
    mirror.manifest()
    break_it(mirror.files)
    debugset.keep(mirror.url, kernels / "kernel")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.match(rf"backtraces of this kernel will have no source lines: .*{says}.*; --symbols can name", record.getMessage())
    assert stored() == []


@needs_tools
def test_the_set_of_another_kernel_is_not_kept(kernels: Path, mirror: Mirror, caplog: pytest.LogCaptureFixture) -> None:
    mirror.files["kernel-dbg.txz"] = txz((INSTALLED, (kernels / "other.full").read_bytes()))
    mirror.manifest()
    debugset.keep(mirror.url, kernels / "kernel")
    assert f"belongs to another kernel (build-id {elfnotes.build_id(kernels / 'other')}, not" in caplog.text
    assert stored() == []


def test_a_kernel_without_a_build_id_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetch, "text", lambda *_: pytest.fail("not needed"))
    (tmp_path / "kernel").write_bytes(b"\x7fELF")
    debugset.keep("http://127.0.0.1:9", tmp_path / "kernel")
    assert "no build-id" in caplog.text


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "MANIFEST").write_text(f"kernel-dbg.txz\t{'0' * 64}\t1\tkernel_dbg\tx\ton\n")
    monkeypatch.setattr(fetch, "checked", full)
    monkeypatch.setattr(debugfile, "build_id", lambda path: "ab")
    (tmp_path / "kernel").touch()
    debugset.keep(str(tmp_path), tmp_path / "kernel")
    assert "No space left on device" in caplog.text
    assert stored() == []


# -- hostile archives -------------------------------------------------------------------------------------------------

LARGE_HEADER = txz((INSTALLED, b"x"), pax_headers={"comment": "x" * (2 << 20)})


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (txz(("../../" + INSTALLED, b"x")), "has no usr/lib/debug"),
        (txz((INSTALLED, b""), type=tarfile.SYMTYPE, linkname="/etc/passwd"), "has no usr/lib/debug"),
        (txz((INSTALLED, b""), type=tarfile.LNKTYPE, linkname="/etc/passwd"), "has no usr/lib/debug"),
        (txz((INSTALLED, b""), type=tarfile.DIRTYPE), "has no usr/lib/debug"),
        (txz((INSTALLED, bytes(2 << 20))), "is too large"),
        (txz(("./filler", bytes(9 << 20)), (INSTALLED, b"x")), "the limit is 8 MiB"),
        (txz(("./a", bytes(5 << 20)), ("./b", bytes(5 << 20)), (INSTALLED, b"x")), "above the limit of 8 MiB"),
        (LARGE_HEADER, "more than 16 KiB"),
        (txz((INSTALLED, bytes(100_000)))[:-40], "cannot be unpacked"),
        (txz((INSTALLED, b"x"))[:60], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
        (b"", "cannot be unpacked"),
    ],
    ids=["outside", "symlink", "hard link", "directory", "large", "much", "many", "header", "cut", "short", "text", "empty"],
)
def test_an_archive_that_is_refused(archive: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debugset, "_MOST_FILE", 1 << 20)
    monkeypatch.setattr(debugset, "_MOST_READ", 8 << 20)
    (tmp_path / "set.txz").write_bytes(archive)
    with pytest.raises(BuildError, match=rf"set\.txz.*{says}"):
        debugset.extract(tmp_path / "set.txz", tmp_path / "kernel.debug")
    assert {path.name for path in tmp_path.iterdir()} <= {"kernel.debug", "set.txz"}
    assert sum(path.stat().st_size for path in tmp_path.glob("kernel.debug")) <= 1 << 20


def test_an_absolute_name_is_only_a_name(tmp_path: Path) -> None:
    (tmp_path / "set.txz").write_bytes(txz(("./a", b"1"), ("/usr/lib/debug/boot/kernel/kernel.debug", b"found"), ("./b", b"2")))
    debugset.extract(tmp_path / "set.txz", tmp_path / "kernel.debug")
    assert (tmp_path / "kernel.debug").read_bytes() == b"found"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel.debug", "set.txz"]
