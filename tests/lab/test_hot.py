# SPDX-License-Identifier: BSD-2-Clause
"""Hot checkpoints: restored many times, side by side. If CRIU fails, the lab makes a cold checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import store
from harness.deadline import ConditionNotMet, Deadline
from harness.guests.domain_config import build_domain_config
from harness.guests.guest import Guest
from harness.guests.os.linux import from_directory
from harness.guests.shape import Shape
from harness.lab import checkpoint, criu_probe, factory, registry
from harness.lab.checkpoint import Checkpoint, CheckpointKind
from harness.lab.criu import CriuSnapshotter
from harness.lab.factory import LabSpec
from harness.lab.host import LabHost
from harness.lab.lab import Lab
from harness.xen.config import Disk

pytestmark = pytest.mark.skipif(criu_probe.find()[0] is None, reason=f"no hot checkpoints here: {criu_probe.find()[1]}")
# For this worker only: another one may run the same tests.
KEY = f"test{os.getpid()}"


@pytest.fixture
def own() -> Iterator[Lab]:
    """A lab for one test, because these tests change more than a reset restores."""
    with factory.make(LabSpec()) as lab:
        lab.up()
        yield lab
        with contextlib.suppress(FileNotFoundError):
            for path in checkpoint.listing(lab.image):
                if path.name.startswith(f"{CheckpointKind.WARM.name_of(KEY)}@"):
                    checkpoint.remove(path)


def marked(lab: Lab) -> Checkpoint:
    def make() -> str:
        lab.checkpoints.reset()
        lab.ssh.run(["sh", "-c", "echo kept > /root/mark; sync"])
        return "marked"

    return lab.checkpoints.get_or_create(CheckpointKind.WARM, KEY, make)


def test_the_idle_lab_is_hot(own: Lab) -> None:
    ready = own.checkpoints.find(CheckpointKind.READY_HOT)
    assert ready is not None
    assert ready.hot
    assert ready.parent.startswith("ready@"), "it depends on the cold one, whose memory it maps"
    assert not own.checkpoints.find(CheckpointKind.READY).hot  # type: ignore[union-attr]
    left = own.ssh.run(["sh", "-c", "xl list | wc -l; losetup -a | wc -l; ls /tmp /var/log/xen/*warm* 2>/dev/null; ip link"]).text
    assert left.split()[:2] == ["2", "0"], left
    assert "vif" not in left, "the domain of the prewarm left nothing"


def test_a_restored_lab_has_our_nice_value(own: Lab) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    lower = min(19, ours + 3)
    os.setpriority(os.PRIO_PROCESS, 0, lower)
    try:
        own.checkpoints.reset()
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, ours)
    tasks = Path(f"/proc/{own.machine.running().pid}/task").iterdir()
    assert {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks} == {lower}


def test_processes_side_by_side_from_one_image(own: Lab, tmp_path: Path) -> None:
    """Both have the same pid and paths inside, but their memory, disks, sockets and ports are separate."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"guest" * 1000 + bytes(1 << 20))
    made = marked(own)
    assert made.hot
    with factory.make(LabSpec()) as other:
        other.up()
        again = other.checkpoints.get_or_create(CheckpointKind.WARM, KEY, lambda: pytest.fail("it is there"))
        assert again.note == "marked"
        for lab in (own, other):
            lab.ssh.run(["sh", "-c", f"hostname {lab.name}; echo {lab.name} >> /root/mark; sync"])
        # A disk can be plugged into a restored process, and only that lab has it.
        device = LabHost(other).disk(image)
        seen = other.ssh.run(["sh", "-c", f"head -c 5 {device}; hostname; cat /root/mark"]).text
        assert seen == f"guest{other.name}\nkept\n{other.name}\n"
        assert (
            own.ssh.run(["sh", "-c", "hostname; cat /root/mark; ls /dev/sd* 2>/dev/null; true"]).text
            == f"{own.name}\nkept\n{own.name}\n"
        )
        own.checkpoints.restore(made)
        assert own.ssh.run(["cat", "/root/mark"]).text == "kept\n"
        assert other.ssh.run(["hostname"]).text == f"{other.name}\n"
    assert registry.state(other.name) == ""


def test_a_guest_continues_with_its_console_disk_and_network(own: Lab, tmp_path: Path) -> None:
    what = from_directory(factory.control(LabSpec()))
    host = LabHost(own)
    image = tmp_path / "disk.img"
    data = os.urandom(1 << 20)
    image.write_bytes(data)
    shape = Shape("pvh", disks=(Disk(host.disk(image), "xvdb"),))
    guest = Guest(host, what.os, build_domain_config(host, what, shape, "fxh-hot"), tmp_path).boot()
    guest.sh("echo kept > /tmp/mark; ip addr add 10.0.2.77/24 dev eth0")
    guest.detach()
    made = own.checkpoints.get_or_create(CheckpointKind.WARM, KEY, lambda: "")
    assert made.hot
    for _ in range(3):
        host.get_or_create(CheckpointKind.WARM, KEY, lambda: pytest.fail("it is there"))
        again = Guest(host, what.os, guest.config, tmp_path).adopt(guest.domid)
        assert again.sh("cat /tmp/mark; echo gone > /tmp/mark") == "kept"
        assert again.sh("md5sum < /dev/xvdb").split()[0] == hashlib.md5(data).hexdigest()
        again.sh("dd if=/dev/zero of=/dev/xvdb bs=64k count=16; sync")
        assert host.transport.run(["sh", "-c", "busybox ping -c 1 -W 5 10.0.2.77"], check=False).status == 0
        again.detach()


def test_a_broken_hot_checkpoint_becomes_a_cold_one(own: Lab) -> None:
    made = marked(own)
    pages = next(made.directory.glob("core-*.img"))
    pages.chmod(0o600)
    pages.write_bytes(pages.read_bytes()[::-1])
    again = marked(own)
    assert not made.directory.exists()
    assert not again.hot, "after a failure, the lab does not try CRIU again"
    assert own.ssh.run(["cat", "/root/mark"]).text == "kept\n"


@pytest.mark.parametrize("before", ["find", "restore"])
def test_a_checkpoint_that_is_removed_meanwhile_is_created_again(own: Lab, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    first = marked(own)
    owner, name = (store, "mark_used") if before == "find" else (CriuSnapshotter, "restore")
    original = getattr(owner, name)

    def too_late(*arguments: object, **named: object) -> None:
        monkeypatch.undo()
        checkpoint.remove(first.directory)
        original(*arguments, **named)

    monkeypatch.setattr(owner, name, too_late)
    again = marked(own)
    assert again.hot
    assert again.identity != first.identity
    assert not first.is_there()
    assert again.is_there()
    assert own.ssh.run(["cat", "/root/mark"]).text.strip() == "kept"


def test_a_cold_checkpoint_if_criu_cannot_save(own: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.machine.criu is not None
    monkeypatch.setattr(own.machine, "criu", CriuSnapshotter(("false",), own.machine.criu.label))
    made = marked(own)
    assert not made.hot
    assert own.ssh.run(["cat", "/root/mark"]).text == "kept\n"


def test_a_users_checkpoint_of_a_restored_process_is_cold(own: Lab) -> None:
    """`fxh lab checkpoint`: it has to outlive a change of kernel or processor."""
    own.ssh.run(["sh", "-c", "echo mine > /root/mark; sync"])
    made = own.checkpoints.save_as("hot-test-mine")
    try:
        assert not made.hot
        assert own.ssh.run(["cat", "/root/mark"]).text == "mine\n"
    finally:
        checkpoint.remove(made.directory)


def test_the_namespaces_end_with_their_owner(own: Lab) -> None:
    """With their processes and mounts. The mounts are never visible from outside."""
    assert str(own.machine.criu.view.directory) not in Path("/proc/self/mounts").read_text()  # type: ignore[union-attr]
    assert own.machine.process is not None
    pid = own.machine.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NSpid:" in status
    assert status.split("NSpid:")[1].split()[1] == "1000"
    own.down()
    Deadline(60).wait("QEMU to end", lambda: _gone(pid))
    shown = subprocess.run(["ps", "-axww", "-o", "command="], capture_output=True, text=True, check=True).stdout
    assert str(own.directory) not in shown


def _gone(pid: int) -> None:
    if Path(f"/proc/{pid}").exists():
        raise ConditionNotMet(f"process {pid} lives")


def test_criu_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_CRIU", "off")
    criu_probe.find.cache_clear()
    try:
        with factory.make(LabSpec()) as lab:
            lab.up()
            assert not lab.checkpoints.hot
            assert lab.parent.startswith("ready@")
            assert lab.ssh.run(["xl", "list"]).status == 0
    finally:
        criu_probe.find.cache_clear()
