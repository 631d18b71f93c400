# SPDX-License-Identifier: BSD-2-Clause
"""A real lab: started, restored, saved and killed, without leftovers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import paths, preparing
from harness.console import xentrace
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import HarnessError, InfrastructureError, LabDead, TransportError, UsageError
from harness.guests import sourcelines
from harness.guests.domain_config import build_domain_config
from harness.guests.guest import Guest
from harness.guests.os.linux import from_directory
from harness.guests.shape import Shape
from harness.images.debugfile import KernelSymbols
from harness.lab import archive, checkpoint, factory, registry
from harness.lab.checkpoint import CheckpointBroken, CheckpointKind
from harness.lab.factory import LabSpec
from harness.lab.host import LabHost
from harness.lab.lab import Lab
from harness.lab.process import listening
from harness.lab.store import XEN_SYMBOLS
from harness.preparing import Step
from harness.xen import elfsymbols
from harness.xen.config import DomainConfig

HERE = Path(__file__).parent
FXH = [sys.executable, "-c", "from harness.cli.main import main; main()"]


def fxh(*words: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*FXH, *words], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, done.stderr
    return done


def gone(pid: int) -> None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    # A zombie child of the test counts as ended.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            raise ConditionNotMet(f"process {pid} lives")


def test_dom0_is_a_real_xen_host(host: LabHost) -> None:
    assert host.info.xen_version.startswith("4.")
    assert {"pv", "pvh", "hvm", "pygrub", "checkpoint", "console-log"} <= host.capabilities
    tools = "xl pygrub xenstore-ls tcpdump ethtool nc losetup ip busybox"
    path = "for d in /usr/lib/xen-*/bin; do PATH=$PATH:$d; done"
    missing = host.transport.run(["sh", "-c", f"{path}; for t in {tools}; do command -v $t >/dev/null || echo $t; done"]).text
    assert missing == ""
    assert host.transport.run(["sh", "-c", "ls /usr/bin/qemu-system-i386 /usr/libexec/xen-qemu-system-i386 2>/dev/null; true"]).text


def test_a_restore_undoes_changes(lab: Lab) -> None:
    lab.ssh.run(["sh", "-c", "echo x > /root/mark; sync"])
    made = lab.checkpoints.find(CheckpointKind.READY)
    assert made is not None
    lab.checkpoints.restore(made)
    assert lab.ssh.run(["ls", "/root/mark"], check=False).status != 0


_AT_REST = """
for n in $(seq 30); do sh -c '(true &)'; done; sleep 1
for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null | grep -c '^sleep'
grep -ls '^State:.Z' /proc/[0-9]*/status | wc -l
set -- $(cut -d' ' -f14,15 /proc/1/stat); sleep 2; set -- $1 $2 $(cut -d' ' -f14,15 /proc/1/stat); echo $(($3 + $4 - $1 - $2))
"""


def test_dom0s_init_reaps_orphans_and_sleeps(lab: Lab) -> None:
    """It takes no CPU time when idle, and leaves no process behind. (It once left about one for each orphan.)"""
    sleeps, zombies, ticks = map(int, lab.ssh.run(["sh", "-c", _AT_REST]).text.split())
    assert (sleeps, zombies) == (1, 0)
    assert ticks < 100, f"process 1 took {ticks} of 200 ticks"


def test_flags_are_right_after_cmpxchg16b_or_the_cpu_lacks_it(lab: Lab, tmp_path: Path) -> None:
    """With wrong flags a kernel crashes rarely (QEMU 7.2)."""
    program = tmp_path / "flags"
    subprocess.run(["cc", "-nostdlib", "-static", "-o", str(program), str(HERE / "flags.S")], check=True)
    lab.ssh.put(program, "/root/flags")
    status = lab.ssh.run(["sh", "-c", "chmod +x /root/flags; /root/flags"], check=False).status
    assert status == (0 if lab.spec.accel == "kvm" else 128 + signal.SIGILL)


def test_checkpoint_with_a_running_guest(host: LabHost, tmp_path: Path) -> None:
    """After a restore everything works: hypervisor, dom0, guest, its console and its network."""
    what = from_directory(factory.control(LabSpec()))
    guest = Guest(host, what.os, build_domain_config(host, what, Shape("pv"), "fxh-kept"), tmp_path).boot()
    guest.sh("echo kept > /tmp/mark; ip addr add 10.0.2.77/24 dev eth0")
    guest.detach()
    made = host.get_or_create(CheckpointKind.USER, "test-guest", lambda: "")
    try:
        for _ in range(2):
            host.get_or_create(CheckpointKind.USER, "test-guest", lambda: pytest.fail("it is there"))
            left = host.transport.run(["busybox", "pidof", "xenconsole"], check=False).text
            assert not left, "if the console's client were saved, no other could attach"
            again = Guest(host, what.os, guest.config, tmp_path).adopt(guest.domid)
            assert again.sh("cat /tmp/mark") == "kept"
            ping = host.transport.run(["sh", "-c", "busybox ping -c 1 -W 5 10.0.2.77"], check=False)
            assert ping.status == 0, ping.text
            again.detach()
    finally:
        checkpoint.remove(made.directory)


def test_a_damaged_checkpoint_is_removed(lab: Lab) -> None:
    made = lab.checkpoints.save_as("damaged")
    data = made.state.read_bytes()
    made.state.chmod(0o600)
    made.state.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointBroken, match="could not be loaded"):
        lab.checkpoints.restore(made)
    assert lab.checkpoints.find_named("damaged") is None
    lab.checkpoints.reset()
    assert lab.ssh.run(["true"]).status == 0


def test_only_the_creation_of_a_checkpoint_counts_as_setup(lab: Lab) -> None:
    told: list[Step] = []

    def idle() -> str:
        lab.checkpoints.reset(private_memory=True)
        return ""

    stop = preparing.listen(told.append)
    try:
        for _ in range(2):
            lab.checkpoints.get_or_create(CheckpointKind.USER, "told", idle, what="dom0")
    finally:
        stop()
        if (left := lab.checkpoints.find_named("told")) is not None:
            checkpoint.remove(left.directory)
    assert [step.what for step in told] == ["checkpoint told (dom0)"]


def test_get_or_create_replaces_a_damaged_checkpoint(lab: Lab) -> None:
    made = []

    def make() -> str:
        lab.checkpoints.reset(private_memory=True)
        lab.ssh.run(["sh", "-c", "echo x > /root/mark"])
        made.append(1)
        return "noted"

    try:
        first = lab.checkpoints.get_or_create(CheckpointKind.USER, "wanted", make)
        first.state.chmod(0o600)
        first.state.write_bytes(first.state.read_bytes()[:1000])
        again = lab.checkpoints.get_or_create(CheckpointKind.USER, "wanted", make)
        assert (len(made), again.note) == (2, "noted")
        assert lab.ssh.run(["cat", "/root/mark"]).text.strip() == "x"
    finally:
        if (left := lab.checkpoints.find_named("wanted")) is not None:
            checkpoint.remove(left.directory)


def test_disks_are_plugged_without_a_copy(host: LabHost, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    data = os.urandom(1 << 20)
    image.write_bytes(data)
    device = host.disk(image)
    try:
        seen = host.transport.run(["sh", "-c", f"sha256sum < {device}; dd if=/dev/zero of={device} bs=4k count=1 2>&1; sync"]).text
    finally:
        host.drop_disk(device)
    import hashlib

    assert seen.split()[0] == hashlib.sha256(data).hexdigest()
    assert image.read_bytes() == data, "the image itself is never written to"
    with pytest.raises(UsageError, match="no such disk image"):
        host.disk(tmp_path / "none")


def test_two_labs_side_by_side_share_their_memory_file(lab: Lab) -> None:
    with factory.make(LabSpec()) as other:
        other.up()
        assert other.machine.ssh_port != lab.machine.ssh_port
        lab.ssh.run(["hostname", "one"])
        other.ssh.run(["hostname", "two"])
        assert lab.ssh.run(["hostname"]).text == "one\n"
        assert (other.directory / "ram").exists() is False, "its memory is the checkpoint's file, mapped copy-on-write"
        with pytest.raises(TransportError, match="differs from the configured one"):
            ssh_with_wrong_key(lab)
        names = {row["name"] for row in json.loads(fxh("lab", "list", "--json").stdout)}
        assert {lab.name, other.name} <= names
    assert registry.state(other.name) == ""


def ssh_with_wrong_key(lab: Lab) -> None:
    from harness.lab.keys import make
    from harness.transport.ssh import SshTransport

    wrong, _ = make()
    assert lab.keys is not None
    SshTransport("127.0.0.1", lab.machine.ssh_port, private_key=lab.keys.client, known_host_key=wrong.host)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_qemu_ends_with_its_owner(lab: Lab, how: int) -> None:
    process = subprocess.Popen([*FXH, "lab", "up", f"owned-{how}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "is up after" in line, line
    record = registry.read(f"owned-{how}")
    assert record is not None
    process.send_signal(how)
    process.wait(60)
    Deadline(60).wait("QEMU to end", lambda: gone(record.qemu_pid))
    fxh("lab", "list")
    assert registry.state(f"owned-{how}") == ""
    assert not registry.sockets(f"owned-{how}").exists()


def test_a_kept_lab_by_command_line(lab: Lab, tmp_path: Path) -> None:
    """up --keep, ssh, list, checkpoint, restore, logs, down, rm."""
    name = f"kept-{os.getpid()}"
    fxh("lab", "up", name, "--keep")
    try:
        assert fxh("lab", "up", name, "--keep", check=False).returncode == 2
        assert "Domain-0" in fxh("lab", "ssh", name, "xl", "list").stdout
        fxh("lab", "ssh", name, "touch", "/root/mark")
        fxh("lab", "checkpoint", name, "marked")
        fxh("lab", "ssh", name, "rm", "/root/mark")
        fxh("lab", "restore", name, "marked")
        fxh("lab", "ssh", name, "ls", "/root/mark")
        fxh("lab", "restore", name)
        assert fxh("lab", "ssh", name, "ls", "/root/mark", check=False).returncode != 0
        listing = fxh("lab", "list").stdout
        assert "quirk: CR4.PAE set first" in listing
        assert re.search(r"^checkpoints of xen-4\.\S+: .*\bmarked\b.* MiB, QEMU ", listing, re.MULTILINE), listing
        fxh("lab", "ssh", name, "xl", "debug-keys", "h")
        assert "'h' pressed" in fxh("lab", "logs", name).stdout
        assert fxh("lab", "restore", name, "none", check=False).returncode == 2
        fxh("lab", "down", name)
        assert registry.state(name) == "stopped"
        assert fxh("lab", "ssh", name, "true", check=False).returncode == 2
        assert "kept" in fxh("lab", "list").stdout
    finally:
        fxh("lab", "rm", name)
        for path in checkpoint.listing(lab.image):
            if path.name.startswith("marked@"):
                checkpoint.remove(path)
    assert registry.state(name) == ""


def test_a_killed_lab_ends_all_waits_on_it(lab: Lab) -> None:
    assert lab.machine.process is not None
    os.kill(lab.machine.process.pid, signal.SIGKILL)
    begun = time.monotonic()

    with pytest.raises(InfrastructureError):
        lab.ssh.run(["sleep", "60"])

    assert time.monotonic() - begun < 45, "well before the end of the command"
    Deadline(60).wait("the lab to be declared dead", lambda: _dead(lab))
    with pytest.raises(LabDead, match=r"QEMU ended: [Kk]illed"):
        lab.ssh.run(["true"])


def _dead(lab: Lab) -> None:
    if not lab.dead:
        raise ConditionNotMet("it is not")


# Stops the process of dom0's init that sends the heartbeat.
_SILENCE = 'for p in /proc/[0-9]*; do [ "$(readlink $p/fd/1)" = /dev/ttyS1 ] && kill -STOP "${p#/proc/}" && echo silent; done; true'


def test_a_silent_dom0_is_found_soon(lab: Lab) -> None:
    """Within 10 s, with the state of its CPUs, and all waits on it end at once. A hung hypervisor looks the same."""
    assert lab.ssh.run(["sh", "-c", _SILENCE]).text == "silent\n"
    begun = time.monotonic()

    with pytest.raises(HarnessError):
        lab.ssh.run(["sleep", "120"], Deadline(60))

    assert time.monotonic() - begun < 12
    assert re.search(r"no sign of life for \d+ s; CPU 0 at [0-9a-f]{16} \(", lab.dead), lab.dead
    with pytest.raises(LabDead):
        lab.ssh.run(["true"])


def test_a_panic_of_xen_is_named(lab: Lab) -> None:
    """The reason of death is Xen's own, and its call trace gets source lines. An invalid instruction in a debug key's handler panics."""
    symbols = lab.image.directory / XEN_SYMBOLS
    functions = elfsymbols.functions(elfsymbols.mapped(symbols))
    assert functions is not None
    with Gdb(lab) as gdb:
        assert gdb.ask(f"M{functions.address('dump_runq'):x},2:0f0b") == b"OK"

    with pytest.raises(HarnessError):
        lab.ssh.run(["xl", "debug-keys", "r"], Deadline(60))

    assert lab.dead.startswith("Xen panicked: FATAL TRAP: vector = 6 (invalid opcode) in dump_runq(); dom0 gave no sign of life"), (
        lab.dead
    )
    (trace,) = xentrace.traces((lab.directory / "xen.log").read_text(errors="replace"))
    lines = sourcelines.backtrace(trace.frames, KernelSymbols(lab.image.directory / "xen", (symbols,)))
    assert re.fullmatch(r"#0  dump_runq \(xen/common/sched/cpupool\.c:\d+\)", lines[0]), lines
    assert re.fullmatch(r"#1  handle_keypress \(xen/common/keyhandler\.c:\d+\)", lines[1]), lines


class Gdb:
    """QEMU's gdb stub (the remote serial protocol of GDB). The machine stands still while it is connected."""

    def __init__(self, lab: Lab) -> None:
        assert lab.machine.process is not None
        path = lab.sockets / "gdb"
        lab.machine.process.command("human-monitor-command", **{"command-line": f"gdbserver unix:{path},server=on,wait=off"})
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))

    def __enter__(self) -> Gdb:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("D")
        self.socket.close()

    def ask(self, text: str) -> bytes:
        self.socket.sendall(f"${text}#{sum(text.encode()) & 255:02x}".encode())
        data, answers = b"", []
        while not answers:
            data += self.socket.recv(4096)
            # The stub also reports that the machine has stopped: $T02thread:01;#04
            answers = [packet for packet in re.findall(rb"\$([^#]*)#..", data) if not packet.startswith(b"T")]
        self.socket.sendall(b"+")
        return bytes(answers[0])


def test_a_run_that_restores_the_checkpoint_of_another_has_its_own_directory(host: LabHost) -> None:
    def build() -> str:
        host.restore_idle()
        host.make_directory()
        return "made by another run"

    host.get_or_create(CheckpointKind.WARM, "other-run", build)
    host.run_id = "0ther0"
    host.get_or_create(CheckpointKind.WARM, "other-run", build)
    path = host.make_directory()
    assert path == host.directory
    host.transport.run(["sh", "-c", 'true > "$1"/probe', "sh", path])
    host.restore_idle()


def test_no_memory_left_for_a_guest(host: LabHost) -> None:
    host.make_directory()
    kernel = host.files(factory.control(LabSpec()) / "vmlinuz")[0]
    with pytest.raises(InfrastructureError, match="has no 9000 MiB left"):
        host.toolstack.create(DomainConfig("fxh-big", "pv", 9000, kernel=kernel))
    assert host.toolstack.find("fxh-big") is None


def test_a_file_that_is_no_kernel(host: LabHost, tmp_path: Path) -> None:
    host.make_directory()
    (tmp_path / "kernel").write_bytes(b"\x7fELF" + os.urandom(4096))
    with pytest.raises(HarnessError, match="xl create"):
        host.toolstack.create(DomainConfig("fxh-bad", "pvh", 64, kernel=host.files(tmp_path / "kernel")[0]))
    assert [row.name for row in host.toolstack.domains()] == ["Domain-0"]


def test_export_and_import_make_a_lab_elsewhere(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine needs only the archive, and creates its checkpoint at the first start."""
    archive.export(lab.image, tmp_path / "lab.tar")
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    taken = archive.import_(tmp_path / "lab.tar")
    with Lab(taken, lab.qemu, lab.accel, lab.spec, name="imported") as other:
        other.up()
        assert other.ssh.run(["xl", "list"]).status == 0
    assert checkpoint.find(taken, CheckpointKind.READY.name_of(), lab.spec, lab.qemu) is not None


def test_nothing_is_left_in_the_runtime_directory(lab: Lab) -> None:
    assert listening(lab.sockets / "qmp")
    assert lab.sockets.parent == paths.runtime()
