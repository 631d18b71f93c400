# SPDX-License-Identifier: BSD-2-Clause
"""The store: creation under a lock, damage, last use, leftovers of killed processes, garbage collection, and its commands."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from harness import store
from harness.cli import image as image_cli
from harness.cli import store as cli
from harness.errors import BuildError, InfrastructureError, UsageError
from harness.images import entries


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("FXH_RUNTIME", str(tmp_path / "run"))
    return tmp_path / "store"


def create(work: Path) -> Path:
    (work / "file").write_text("x")
    return work / "file"


def get(key: str, **options: object) -> Path:
    return store.get_or_create("volumes", key, create, step="a volume", **options)  # type: ignore[arg-type]


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def test_an_entry_may_be_a_file_below_the_work_directory(fresh: Path) -> None:
    assert get("a.img") == fresh / "volumes/a.img"
    assert (fresh / "volumes/a.img").read_text() == "x"
    assert visible(fresh / "volumes") == ["a.img"]
    assert not list((fresh / "volumes").glob(".making-*"))


def test_the_last_use_of_a_file_does_not_change_the_file(fresh: Path) -> None:
    path = get("a.img")
    os.utime(path, (1, 1))
    before = path.stat()
    get("a.img")
    assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert time.time() - store.last_used(path) < 60


def test_an_entry_of_an_older_version_is_found_and_has_a_last_use(fresh: Path) -> None:
    lab = fresh / "labs/xen-4.20-0b0cdcf244e4"
    lab.mkdir(parents=True)
    (fresh / "labs/xen-4.20-0b0cdcf244e4.lock").touch()
    os.utime(lab, (5, 5))
    assert store.last_used(lab) == 5
    assert store.entries("labs") == [lab]
    found = store.get_or_create("labs", lab.name, lambda work: pytest.fail("created again"), step="a lab")
    assert found == lab
    assert store.last_used(lab) > 5


@pytest.mark.parametrize("forced", [False, True])
def test_a_damaged_or_unwanted_entry_is_created_again(forced: bool) -> None:
    path = get("a.img")
    path.write_text("y")
    get("a.img", force=forced, damage=lambda file: "" if forced or file.read_text() == "x" else "not x")
    assert path.read_text() == "x"


def test_a_creation_needs_space(fresh: Path) -> None:
    with pytest.raises(BuildError, match=r"MiB free at .*volumes, building a.img needs 1099511627776") as caught:
        get("a.img", free_mib=1 << 40)
    assert "fxh store gc" in caught.value.hint
    assert visible(fresh / "volumes") == []


def test_an_entry_stays_if_there_is_no_space_for_another(fresh: Path) -> None:
    path = get("a.img")
    with pytest.raises(BuildError, match="MiB free at"):
        get("a.img", free_mib=1 << 40, force=True)
    assert path.exists()


def test_a_full_disk_is_infrastructure_and_another_error_is_not(fresh: Path) -> None:
    def fail(work: Path) -> Path:
        raise OSError(number, os.strerror(number))

    number = errno.ENOSPC
    with pytest.raises(InfrastructureError, match="No space left on device"):
        store.get_or_create("volumes", "a", fail, step="a volume")
    number = errno.ENOENT
    with pytest.raises(FileNotFoundError):
        store.get_or_create("volumes", "a", fail, step="a volume")
    assert visible(fresh / "volumes") == []


def test_one_thread_creates_and_the_others_wait() -> None:
    created: list[str] = []

    def slow(work: Path) -> Path:
        time.sleep(0.3)
        created.append("x")
        return work

    threads = [threading.Thread(target=store.get_or_create, args=("labs", "k", slow), kwargs={"step": "a lab"}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == ["x"]


def test_the_latest_are_kept(fresh: Path) -> None:
    for number, key in enumerate("abcd"):
        os.utime(store._stamp(get(key)), (number, number))
    get("a")
    store.keep_latest("volumes", 2)
    assert visible(fresh / "volumes") == ["a", "d"]


def test_sweep_spares_what_another_process_creates(fresh: Path) -> None:
    labs = store.directory("labs")
    for name in (".making-xen-4.20-a.abc", ".making-busy.abc", "xen-old.making-x", ".gone-x", ".gone-now"):
        (labs / name).mkdir()
    os.utime(labs / ".gone-x", (1, 1))
    with store.lock(labs / "busy"):
        removed = store.sweep("labs")
    assert sorted(path.name for path, _ in removed) == [".making-xen-4.20-a.abc", "xen-old.making-x"]
    assert sorted(path.name for path in labs.iterdir() if path.is_dir()) == [".gone-now", ".making-busy.abc"]


def test_eviction_spares_what_another_process_uses_under_its_lock(fresh: Path) -> None:
    for key in ("busy", "idle"):
        os.utime(store._stamp(get(key)), (1, 1))
    with store.lock(fresh / "volumes/busy"):
        evicted = store.evict(store.items("volumes"), max_age=60)
    assert [eviction.item.path.name for eviction in evicted] == ["idle"]
    assert visible(fresh / "volumes") == ["busy"]
    assert not list((fresh / "volumes").glob(".idle.used"))


def _lab(fresh: Path, name: str, *checkpoints: str) -> Path:
    lab = fresh / "labs" / name
    for checkpoint in checkpoints:
        (lab / "checkpoints" / checkpoint).mkdir(parents=True)
        (lab / "checkpoints" / checkpoint / "ram").write_bytes(b"x" * (2 << 20))
        meta = {"spec": {}, "keys": {}, "parent": "", "base": "", "note": "", "qemu": "", "sizes": {}}
        (lab / "checkpoints" / checkpoint / "meta.json").write_text(json.dumps(meta))
        os.utime(lab / "checkpoints" / checkpoint, (100, 100))
    os.utime(lab, (100, 100))
    return lab


def test_list_and_gc_know_every_kind(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _lab(fresh, "xen-4.20-x", "ready@1", "mine@1", "warm-a@1")
    _lab(fresh, "xen-4.17-y", "ready@1")
    get("control.img")
    entries.get_or_create("worlds", "w", lambda work: {"what": "small world of /usr/src"})
    (fresh / "control/linux-1").mkdir(parents=True)

    cli.list_(as_json=True)
    rows = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert {row["kind"] for row in rows.values()} == {"labs", "checkpoints", "volumes", "worlds", "control"}
    assert rows["w"]["about"] == "small world of /usr/src"
    assert [name for name, row in rows.items() if not row["recreatable"]] == ["mine@1", "xen-4.20-x"]
    cli.list_(["worlds"])
    assert capsys.readouterr().out.splitlines()[-1] == "0 MiB"

    cli.gc(size=1, dry_run=True)
    assert capsys.readouterr().out.endswith("MiB would be freed\n")
    assert visible(fresh / "labs") == ["xen-4.17-y", "xen-4.20-x"]
    cli.gc(size=1)
    assert visible(fresh / "labs") == ["xen-4.20-x"], "it holds a checkpoint that a user made"
    assert visible(fresh / "labs/xen-4.20-x/checkpoints") == ["mine@1"]
    cli.gc(age=1)
    assert visible(fresh / "labs") == []

    with pytest.raises(UsageError, match="gc needs a limit"):
        cli.gc()
    with pytest.raises(UsageError, match="unknown kind 'lab'"):
        cli.list_(["lab"])


def test_image_gc_is_store_gc_for_images(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = _lab(fresh, "xen-4.20-x", "ready@1")
    world = entries.get_or_create("worlds", "w", lambda work: {})
    os.utime(world.directory / ".used", (1, 1))
    image_cli.gc(age=1)
    assert "worlds w: 0 MiB, unused for" in capsys.readouterr().out
    assert lab.is_dir()
