# SPDX-License-Identifier: BSD-2-Clause
"""Streams over ssh that one thread reads while another writes. Both ends are real."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import paramiko
import pytest

from harness.errors import TransportError
from harness.transport import ssh
from harness.transport.ssh import ChannelStream

# More than paramiko's window of 2 MiB.
SIZE = 6 << 20


class Sshd(paramiko.ServerInterface):
    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_SUCCESSFUL  # type: ignore[attr-defined, no-any-return]

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def ends() -> Iterator[tuple[ChannelStream, paramiko.Channel]]:
    ours, theirs = socket.socketpair()
    server, client = paramiko.Transport(theirs), paramiko.Transport(ours)
    try:
        server.add_server_key(paramiko.RSAKey.generate(2048))
        server.start_server(event=threading.Event(), server=Sshd())
        client.start_client(timeout=20)
        client.auth_none("user")
        channel = client.open_session(timeout=20)
        peer = server.accept(20)
        assert peer is not None
        yield ChannelStream(channel), peer
    finally:
        client.close()
        server.close()


def poll(stream: ChannelStream, seconds: float) -> None:
    """Read as a console's reader does, until the stream ends."""
    with contextlib.suppress(TransportError):
        while True:
            try:
                if not stream.read(100, seconds):
                    return
            except TimeoutError:
                continue


def test_a_reader_does_not_cut_a_long_write(ends: tuple[ChannelStream, paramiko.Channel]) -> None:
    """The other end pauses twice, each time for longer than the reader's time-out."""
    stream, peer = ends
    came = bytearray()

    def take() -> None:
        for part in (SIZE // 2, SIZE):
            time.sleep(0.6)
            while len(came) < part:
                came.extend(peer.recv(1 << 16))

    threading.Thread(target=poll, args=(stream, 0.1), daemon=True).start()
    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    stream.write(b"ab" * (SIZE // 2))
    taker.join(60)
    assert came == b"ab" * (SIZE // 2)


def test_a_peer_that_takes_nothing_ends_a_write(
    ends: tuple[ChannelStream, paramiko.Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_PATIENCE", 0.5)
    with pytest.raises(TransportError, match="the other end takes nothing for"):
        ends[0].write(bytes(SIZE))


def test_a_closed_stream_ends_a_write(ends: tuple[ChannelStream, paramiko.Channel]) -> None:
    stream, _ = ends
    threading.Timer(0.5, stream.close).start()
    with pytest.raises(TransportError, match="cannot write to the stream"):
        stream.write(bytes(SIZE))
