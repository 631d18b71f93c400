# SPDX-License-Identifier: BSD-2-Clause
"""How hosts are named, reached, chosen and looked after, as far as that needs none."""

from __future__ import annotations

import socket
from pathlib import Path
from unittest import mock

import paramiko
import pytest

from harness.config.schema import HostConfig
from harness.deadline import Deadline
from harness.errors import InfrastructureError, TransportError, UsageError
from harness.hosts import inventory, pool, sshconfig, storage
from harness.hosts.host import DirectHost
from harness.hosts.lease import HostBusy, LeaseRequest
from harness.hosts.pool import Pool
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


@pytest.mark.parametrize("address", ["", "@h", "h:x", "-oProxyCommand=x", "a b", "u@"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UsageError):
        sshconfig.parse(address)


def test_ways_that_cannot_be(config: paramiko.SSHConfig) -> None:
    with pytest.raises(UsageError, match="circle"):
        sshconfig.resolve("circle", config=config)
    with pytest.raises(UsageError, match="ProxyJump"):
        sshconfig.resolve("odd", config=config)
    with pytest.raises(UsageError, match="no such private key"):
        sshconfig.resolve("xen1", key="/none", config=config)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TransportError, match="check that the host is up"):
        SshTransport("127.0.0.1", port, deadline=Deadline(5))


@pytest.mark.parametrize(("closed", "alive", "works"), [(1, True, True), (2, True, True), (3, True, False), (1, False, False)])
def test_a_channel_that_is_closed_before_its_command_began(closed: int, alive: bool, works: bool) -> None:
    """It is opened again while the connection lives, and not for ever."""
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


def test_words_for_hosts() -> None:
    assert [host.name for host in pool.members("tag:x", HOSTS)] == ["a", "b"]
    assert [host.name for host in pool.members("c, tag:y,c", HOSTS)] == ["c", "b"]
    assert pool.members("root@else:22", HOSTS)[0].address == "root@else:22"
    assert pool.label("tag:nightly") == "nightly"
    with pytest.raises(UsageError, match=r"no host with tag:z\n  hint: tags in fxh\.toml: x, y"):
        pool.members("tag:z", HOSTS)


class Scripted(DirectHost):
    """A host that says what it is told to when somebody wants a share."""

    def __init__(self, config: HostConfig, answers: list[Exception | None], log: list[str]) -> None:
        self.config, self.answers, self.log = config, answers, log

    def acquire(self, wish: LeaseRequest, deadline: Deadline) -> None:
        self.log.append(f"{self.config.name}{' now' if wish.nowait else ''}{f' after {wish.supersede}' if wish.supersede else ''}")
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def scripted(first: int = 0, **answers: list[Exception | None]) -> tuple[Pool, list[str]]:
    log: list[str] = []
    configs = [HOSTS[name] for name in answers]
    return Pool(configs, first, connect=lambda config, what: Scripted(config, answers[config.name], log)), log


WISH = LeaseRequest("", 1)


def test_workers_begin_at_different_hosts_and_go_where_there_is_room() -> None:
    made, log = scripted(first=1, a=[], b=[HostBusy("full")], c=[HostBusy("full")])
    assert made.acquire(WISH, Deadline(5)).config.name == "a"
    assert log == ["b now", "c now", "a now"]
    made, log = scripted(first=1, a=[HostBusy("full")], b=[HostBusy("full"), None])
    assert made.acquire(WISH, Deadline(5)).config.name == "a"
    assert log == ["b now", "a now", "a"], "where all are full it queues, each worker elsewhere"


def test_a_lost_host_is_asked_last_and_its_lease_is_ended() -> None:
    made, log = scripted(a=[], b=[])
    made.lost("a", "gone", "abc123")
    assert made.acquire(WISH, Deadline(5)).config.name == "b"
    made.lost("b", "gone", "def456")
    made.acquire(WISH, Deadline(5))
    assert log == ["b now", "a now after abc123"]


def test_a_host_that_never_was_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, log = scripted(a=[TransportError("no route")])
    with pytest.raises(InfrastructureError, match="none of the hosts serves:\n  a: no route"):
        made.acquire(WISH, Deadline(5))
    assert log == ["a"]
    monkeypatch.setattr(pool, "_PAUSE", 0.01)
    made, log = scripted(a=[TransportError("rebooting"), TransportError("rebooting"), None])
    made.lost("a", "gone", "abc123")
    assert made.acquire(WISH, Deadline(5)).config.name == "a"
    assert len(log) == 3
    made, log = scripted(a=[TransportError("dead")] * 100)
    made.lost("a", "gone", "abc123")
    for _ in range(2):
        with pytest.raises(InfrastructureError):
            made.acquire(WISH, Deadline(0.05))
    count = len(log)
    with pytest.raises(InfrastructureError):
        made.acquire(WISH, Deadline(60))
    assert len(log) == count + 1, "it was waited for once"


def test_shards_are_a_partition_the_same_everywhere() -> None:
    ids = [f"suites/boot/test_x.py::test_{n}" for n in range(17)]
    parts = [shard.part(ids[::-1] if n == 2 else ids, (n, 3)) for n in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(ids)
    assert {len(part) for part in parts} == {5, 6}
    for text in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(UsageError):
            shard.parse(text)


class Recorder:
    """A transport that writes down what it is to run."""

    name = "there"

    def __init__(self, **answers: str) -> None:
        self.lines: list[str] = []
        self.answers = answers

    def run(self, argv: list[str], deadline: object = None, *, stdin: bytes = b"", check: bool = True) -> Completed:
        self.lines.append(" ".join(argv))
        return Completed(tuple(argv), 0, self.answers.get(argv[0], "").encode(), b"")


@pytest.mark.parametrize(
    ("kind", "dom0", "target", "words"),
    [
        ("file", "linux", "/dev/loop3", "losetup --show -f /d/n"),
        ("file", "freebsd", "/d/n", "cp"),
        ("lvm:vg0", "linux", "/dev/vg0/n", "lvcreate -y -W n -L 1000b -n n vg0"),
        ("zvol:tank/vm", "freebsd", "/dev/zvol/tank/vm/n", "zfs create -s -V 131072 tank/vm/n"),
    ],
)
def test_disks_by_kind_of_storage(kind: str, dom0: str, target: str, words: str) -> None:
    there = Recorder(losetup="/dev/loop3\n", sh="1000\n")
    chosen = storage.choose(kind, "/d", dom0)
    assert chosen.make(there, "/files/base", "n") == target  # type: ignore[arg-type]
    assert words in "\n".join(there.lines)
    chosen.drop(there, target)  # type: ignore[arg-type]
    assert target in there.lines[-1] or target.split("/", 2)[2].removeprefix("zvol/") in there.lines[-1]


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


def test_whether_a_host_has_a_uefi_firmware_is_asked_once_for_its_own_xen() -> None:
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
def test_storage_that_is_none(kind: str) -> None:
    with pytest.raises(UsageError):
        storage.choose(kind, "/d", "linux")


def test_a_shared_host_shows_only_our_own_leaks() -> None:
    text = (
        "%domains\nDomain-0 0 768 1 r----- 1.0\n%vifs\nvif7.0\nxnb8.0\n"
        "%files\n/sys/block/loop0/loop/backing_file:/var/lib/fxh/run-ours/a\n/sys/block/loop1/loop/backing_file:/var/lib/fxh/run-other/a\n"
        "/proc/1/cmdline:xl create /x/fxh-other-1-control.cfg\n12:xl create /x/fxh-ours-1-control.cfg\n"
        "%domains\nfxh-other-1-control 7 160 1 -b---- 1.0\n"
    )
    before = inventory.parse("%domains\n")
    names = [str(item) for item in inventory.parse(text, "ours").leaks_since(before)]
    assert names == ["loop loop0 /var/lib/fxh/run-ours/a", "process xl create /x/fxh-ours-1-control.cfg", "vif xnb8.0"]
