# SPDX-License-Identifier: BSD-2-Clause
"""Parts of the lab that need no running machine: recipes, checkpoints' files, archives, records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError, LabDead, UsageError
from harness.lab import archive, checkpoint, control, cpio, criu, criu_probe, keys, prune, qemu, recipe, registry
from harness.lab.checkpoint import Checkpoint, CheckpointKind
from harness.lab.machine import overlay
from harness.lab.monitor import Monitor
from harness.lab.process import Process, listening
from harness.lab.qemu import MachineSpec, Qemu
from harness.lab.registers import cpu_state, in_guest_mode
from harness.lab.store import LabImage
from harness.sparse import copy_sparse
from tests.processes import wait_for_end

SPEC = MachineSpec(2560, 1, "tcg", qemu.TCG_CPU)
QEMU = Qemu("qemu-system-x86_64", (7, 2, 22))


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("FXH_RUNTIME", str(tmp_path / "run"))
    return tmp_path / "store"


def image(store: Path) -> LabImage:
    directory = store / "labs" / "xen-0-test"
    (directory / "control").mkdir(parents=True)
    for name in archive.FILES:
        (directory / name).write_bytes(name.encode() * 100)
    (directory / "manifest.json").write_text(json.dumps({"xen": "0"}))
    return LabImage(directory)


def test_every_recipe_reads_and_its_key_depends_on_every_input(tmp_path: Path) -> None:
    for xen in recipe.available():
        made = recipe.load(xen)
        assert made.xen == xen
        changed = [
            replace(made, suite="sid"),
            replace(made, packages=(*made.packages, "x")),
            replace(made, modules=made.modules[1:]),
            replace(made, trim=()),
            replace(made, files=((made.files[0][0], b"other"), *made.files[1:])),
        ]
        assert len({made.key, *(other.key for other in changed)}) == 6
    own = tmp_path / "xen.gz"
    own.write_bytes(b"one")
    first = recipe.load(hypervisor=own).key
    own.write_bytes(b"two")
    assert recipe.load(hypervisor=own).key != first


def test_unknown_recipe() -> None:
    with pytest.raises(UsageError, match=r"no lab recipe for Xen '3.0'\n  hint: choose one of 4.17, 4.20"):
        recipe.load("3.0")
    with pytest.raises(UsageError, match="hypervisor /none: no such file"):
        recipe.load(hypervisor=Path("/none"))


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(8192), b"a" + bytes(4095) + b"b", bytes(1 << 20) + b"c" * 5000 + bytes(1 << 20), os.urandom(1 << 21)]
)  # fmt: skip
def test_sparse_copy_is_equal_and_has_no_zero_pages(tmp_path: Path, data: bytes) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(data)
    os.truncate(source, len(data) + (5 << 20))
    copy_sparse(source, target)
    assert target.read_bytes() == data + bytes(5 << 20)
    assert target.stat().st_blocks * 512 <= len(data) - data.count(bytes(4096)) * 4096 + 3 * 4096


def test_checkpoint_is_found_by_the_same_machine_only(store: Path, tmp_path: Path) -> None:
    lab = image(store)
    files = {}
    for name in ("ram", "state", "root.qcow2"):
        files[name] = tmp_path / name
        files[name].write_bytes(name.encode())
    made, _ = keys.make()
    target = checkpoint.path(lab, "mine", SPEC, QEMU)
    checkpoint.save(lab, Checkpoint(target, "mine", replace(SPEC, drives=(1, 2)), made, "ready@x", "a note"), files, QEMU)

    found = checkpoint.find(lab, "mine", SPEC, QEMU)
    assert found is not None
    assert (found.keys, found.spec.drives, found.parent, found.note) == (made, (1, 2), "ready@x", "a note")
    assert checkpoint.find(lab, "mine", replace(SPEC, cpus=2), QEMU) is None
    assert checkpoint.find(lab, "mine", replace(SPEC, cpu="EPYC"), QEMU) is None
    assert checkpoint.find(lab, "mine", replace(SPEC, pae_first=False), QEMU) is None
    assert checkpoint.find(lab, "mine", SPEC, Qemu("q", (10, 0, 2))) is None
    os.truncate(found.state, 1)
    assert checkpoint.find(lab, "mine", SPEC, QEMU) is None, "a damaged checkpoint is not found"
    with pytest.raises(UsageError):
        checkpoint.path(lab, "../x", SPEC, QEMU)


def test_a_hot_checkpoint_is_found_with_the_same_snapshotter_only(store: Path, tmp_path: Path) -> None:
    """A cold one of the same name exists next to it, and all others find that one."""
    lab = image(store)
    made, _ = keys.make()
    for key, name in (("", "root.qcow2"), ("a kernel", "core-1000.img")):
        (tmp_path / name).write_bytes(b"data")
        files = {name: tmp_path / name}
        if key:
            (tmp_path / "fxh1-0a1b2c.qcow2").write_bytes(b"disk")
            files["fxh1-0a1b2c.qcow2"] = tmp_path / "fxh1-0a1b2c.qcow2"
        target = checkpoint.path(lab, "warm-x", SPEC, QEMU, key)
        checkpoint.save(lab, Checkpoint(target, "warm-x", SPEC, made, "ready@x", "", bool(key)), files, QEMU)

    found = checkpoint.find(lab, "warm-x", SPEC, QEMU, "a kernel")
    assert found is not None
    assert (found.hot, found.disk("fxh1").name) == (True, "fxh1-0a1b2c.qcow2"), "the name that QEMU has opened"
    ordinary = checkpoint.find(lab, "warm-x", SPEC, QEMU)
    assert ordinary is not None
    assert (ordinary.hot, ordinary.disk("fxh1").name) == (False, "fxh1.qcow2")
    assert checkpoint.find(lab, "warm-x", SPEC, QEMU, "another kernel") is None


@pytest.mark.parametrize(
    ("name", "kind", "hot", "of_suites"),
    [
        ("ready", CheckpointKind.READY, False, False),
        ("ready-hot", CheckpointKind.READY_HOT, True, False),
        ("rest-x", CheckpointKind.REST, True, True),
        ("warm-x", CheckpointKind.WARM, True, True),
        ("warm-x@0123456789", CheckpointKind.WARM, True, True),
        ("mine", CheckpointKind.USER, False, False),
        ("ready-mine", CheckpointKind.USER, False, False),
    ],
)
def test_kinds_by_the_names_in_the_store(name: str, kind: CheckpointKind, hot: bool, of_suites: bool) -> None:
    found = CheckpointKind.of(name)
    assert (found, found.may_be_hot, found.of_suites) == (kind, hot, of_suites)
    bare = name.partition("@")[0]
    assert kind.name_of(bare.removeprefix(kind.value)) == bare


def test_a_checkpoint_whose_parent_was_replaced_is_not_found(store: Path, tmp_path: Path) -> None:
    """Its disks and its memory depend on the old parent."""
    lab = image(store)
    made, _ = keys.make()

    def save(name: str, parent: str) -> Path:
        (tmp_path / "root.qcow2").write_bytes(b"disk")
        target = checkpoint.path(lab, name, SPEC, QEMU)
        return checkpoint.save(
            lab, Checkpoint(target, name, SPEC, made, parent), {"root.qcow2": tmp_path / "root.qcow2"}, QEMU
        ).directory

    base = save("ready", "")
    save("warm-x", base.name)
    assert checkpoint.find(lab, "warm-x", SPEC, QEMU) is not None
    save("ready", "")
    assert checkpoint.find(lab, "warm-x", SPEC, QEMU) is None


def test_two_processes_create_the_same_checkpoint(store: Path, tmp_path: Path) -> None:
    """The first one stays, because others may be loading it. If it is replaced, a process that loads it notices."""
    lab = image(store)
    made, _ = keys.make()
    target = checkpoint.path(lab, "warm-x", SPEC, QEMU)

    def save(note: str, replace_: bool) -> Checkpoint:
        (tmp_path / "root.qcow2").write_bytes(note.encode())
        mine = Checkpoint(target, "warm-x", SPEC, made, "", note)
        return checkpoint.save(lab, mine, {"root.qcow2": tmp_path / "root.qcow2"}, QEMU, replace=replace_)

    first, second = save("one", False), save("two", False)
    assert (second.note, (target / "root.qcow2").read_text()) == ("one", "one")
    assert first.is_there()
    assert second.is_there()
    third = save("three", True)
    assert (first.is_there(), third.is_there(), third.note) == (False, True, "three")
    checkpoint.remove(target)
    assert not third.is_there()
    assert [path.name for path in target.parent.iterdir()] == [".saving.lock"]


def test_criu_is_found_once_and_may_be_switched_off(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_CRIU", "off")
    criu_probe.find.cache_clear()
    assert criu_probe.find() == (None, "switched off by FXH_CRIU=off")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("FXH_CRIU", "/none/criu")
    criu_probe.find.cache_clear()
    assert criu_probe.find() == (None, "CRIU needs root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    criu_probe.find.cache_clear()
    found, why = criu_probe.find()
    assert found is None
    assert "/none/criu" in why
    known = json.loads((store / "CRIU.json").read_text())
    noted = {"criu": ["/bin/sh", "x"], "label": "CRIU 9", "why": "as noted"}
    (store / "CRIU.json").write_text(json.dumps(known | {"found": noted}))
    criu_probe.find.cache_clear()
    assert criu_probe.find() == (criu.CriuSnapshotter(("/bin/sh", "x"), "CRIU 9"), "as noted"), "it is not tried again"
    criu_probe.find.cache_clear()


def test_a_process_without_a_namespace_is_found_as_itself() -> None:
    # This process may have the QEMU of a lab test below it.
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert criu.pid_in_namespace(process.pid) == process.pid
        finally:
            process.kill()


def test_archive_round_trip_and_damage(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, file = image(store), tmp_path / "lab.tar"
    archive.export(lab, file)
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "other"))
    taken = archive.import_(file)
    assert taken.key == lab.key
    assert (taken.directory / "control/initrd").read_bytes() == (lab.directory / "control/initrd").read_bytes()

    data = bytearray(file.read_bytes())
    at = data.index(b"vmlinuzvmlinuz")
    data[at] ^= 1
    (tmp_path / "bad.tar").write_bytes(bytes(data))
    with pytest.raises(UsageError, match="is damaged"):
        archive.import_(tmp_path / "bad.tar")
    (tmp_path / "cut.tar").write_bytes(file.read_bytes()[:3000])
    with pytest.raises(HarnessError):
        archive.import_(tmp_path / "cut.tar")
    with pytest.raises(HarnessError):
        archive.import_(tmp_path / "none.tar")
    assert not list((tmp_path / "other" / "labs").glob("*making*"))


def test_an_archive_cannot_choose_a_path(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as tar:
        info = tarfile.TarInfo("fxh-lab/../../evil")
        tar.addfile(info)
    with pytest.raises(UsageError, match="not a lab archive"):
        archive.import_(file)
    assert not (tmp_path / "evil").exists()


def test_cpio_is_what_cpio_reads(tmp_path: Path) -> None:
    data = cpio.archive({"a/b": (0o755, b"hello"), "c": (0o600, b""), "d": (cpio.LINK, b"a/b")})
    assert data.startswith(b"070701")
    assert data.count(b"070701") == 8
    assert b"TRAILER!!!" in data
    readers = {"bsdtar": ["-xf", "-"], "cpio": ["-idm", "--quiet"], "busybox": ["cpio", "-id"]}
    reader = next(filter(shutil.which, readers), "")
    if not reader:
        pytest.skip("nothing here reads cpio; apt-get install libarchive-tools")
    subprocess.run([reader, *readers[reader], "a/b", "c", "d"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "d").readlink() == Path("a/b")
    assert (tmp_path / "d").read_text() == "hello"


def test_old_and_missing_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, text in (("qemu-old", "QEMU emulator version 6.1.0"), ("qemu-odd", "hello"), ("qemu-img", "")):
        (fake / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (fake / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(fake))
    with pytest.raises(InfrastructureError, match=r"is version 6\.1\.0, a lab needs 7\.2"):
        qemu.find("qemu-old")
    with pytest.raises(InfrastructureError, match="no version in 'hello"):
        qemu.find("qemu-odd")
    with pytest.raises(InfrastructureError, match="pkg install qemu"):
        qemu.find("qemu-none")


def test_the_error_of_a_qemu_that_ends_at_once(tmp_path: Path) -> None:

    process = Process.start(["sh", "-c", "echo no such machine >&2; exit 1"], tmp_path, tmp_path / "log")
    with pytest.raises(LabDead, match="no such machine"):
        process.connect(Deadline(5))
    process.stop()


def test_no_qemu_at_the_monitor(tmp_path: Path) -> None:
    assert not listening(tmp_path / "qmp")
    with pytest.raises(LabDead):
        Monitor(tmp_path / "qmp")


def test_overlay_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"not a qcow2")
    with pytest.raises(InfrastructureError, match="that it is a disk image of format qcow2"):
        overlay(tmp_path / "a", tmp_path / "b", "qcow2")


REGISTERS = """CPU#0
RAX=0000000000000000 RDI=%s
RIP=%s RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=%d
CR0=%s CR2=0000365cb7b8c89c CR3=00000000b60dc000 CR4=00010660
"""


@pytest.mark.parametrize(
    ("looks", "busy", "words"),
    [
        # Scrubbing: the registers move.
        ([("1", "ffff82d040216247", 0, "8005003b"), ("2", "ffff82d040216247", 0, "8005003b")], True, "in Xen, running"),
        # A spinlock: they do not.
        ([("1", "ffff82d040216247", 0, "8005003b")] * 2, False, "in Xen, running"),
        # The defect of QEMU: paging is off, and it runs through nothing.
        ([("1", "ffff82d0403a4809", 0, "00000019"), ("1", "ffff82d0403c0101", 0, "00000019")], False, "lost: paging is off"),
        ([("1", "ffff82d040302757", 1, "8005003b")] * 2, False, "halted"),
    ],
)
def test_busy_or_hung(looks: list[tuple[str, str, int, str]], busy: bool, words: str) -> None:
    state = cpu_state([REGISTERS % look for look in looks])
    assert (state.busy, words in state.text) == (busy, True), state


def test_guest_mode() -> None:
    assert not in_guest_mode("GDT= ffff820000000000 0000efff\nIDT=     ffff82d04057f000 00000fff\n")
    assert in_guest_mode("IDT=     ffff82d04057f000 00000fff\nIDT=     fffffe0000000000 00000fff\n")


def test_stale_labs_are_swept(store: Path, tmp_path: Path) -> None:
    directory = registry.directory("gone")
    directory.mkdir(parents=True)
    record = registry.LabRecord("gone", "/x", "QEMU 7", 999999, 999999, False, 1, "tcg", "", "", "", "ssh-ed25519 A", SPEC)
    registry.write(record, "key")
    assert registry.read("gone") == record
    assert json.loads((directory / "lab.json").read_text())["chamber"] is False, "the field's name for other versions"
    assert registry.state("gone") == "stale"
    assert registry.sweep() == ["lab gone"]
    assert registry.state("gone") == ""
    registry.directory("kept").mkdir()
    registry.write(replace(record, name="kept", kept=True), "key")
    assert registry.state("kept") == "stopped"
    assert registry.sweep() == []
    # Another process starts this one: its record follows.
    registry.directory("new").mkdir()
    assert registry.state("new") == "starting"
    assert registry.sweep() == []
    long_ago = time.time() - 3600
    os.utime(registry.directory("new"), (long_ago, long_ago))
    assert registry.sweep() == ["lab new"]


def test_prune_removes_only_unused_files(store: Path) -> None:
    labs = store / "labs"
    long_ago = time.time() - 20 * 86400
    for name in ("xen-old", "xen-new", "xen-half.making-x"):
        (labs / name / "checkpoints" / "warm-a@1").mkdir(parents=True)
        (labs / name / "xen").write_bytes(b"x" * 8192)
        meta = {"spec": {}, "keys": {}, "parent": "", "note": "", "qemu": "", "sizes": {}}
        (labs / name / "checkpoints" / "warm-a@1" / "meta.json").write_text(json.dumps(meta))
    for kernel in ("linux-old", "linux-new", "linux-half.making-x"):
        (store / "control" / kernel).mkdir(parents=True)
    for old in (
        "xen-old/checkpoints/warm-a@1",
        "xen-old",
        "xen-half.making-x",
        "xen-new/checkpoints/warm-a@1",
        "../control/linux-old",
        "../control/linux-half.making-x",
    ):
        os.utime(labs / old, (long_ago, long_ago))
    removed = prune.prune(14)
    assert {gone.path.name for gone in removed} == {"linux-old", "linux-half.making-x", "xen-old", "xen-half.making-x", "warm-a@1"}
    assert [p.name for p in (store / "control").iterdir()] == ["linux-new"]
    assert sorted(p.name for p in labs.iterdir()) == ["xen-new"]
    assert sum(gone.size for gone in removed) >= 16384
    assert prune.prune(14) == ()


def test_checkpoints_of_suites_have_a_size_limit(store: Path) -> None:
    def make(image: str, name: str, age: int, parent: str = "") -> None:
        path = store / "labs" / image / "checkpoints" / name
        path.mkdir(parents=True)
        (path / "ram").write_bytes(b"x" * (1 << 20))
        meta = {
            "spec": {**asdict(SPEC)}, "keys": {"client": "", "host": ""}, "parent": parent, "base": "", "note": "",
            "qemu": "QEMU 7", "sizes": {"ram": 1 << 20},
        }  # fmt: skip
        (path / "meta.json").write_text(json.dumps(meta))
        os.utime(path, (time.time() - age, time.time() - age))

    make("xen-old", "ready@1", 99)
    make("xen-old", "warm-a@1", 90)
    make("xen-new", "rest-a@1", 80)
    make("xen-new", "warm-b@1", 70, parent="rest-a@1")
    make("xen-new", "warm-c@1", 60)

    # Never the lab's ready checkpoint, and no parent of another checkpoint.
    assert [gone.path.name for gone in prune.bound(3 << 20)] == ["warm-a@1", "warm-b@1"]
    assert [gone.path.name for gone in prune.bound(3 << 20)] == []
    assert [gone.path.name for gone in prune.bound(0)] == ["rest-a@1", "warm-c@1"]
    assert control.checkpoints() == ["checkpoints of xen-old: ready; 1 MiB, QEMU 7"]


def test_a_criu_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout(1) also ends the child of nsenter, which is CRIU."""
    nsenter = tmp_path / "nsenter"
    nsenter.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/pid; wait\n")
    nsenter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(criu, "_DUMP", 1)
    with pytest.raises(InfrastructureError, match="CRIU did not save QEMU within 1 s"):
        criu.CriuSnapshotter(("criu",), "CRIU 9").dump(1, tmp_path)
    wait_for_end(int((tmp_path / "pid").read_text()))
