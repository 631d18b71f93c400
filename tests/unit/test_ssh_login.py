# SPDX-License-Identifier: BSD-2-Clause
"""Logins by ssh that fail: which of them may be a host that hangs. The servers are real, in threads."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import paramiko
import pytest

from harness.deadline import Deadline
from harness.errors import AccessError, Refused, TransportError
from harness.hosts import connect
from harness.transport import sshkeys
from harness.transport.ssh import SshTransport

HOST_KEY = paramiko.RSAKey.generate(2048)
PINNED = f"{HOST_KEY.get_name()} {HOST_KEY.get_base64()}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that calls ``serve`` for each connection. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    serve(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


def says(text: bytes) -> Callable[[socket.socket], None]:
    def serve(peer: socket.socket) -> None:
        peer.sendall(text)
        peer.close()

    return serve


class Sshd(paramiko.ServerInterface):
    """Refuses every key, and ends the connection at the given attempt (MaxAuthTries)."""

    def __init__(self, attempts: int) -> None:
        self.attempts, self.transport = attempts, mock.Mock()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.attempts -= 1
        if not self.attempts:
            self.transport.close()
        return paramiko.AUTH_FAILED  # type: ignore[attr-defined, no-any-return]


def sshd(attempts: int) -> Callable[[socket.socket], None]:
    def serve(peer: socket.socket) -> None:
        server = Sshd(attempts)
        server.transport = paramiko.Transport(peer)
        server.transport.add_server_key(HOST_KEY)
        with contextlib.suppress(paramiko.SSHException, EOFError):
            server.transport.start_server(server=server)

    return serve


def failure(port: int, seconds: float = 20.0) -> tuple[type, str]:
    """The error of a login: its type and its text."""
    with pytest.raises(TransportError) as caught:
        SshTransport("127.0.0.1", port, known_host_key=PINNED, deadline=Deadline(seconds))
    return type(caught.value), str(caught.value)


def write_keys(home: Path, count: int) -> None:
    for name in ("id_ed25519", "id_ecdsa", "id_rsa")[:count]:
        paramiko.RSAKey.generate(1024).write_private_key_file(str(home / ".ssh" / name))


def test_a_host_without_a_banner_may_hang() -> None:
    with serving(says(b"")) as port:
        kind, text = failure(port)
        assert (kind, "protocol banner" in text) == (TransportError, True)
    kept: list[socket.socket] = []
    with serving(kept.append) as port:
        assert failure(port, 1.0)[0] is TransportError


def test_a_host_that_hangs_after_its_banner_may_hang() -> None:
    kept: list[socket.socket] = []

    def serve(peer: socket.socket) -> None:
        peer.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        kept.append(peer)

    with serving(serve) as port:
        assert failure(port, 1.5)[0] is TransportError


@pytest.mark.parametrize("text", [b"SSH-1.5-old\r\n", b"220 mail\x1b[2J ready\r\n", b"SSH-2.0-OpenSSH_9.9\r\n"])
def test_a_host_that_speaks_does_not_hang(text: bytes) -> None:
    with serving(says(text)) as port:
        kind, error = failure(port)
    assert kind is AccessError
    assert "\x1b" not in error


def test_a_refused_login_is_no_hang(home: Path) -> None:
    write_keys(home, 3)
    with serving(sshd(4)) as port:
        kind, text = failure(port)
    assert kind is AccessError
    assert "the host accepts no key of the agent or of ~/.ssh for root" in text
    begun = time.monotonic()
    with serving(sshd(2)) as port:
        kind, text = failure(port)
    assert kind is AccessError
    assert "the host ended the connection after 2 of 3 keys\n  hint: set the `key` of this host" in text
    assert time.monotonic() - begun < 10


def test_a_file_that_is_no_key_is_named_and_skipped(home: Path) -> None:
    (home / ".ssh" / "id_ed25519").write_bytes(b"\xff\x00garbage")
    (home / ".ssh" / "id_ecdsa").mkdir()
    locked = paramiko.RSAKey.generate(1024)
    locked.write_private_key_file(str(home / ".ssh" / "id_rsa"), password="x")
    with serving(sshd(2)) as port:
        kind, text = failure(port)
    assert kind is AccessError
    for word in ("id_ed25519 is not a private key", "id_ecdsa: Is a directory", "id_rsa has a passphrase: run ssh-add"):
        assert word in text


def test_an_unreadable_known_hosts_is_an_error_of_this_machine(home: Path) -> None:
    for content in (None, b"\xff\xfe", b"host ssh-ed25519 A\n"):
        path = home / f"known{content!r}"
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(AccessError, match=r"cannot read .*known"):
            SshTransport("127.0.0.1", 1, known_hosts=(path,), deadline=Deadline(1))


def test_an_agent_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paramiko, "Agent", mock.Mock(side_effect=paramiko.SSHException("lost ssh-agent")))
    assert sshkeys.load("", ()).remark == " (the agent of SSH_AUTH_SOCK failed: lost ssh-agent)"


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ((errno.ENETUNREACH, errno.ECONNREFUSED), Refused),
        ((errno.ENETUNREACH,), AccessError),
        ((errno.EMFILE,), AccessError),
        ((errno.EHOSTUNREACH,), TransportError),
        ((errno.ETIMEDOUT, errno.ENETUNREACH), TransportError),
    ],
)
def test_errors_of_connect(numbers: tuple[int, ...], kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of them is a host whose IPv4 address does not answer, from a machine without IPv6."""
    group = ExceptionGroup("x", [OSError(number, "reason") for number in numbers])
    monkeypatch.setattr(socket, "create_connection", mock.Mock(side_effect=group))
    assert failure(22)[0] is kind


@pytest.mark.parametrize(
    ("error", "alive", "kind"),
    [
        (paramiko.ChannelException(1, "Administratively prohibited"), True, AccessError),
        (paramiko.ChannelException(2, "Connect failed"), True, TransportError),
        (paramiko.SSHException("Timeout opening channel."), True, TransportError),
        (paramiko.SSHException("SSH session not active"), False, AccessError),
    ],
)
def test_errors_at_a_jump_host(error: Exception, alive: bool, kind: type) -> None:
    over = mock.Mock(alive=alive)
    over._transport.open_channel.side_effect = error
    with pytest.raises(TransportError) as caught:
        SshTransport("x", known_host_key=PINNED, over=over)
    assert type(caught.value) is kind


def test_a_refused_connection_by_the_name_of_a_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Refused):
        connect.transport(connect.HostConfig(f"root@127.0.0.1:{port}"))
