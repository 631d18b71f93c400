# SPDX-License-Identifier: BSD-2-Clause
"""A command of dom0 behind a TCP port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.dom0 import port_command
from harness.guests.peer import Listener
from harness.transport import LOOPBACK, Stream
from harness.transport.local import LocalTransport
from harness.xen import dom0_program


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Stream]:
    """A connection to ``cat`` behind a port that takes the address ``request.param``."""
    transport = LocalTransport()
    started = dom0_program.start(transport, port_command, request.param, "cat")
    stream = transport.connect(int(Listener(started, "cat").until(rb"(\d+)\n")[1]))
    yield stream
    stream.close()
    started.close()


@pytest.mark.parametrize("connect", [LOOPBACK], indirect=True)
def test_the_connection_is_the_standard_streams_of_the_command(connect: Stream) -> None:
    connect.write(b"\0\xff\r\n" * 1000)
    came = b""
    while len(came) < 4000:
        came += connect.read(1 << 16, 20)
    assert came == b"\0\xff\r\n" * 1000


@pytest.mark.parametrize("connect", ["192.0.2.1"], indirect=True)
def test_another_address_gets_nothing(connect: Stream) -> None:
    assert connect.read(100, 20) == b""
