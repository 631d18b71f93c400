# SPDX-License-Identifier: BSD-2-Clause
"""Hosts: ssh configuration, pools, shards, storage, capabilities and leaks. No real host is needed."""

from __future__ import annotations

import socket
from pathlib import Path
from unittest import mock

import paramiko
import pytest

from harness.config import addresses
from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import AccessError, InfrastructureError, TransportError, UsageError
from harness.hosts import inventory, pool, sshconfig, storage
from harness.hosts.direct import DirectHost
from harness.hosts.lease import HostBusy, LeaseRequest
from harness.hosts.pool import HostPool
from harness.plugin import shard
from harness.transport import Completed
from harness.transport.ssh import SshTransport

CONFIG = """
Host xen1
  HostName 192.0.2.7
  Port 2222
  IdentityFile {key}
  UserKnownHostsFile {known}
Host far
  User toor
  ProxyJump jumper@gate:2200,xen1
Host gate
  HostName 192.0.2.1
Host circle
  ProxyJump circle
Host odd
  ProxyCommand nc %h %p
"""


@pytest.fixture
def config(tmp_path: Path) -> paramiko.SSHConfig:
    (tmp_path / "key").write_text("x")
    return paramiko.SSHConfig.from_text(CONFIG.format(key=tmp_path / "key", known=tmp_path / "known"))


def test_ssh_config_is_honoured(config: paramiko.SSHConfig, tmp_path: Path) -> None:
    route = sshconfig.resolve("xen1", config=config)
    assert (route.host, route.port, route.user) == ("192.0.2.7", 2222, "root")
    assert (route.keys, route.known_hosts) == ((tmp_path / "key",), (tmp_path / "known",))
    assert sshconfig.resolve("me@xen1:23", config=config).user == "me"
    assert sshconfig.resolve("me@xen1:23", config=config).port == 23
    assert sshconfig.resolve("[2001:db8::1]:23", config=config).host == "2001:db8::1"
    far = sshconfig.resolve("far", config=config)
    assert far.user == "toor"
    assert [(hop.user, hop.host, hop.port) for hop in far.jump] == [
        ("jumper", "192.0.2.1", 2200),
        (far.jump[1].user, "192.0.2.7", 2222),
    ]
    assert sshconfig.resolve("far", jump="none", config=config).jump == ()


@pytest.mark.parametrize("address", ["", "@h", "h:x", "h:0", "h:65536", "h:²", "[::1]x", "-oProxyCommand=x", "a b", "a b@h", "u@"])
def test_invalid_addresses(address: str) -> None:
    with pytest.raises(UsageError):
        addresses.ssh(address)


def test_unusable_ssh_configurations(config: paramiko.SSHConfig) -> None:
    with pytest.raises(UsageError, match="circle"):
        sshconfig.resolve("circle", config=config)
    with pytest.raises(UsageError, match="ProxyJump"):
        sshconfig.resolve("odd", config=config)
    with pytest.raises(UsageError, match="no such private key"):
        sshconfig.resolve("xen1", key="/none", config=config)


def test_nothing_listens_on_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(AccessError, match="check that the host is up"):
        SshTransport("127.0.0.1", port, deadline=Deadline(5))


@pytest.mark.parametrize(("closed", "alive", "works"), [(1, True, True), (2, True, True), (3, True, False), (1, False, False)])
def test_a_channel_that_closes_before_its_command_started(closed: int, alive: bool, works: bool) -> None:
    """It is opened again while the connection is alive, at most three times."""
    transport, opened = mock.Mock(), mock.Mock()
    transport.is_active.return_value = alive
    transport.open_session.return_value = opened
    opened.exec_command.side_effect = [paramiko.SSHException("Channel closed.")] * closed + [None] * 3
    ssh = object.__new__(SshTransport)
    ssh.name, ssh._transport = "xen1", transport
    if works:
        assert ssh._channel("true", Deadline(10)) is opened
    else:
        with pytest.raises(TransportError, match="ssh to xen1 dropped before: true"):
            ssh._channel("true", Deadline(10))
    assert opened.exec_command.call_count == (closed + 1 if works else min(closed, 3))


HOSTS = {name: HostConfig(name, name=name, tags=tags) for name, tags in (("a", ("x",)), ("b", ("x", "y")), ("c", ()))}


def test_selection_of_hosts() -> None:
    assert [host.name for host in pool.select_hosts("tag:x", HOSTS)] == ["a", "b"]
    assert [host.name for host in pool.select_hosts("c, tag:y,c", HOSTS)] == ["c", "b"]
    assert pool.select_hosts("root@else:22", HOSTS)[0].address == "root@else:22"
    assert pool.label("tag:nightly") == "nightly"
    with pytest.raises(UsageError, match=r"no host has tag:z\n  hint: tags in fxh\.toml: x, y"):
        pool.select_hosts("tag:z", HOSTS)


class Scripted(DirectHost):
    """A host that answers requests for a lease from a list."""

    def __init__(self, config: HostConfig, answers: list[Exception | None], log: list[str]) -> None:
        self.config, self.answers, self.log = config, answers, log

    def acquire(self, request: LeaseRequest, deadline: Deadline) -> None:
        self.log.append(
            f"{self.config.name}{' now' if request.nowait else ''}{f' after {request.supersede}' if request.supersede else ''}"
        )
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def scripted(first: int = 0, **answers: list[Exception | None]) -> tuple[HostPool, list[str]]:
    log: list[str] = []
    configs = [HOSTS[name] for name in answers]
    return HostPool(configs, first, connect=lambda config, what: Scripted(config, answers[config.name], log)), log


REQUEST = LeaseRequest("", 1)


def test_workers_start_with_different_hosts_and_take_one_with_room() -> None:
    hosts, log = scripted(first=1, a=[], b=[HostBusy("full")], c=[HostBusy("full")])
    assert hosts.acquire(REQUEST, Deadline(5)).config.name == "a"
    assert log == ["b now", "c now", "a now"]
    hosts, log = scripted(first=1, a=[HostBusy("full")], b=[HostBusy("full"), None])
    assert hosts.acquire(REQUEST, Deadline(5)).config.name == "a"
    assert log == ["b now", "a now", "a"], "if all are full, each worker queues on another host"


def test_a_lost_host_comes_last_and_its_lease_is_superseded() -> None:
    hosts, log = scripted(a=[], b=[])
    hosts.mark_lost("a", "gone", "abc123")
    assert hosts.acquire(REQUEST, Deadline(5)).config.name == "b"
    hosts.mark_lost("b", "gone", "def456")
    hosts.acquire(REQUEST, Deadline(5))
    assert log == ["b now", "a now after abc123"]


def test_only_a_host_that_was_held_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, log = scripted(a=[TransportError("no route")])
    with pytest.raises(InfrastructureError, match="no host works:\n  a: no route"):
        hosts.acquire(REQUEST, Deadline(5))
    assert log == ["a"]
    monkeypatch.setattr(pool, "_PAUSE", 0.01)
    hosts, log = scripted(a=[TransportError("rebooting"), TransportError("rebooting"), None])
    hosts.mark_lost("a", "gone", "abc123")
    assert hosts.acquire(REQUEST, Deadline(5)).config.name == "a"
    assert len(log) == 3
    hosts, log = scripted(a=[TransportError("dead")] * 100)
    hosts.mark_lost("a", "gone", "abc123")
    for _ in range(2):
        with pytest.raises(InfrastructureError):
            hosts.acquire(REQUEST, Deadline(0.05))
    count = len(log)
    with pytest.raises(InfrastructureError):
        hosts.acquire(REQUEST, Deadline(60))
    assert len(log) == count + 1, "only the first call waits"


def test_shards_are_a_partition_and_do_not_depend_on_order() -> None:
    ids = [f"suites/boot/test_x.py::test_{n}" for n in range(17)]
    parts = [shard.part(ids[::-1] if n == 2 else ids, (n, 3)) for n in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(ids)
    assert {len(part) for part in parts} == {5, 6}
    for text in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(UsageError):
            shard.parse(text)


class Recorder:
    """A transport that records the commands."""

    name = "there"

    def __init__(self, **answers: str) -> None:
        self.lines: list[str] = []
        self.answers = answers

    def run(self, argv: list[str], deadline: object = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        self.lines.append(" ".join(argv))
        return Completed(tuple(argv), 0, self.answers.get(argv[0], "").encode(), b"")


@pytest.mark.parametrize(
    ("kind", "dom0", "target", "words", "last"),
    [
        ("file", "linux", "/dev/loop3", "losetup --show -f /d/n", " sh /dev/loop3 /d"),
        ("file", "freebsd", "/d/n", "cp", "rm -f /d/n"),
        ("lvm:vg0", "linux", "/dev/vg0/n", "lvcreate -y -W n -L 1000b -n n vg0", "lvremove -f vg0/n"),
        ("zvol:tank/vm", "freebsd", "/dev/zvol/tank/vm/n", "zfs create -s -V 131072 tank/vm/n", "zfs destroy tank/vm/n"),
    ],
)
def test_disks_by_kind_of_storage(kind: str, dom0: str, target: str, words: str, last: str) -> None:
    there = Recorder(losetup="/dev/loop3\n", sh="1000\n")
    chosen = storage.choose(kind, "/d", dom0)
    assert chosen.create(there, "/files/base", "n") == target  # type: ignore[arg-type]
    assert words in "\n".join(there.lines)
    chosen.remove(there, target)  # type: ignore[arg-type]
    assert there.lines[-1].endswith(last)


@pytest.mark.parametrize(
    ("caps", "found", "expected"),
    [
        ("xen-3.0-x86_64 xen-3.0-x86_32p", "", {"pv", "pv32"}),
        ("xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_64", "", {"pv", "pvh", "hvm"}),
        ("hvm-3.0-x86_64", "/usr/lib/xen-4.17/boot/xen-shim\n", {"pvh", "hvm", "pvshim"}),
    ],
)
def test_guest_types_of_a_host(caps: str, found: str, expected: set[str]) -> None:
    info = f"xen_major : 4\nxen_minor : 17\nxen_extra : .7\nxen_caps : {caps}\ntotal_memory : 1\nfree_memory : 1\nnr_cpus : 1\n"
    there = Recorder(xl=info, ls=found)
    host = DirectHost(there)  # type: ignore[arg-type]
    assert host.capabilities - {"pygrub", "console-log"} == expected
    assert ("/usr/lib/xen-4.17/boot/xen-shim" in "\n".join(there.lines)) == ("pvh" in expected)


def test_the_uefi_firmware_is_probed_once_for_the_host_s_xen() -> None:
    info = (
        "xen_major : 4\nxen_minor : 17\nxen_extra : .7\nxen_caps : hvm-3.0-x86_64\ntotal_memory : 1\nfree_memory : 1\nnr_cpus : 1\n"
    )
    there = Recorder(xl=info, sh="console-log\nlibxl /usr/lib/libxenlight.so.4.17.0\novmf-missing /usr/share/ovmf/OVMF.fd\n")
    host = DirectHost(there)  # type: ignore[arg-type]
    assert "no firmware file /usr/share/ovmf/OVMF.fd" in host.no_uefi
    assert "console-log" in host.capabilities
    assert sum("libxenlight" in line for line in there.lines) == 1
    assert next(line for line in there.lines if "libxenlight" in line).endswith(" sh 4.17")
    assert host.own_ovmf is None


@pytest.mark.parametrize("kind", ["nfs", "lvm:", "lvm:-x", "zvol:a b", "lvm:a;b"])
def test_invalid_storage(kind: str) -> None:
    with pytest.raises(UsageError):
        storage.choose(kind, "/d", "linux")


def test_leaks_of_other_runs_are_left_out() -> None:
    text = (
        "%domains\nDomain-0 0 768 1 r----- 1.0\n%vifs\nvif7.0\nxnb8.0\n"
        "%files\n/sys/block/loop0/loop/backing_file:/var/lib/fxh/run-ours/a\n/sys/block/loop1/loop/backing_file:/var/lib/fxh/run-other/a\n"
        "/proc/1/cmdline:xl create /x/fxh-other-1-control.cfg\n12:xl create /x/fxh-ours-1-control.cfg\n"
        "%domains\nfxh-other-1-control 7 160 1 -b---- 1.0\n"
    )
    before = inventory.parse("%domains\n")
    names = [str(item) for item in inventory.parse(text, "ours").leaks_since(before)]
    assert names == ["loop loop0 /var/lib/fxh/run-ours/a", "process xl create /x/fxh-ours-1-control.cfg", "vif xnb8.0"]
