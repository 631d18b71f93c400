# SPDX-License-Identifier: BSD-2-Clause
"""Release sets: written from an image, read back, served like a mirror; and the choice of the newest release."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import store, versions
from harness.cli import image as cli
from harness.errors import BuildError, UsageError
from harness.images import current_release, dist, entries, image, metalog, sets
from harness.images.image import Image
from harness.images.metalog import Tree
from harness.lab import recipe as labs
from tests.unit.test_image_parts import elf

METALOG = """#mtree 2.0
. type=dir uname=root gname=wheel mode=0755
./bin type=dir uname=root gname=wheel mode=0755
./bin/freebsd-version type=file uname=root gname=wheel mode=0555 size=1
./bin/two\\040words type=file uname=root gname=wheel mode=0444
./boot type=dir uname=root gname=wheel mode=0755
./boot/kernel type=dir uname=root gname=wheel mode=0755
./boot/kernel/if_x.ko type=file uname=root gname=wheel mode=0555
./etc type=dir uname=root gname=wheel mode=0755
./etc/group type=file uname=root gname=wheel mode=0644
./etc/master.passwd type=file uname=root gname=wheel mode=0600
./sys type=link uname=root gname=wheel mode=0755 link=usr/src/sys
./usr type=dir uname=root gname=wheel mode=0755
./usr/bin type=dir uname=root gname=wheel mode=0755
./usr/bin/chfn type=file mode=0555
./usr/bin/chpass type=file uname=root gname=wheel mode=4555
./var type=dir uname=root gname=wheel mode=0755
./var/games type=dir uname=games gname=games mode=0775
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    for name in ("FXH_MAKEFS", "FXH_RELEASE", "FXH_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "store"


def built(version: str = "15.1", *, branch: str = "RELEASE", machine: int = 62, world: str = "", name: str = "own") -> Image:
    """An image in the store with a world of a few files. ``machine`` is the number in the kernel's ELF header."""
    world = world or version

    def make_world(work: Path) -> dict[str, Any]:
        data = {
            "bin/freebsd-version": f'USERLAND_VERSION="{world}-{branch}"\n', "bin/two words": "x", "boot/kernel/if_x.ko": "module",
            "etc/group": "wheel:*:0:root\ngames:*:13:\n", "etc/master.passwd": "root::0:0::0:0:C:/root:/bin/sh\ngames:*:7:13::0:0:G:/:/x\n",
            "usr/bin/chfn": "chpass",
        }  # fmt: skip
        for path, text in data.items():
            (work / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "tree" / path).write_text(text)
        os.link(work / "tree/usr/bin/chfn", work / "tree/usr/bin/chpass")
        (work / "METALOG").write_text(METALOG)
        return {"what": "a world", "version": world, "leave_out": [], "inputs": []}

    key = hashlib.sha256(f"{version} {branch} {world}".encode()).hexdigest()[:16]
    entry = entries.get_or_create("worlds", key, make_world)

    def make_image(work: Path) -> dict[str, Any]:
        elf(work / "kernel", machine=machine, text=f"FreeBSD {version}-{branch} XENA\0".encode())
        return {"version": version, "world_version": world, "machine": "amd64", "world": entry.key, "inputs": [], "disks": []}

    made = entries.get_or_create("images", f"{key[:12]}{machine:04}", make_image)
    image.tag(name, made)
    return image.find(name)


def numbered(tree: Tree) -> dict[str, tuple[str, ...]]:
    """The relevant parts of a METALOG: type, owner and group as numbers, mode, target."""
    numbers = {"root": "0", "wheel": "0", "games": "7"}
    groups = {**numbers, "games": "13"}
    found = {}
    for path, node in tree.items():
        words = node.attributes
        user = words.get("uid") or numbers[words.get("uname", "root")]
        group = words.get("gid") or groups[words.get("gname", "wheel")]
        found[path] = (node.type, user, group, words["mode"].zfill(4), words.get("link", ""))
    return found


# -- written and read -------------------------------------------------------------------------------------------------


def test_sets_unpack_to_the_metalog_that_they_were_written_from(tmp_path: Path) -> None:
    where = sets.write(built(), tmp_path / "mirror")
    assert where == tmp_path / "mirror/releases/amd64/15.1-RELEASE"

    entry, kernel, _ = dist.world(str(where))

    was = metalog.parse(METALOG, tmp_path)
    now = metalog.parse((entry.directory / "METALOG").read_text(), entry.directory / "tree")
    expected = numbered(was) | {"./boot/kernel/kernel": ("file", "0", "0", "0555", "")}
    # A further hard link has the owner and mode of its file, not those that install(1) logged.
    expected["./usr/bin/chfn"] = expected["./usr/bin/chpass"]
    assert numbered(now) == expected
    top = entry.directory / "tree"
    assert (top / "usr/bin/chfn").stat().st_ino == (top / "usr/bin/chpass").stat().st_ino
    assert (top / "bin/two words").read_text() == "x"
    assert kernel.read_bytes() == elf(tmp_path / "k", text=b"FreeBSD 15.1-RELEASE XENA\0").read_bytes()
    assert entry.manifest["version"] == "15.1"


def test_the_kernel_is_in_its_own_set(tmp_path: Path) -> None:
    where = sets.write(built(), tmp_path)

    def names(file: str) -> list[str]:
        with tarfile.open(where / file) as tar:
            return tar.getnames()

    assert names("kernel.txz") == [".", "./boot", "./boot/kernel", "./boot/kernel/if_x.ko", "./boot/kernel/kernel"]
    base = names("base.txz")
    assert base[0] == "."
    assert "./boot/kernel" in base
    assert not [name for name in base if name.startswith("./boot/kernel/")]


def test_manifest_has_the_six_columns_of_make_manifest(tmp_path: Path) -> None:
    where = sets.write(built(), tmp_path)
    rows = [line.split("\t") for line in (where / "MANIFEST").read_text().splitlines()]
    assert [[row[0], *row[2:]] for row in rows] == [
        ["base.txz", "16", "base", '"Base system (MANDATORY)"', "on"],
        ["kernel.txz", "5", "kernel", '"Kernel (MANDATORY)"', "on"],
    ]
    for row in rows:
        assert row[1] == hashlib.sha256((where / row[0]).read_bytes()).hexdigest()


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    made = built()
    first, second = (sets.write(made, tmp_path / name) for name in ("one", "two"))
    for name in ("MANIFEST", "base.txz", "kernel.txz"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_release_name_omits_the_patch_level_and_can_be_given(tmp_path: Path) -> None:
    made = built(branch="RELEASE-p1")
    assert sets.write(made, tmp_path).name == "15.1-RELEASE"
    assert sets.write(made, tmp_path, "15.2-RELEASE").name == "15.2-RELEASE"
    for wrong in ("../x", "newest"):
        with pytest.raises(UsageError, match="not the name of a release"):
            sets.write(made, tmp_path, wrong)


def test_images_without_sets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"kernel and world have different releases \(13\.2 and 15\.1\)"):
        sets.write(built("15.1", world="13.2"), tmp_path)
    made = built()
    sets.write(made, tmp_path)
    with pytest.raises(UsageError, match="already exists"):
        sets.write(made, tmp_path)
    store.remove(store.directory("worlds") / str(made.data["world"]))
    with pytest.raises(UsageError, match="its world is not in the store"):
        sets.write(made, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("./bin/gone type=file uname=root gname=wheel mode=0555", "names ./bin/gone, which the world does not contain"),
        ("./dev type=fifo uname=root gname=wheel mode=0600", "./dev is a fifo"),
        ("./bin type=dir uname=nobody gname=wheel mode=0755", "./bin belongs to 'nobody'"),
    ],
)
def test_a_world_that_fits_no_set_leaves_nothing(tmp_path: Path, line: str, says: str) -> None:
    made = built()
    file = store.directory("worlds") / str(made.data["world"]) / "METALOG"
    file.chmod(0o644)
    file.write_text(METALOG + line + "\n")
    sums = file.with_name("sums.json")
    sums.chmod(0o644)
    sums.write_text("{}")
    with pytest.raises(BuildError, match=says):
        sets.write(made, tmp_path / "out")
    assert list((tmp_path / "out/releases/amd64").iterdir()) == []


def test_the_command_says_how_to_serve_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(name="mine")
    cli.sets("mine", tmp_path, "")
    said = capsys.readouterr()
    assert [line.split()[0].rpartition("/")[2] for line in said.out.splitlines()] == ["MANIFEST", "base.txz", "kernel.txz"]
    assert "FXH_MIRROR=http://127.0.0.1:8000/releases/amd64 make run" in said.err


# -- which is the newest ----------------------------------------------------------------------------------------------


def test_versions_are_numbers() -> None:
    names = ["15.1-RELEASE", "9.9-RELEASE", "15.1-RC2", "15.1-RC10", "15.1-BETA3", "10.0-RELEASE", "15.1-RELEASE-p1", "15.1-ALPHA1"]
    known = sorted(filter(None, map(versions.release, names)))
    assert [item.name for item in known] == [
        "9.9-RELEASE", "10.0-RELEASE", "15.1-ALPHA1", "15.1-BETA3", "15.1-RC2", "15.1-RC10", "15.1-RELEASE", "15.1-RELEASE-p1",
    ]  # fmt: skip
    assert versions.release("ISO-IMAGES") is None
    assert versions.release("14.3-RELEASE/..") is None
    assert sorted(["4.17", "4.9", "4.20"], key=versions.numbers) == ["4.9", "4.17", "4.20"]


def test_images_of_releases_by_age() -> None:
    names = ["release-10.0-RELEASE", "release-9.9-RELEASE", "release-mine", "release-10.0", "release-9.9"]
    assert current_release.by_age(names) == [
        "release-mine",
        "release-9.9",
        "release-9.9-RELEASE",
        "release-10.0",
        "release-10.0-RELEASE",
    ]


def test_xen_versions_of_recipes_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for xen in ("4.17", "4.9", "4.20"):
        (tmp_path / f"{xen}.toml").touch()
    monkeypatch.setattr(labs, "_directory", lambda: tmp_path)
    assert labs.available() == ("4.9", "4.17", "4.20")


APACHE = """<html><head><title>Index of /releases/amd64</title></head><body><table>
<tr><th><a href="?C=N;O=D">Name</a></th></tr>
<tr><td><a href="/releases/">Parent Directory</a></td></tr>
<tr><td><a href="14.3-RELEASE/">14.3-RELEASE/</a></td><td align="right">2025-06-10 00:00</td></tr>
<tr><td><a href="9.3-RELEASE/">9.3-RELEASE/</a></td></tr><tr><td><a href="ISO-IMAGES/">ISO-IMAGES/</a></td></tr></table>"""
NGINX = """<h1>Index of /releases/amd64/</h1><hr><pre><a href="../">../</a>
<a href="14.3-RELEASE/">14.3-RELEASE/</a>                   10-Jun-2025 00:00       -
<a href="9.3-RELEASE/">9.3-RELEASE/</a>                    10-Jun-2014 00:00       -</pre>"""
PYTHON = """<!DOCTYPE HTML><html><head><title>Directory listing for /releases/amd64/</title></head><body><ul>
<li><a href="14.3-RELEASE/">14.3-RELEASE/</a></li>\n<li><a href="9.3-RELEASE/">9.3-RELEASE/</a></li></ul></body></html>"""
ODD = """<A HREF='https://other.example/releases/amd64/14.3-RELEASE/?C=M&amp;O=A#x' title="99.9-RELEASE/">99.9-RELEASE</A>
<a href=/releases/amd64/9.3-RELEASE>x</a> <a href="%31%33.5-RELEASE/">x</a> <a href="/releases/i386/15.9-RELEASE/">x</a>
<a href="14.3-RELEASE/15.8-RELEASE/">x</a> <a href="http://[/15.7-RELEASE/">x</a> <a>x</a> <a href="?15.6-RELEASE/">x</a>"""


@pytest.mark.parametrize("listing", [APACHE, NGINX, PYTHON, ODD], ids=["apache", "nginx", "http.server", "odd"])
def test_listings_of_servers(listing: str) -> None:
    found = current_release.children(listing, "https://download.example/releases/amd64/")
    assert {"14.3-RELEASE", "9.3-RELEASE"} <= set(found)
    assert current_release.newest(found) == "14.3-RELEASE"


def test_a_patched_release_is_newer_than_its_release() -> None:
    assert (
        current_release.newest(["14.3-RELEASE-p1", "14.3-RELEASE", "14.10-BETA1", "15.0-STABLE", "9.3-RELEASE"])
        == "14.3-RELEASE-p1"
    )


def test_a_mirror_without_a_release_says_what_it_has() -> None:
    with pytest.raises(UsageError, match=r"m lists no release, only release candidates: 15\.1-BETA3, 15\.1-RC2, 15\.1-RC10\n"):
        current_release.newest(["15.1-RC10", "15.1-BETA3", "15.1-RC2", "ISO-IMAGES"], "m")
    with pytest.raises(UsageError, match=r"m lists no release\n") as caught:
        current_release.newest(["ISO-IMAGES"], "m")
    assert "FXH_RELEASE" in caught.value.hint


# -- from a mirror ----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """http.server over ``tmp_path/site``; /moved/... is redirected to /releases/..."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.replace("/moved/", "/releases/", 1))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "site").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def as_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the build of an image, which needs makefs, by one that keeps only the kernel."""

    def make(wanted: Any) -> Image:
        world, kernel, inputs = dist.world(wanted.dist)

        def fill(work: Path) -> dict[str, Any]:
            (work / "kernel").write_bytes(kernel.read_bytes())
            return {"version": world.manifest["version"], "inputs": [vars(item) for item in inputs]}

        entry = entries.get_or_create("images", world.key, fill)
        image.tag(wanted.name, entry)
        return Image(wanted.name, entry)

    monkeypatch.setattr(current_release.recipes, "build", make)


@pytest.mark.parametrize("top", ["releases", "moved"])
def test_the_newest_release_of_a_mirror(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str) -> None:
    as_image(monkeypatch)
    for version in ("14.2", "15.1", "9.9"):
        sets.write(built(version, name=version), tmp_path / "site")
    (tmp_path / "site/releases/amd64/15.2-RC1").mkdir()
    monkeypatch.setenv("FXH_MIRROR", f"{served}/{top}/amd64/")

    found, why = current_release.release()

    assert why == ""
    assert found is not None
    assert (found.name, found.version) == ("release-15.1-RELEASE", "15.1")


def test_the_newest_release_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_image(monkeypatch)
    for version in ("9.9", "10.0"):
        sets.write(built(version, name=version), tmp_path / "site")
    monkeypatch.setenv("FXH_MIRROR", str(tmp_path / "site/releases/amd64"))
    found, _ = current_release.release()
    assert found is not None
    assert found.name == "release-10.0-RELEASE"
    monkeypatch.setenv("FXH_MIRROR", str(tmp_path / "nowhere"))
    again, _ = current_release.release()
    assert again is not None
    assert again.name == "release-10.0-RELEASE"


def test_without_a_mirror_the_newest_sound_image_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_MIRROR", "http://127.0.0.1:9/releases/amd64")
    assert current_release.release()[0] is None
    for version in ("9.9", "10.0", "15.1"):
        built(version, name=f"release-{version}-RELEASE")
    store.remove(image.find("release-15.1-RELEASE").entry.directory)

    found, why = current_release.release()

    assert why == ""
    assert found is not None
    assert found.name == "release-10.0-RELEASE"


def test_a_mirror_with_release_candidates_alone(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("15.1-RC1", "15.1-BETA2"):
        (tmp_path / "site/releases/amd64" / name).mkdir(parents=True)
    monkeypatch.setenv("FXH_MIRROR", f"{served}/releases/amd64")
    found, why = current_release.release()
    assert found is None
    assert "lists no release, only release candidates: 15.1-BETA2, 15.1-RC1" in why


def test_another_mirror_with_the_same_name_is_not_taken_for_the_first(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_image(monkeypatch)
    sets.write(built(), tmp_path / "site")
    built(name="release-15.1-RELEASE")  # none of its inputs is a set
    monkeypatch.setenv("FXH_MIRROR", f"{served}/releases/amd64")
    found, _ = current_release.release()
    assert found is not None
    assert any(item.origin == f"{served}/releases/amd64/15.1-RELEASE (base.txz)" for item in found.inputs)


@pytest.mark.parametrize(("machine", "name"), [(183, "arm64"), (243, "riscv")])
def test_sets_of_another_architecture_leave_nothing(
    served: str, tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, machine: int, name: str
) -> None:
    sets.write(built(machine=machine), tmp_path / "site")
    before = sorted(str(path) for path in fresh.rglob("*") if not path.name.startswith("."))
    monkeypatch.setenv("FXH_MIRROR", f"{served}/releases/amd64")

    with pytest.raises(UsageError, match=rf"kernel\.txz of http.*15\.1-RELEASE is for {name}") as caught:
        current_release.release()

    assert "releases/amd64" in caught.value.hint
    after = sorted(str(path) for path in fresh.rglob("*") if not path.name.startswith(".") and path != fresh / "downloads")
    assert after == before


def test_a_base_of_another_architecture(tmp_path: Path, fresh: Path) -> None:
    elf(tmp_path / "init", machine=183)
    tree = {
        "./sbin": metalog.Node("./sbin", {"type": "dir", "mode": "0755"}),
        "./sbin/init": metalog.Node("./sbin/init", {"type": "file", "mode": "0500"}, tmp_path / "init"),
    }
    where = sets.write(built(), tmp_path)
    base = sets.archive(tree, sets.owners(tmp_path), where / "base.txz")
    (where / "MANIFEST").write_text(sets.manifest((base, sets.SetFile(where / "kernel.txz", 5))))
    with pytest.raises(UsageError, match=r"base\.txz of .* is for arm64"):
        dist.world(str(where))
    assert not [path for path in (fresh / "worlds").iterdir() if path.name.startswith(".making")]
