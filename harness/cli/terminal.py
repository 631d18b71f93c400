# SPDX-License-Identifier: BSD-2-Clause
"""The user's terminal joined to a byte stream; Ctrl-] ends it."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.console.text import decode, plain
from harness.errors import InfrastructureError, TransportError
from harness.transport import Stream
from harness.transport.local import DescriptorStream

_ESCAPE = b"\x1d"


@contextmanager
def raw_terminal() -> Iterator[bool]:
    """The terminal without line editing, put back afterwards; yields whether there is one."""
    if not sys.stdin.isatty():
        yield False
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def attach(stream: Stream) -> None:
    """Join stdin and stdout to ``stream`` until it ends or Ctrl-] is typed; it is closed then.

    What is not typed by a person at a terminal is shown without control sequences. Raises TransportError where the stream is no
    way to what it should show.
    """
    ended = threading.Event()
    refused: list[TransportError] = []

    def show() -> None:
        while not ended.is_set():
            try:
                data = stream.read(1 << 16, 0.2)
            except TimeoutError:
                continue
            except TransportError as exc:
                refused.append(exc)
                data = b""
            if not data:
                ended.set()
                return
            sys.stdout.buffer.write(data if interactive else plain(decode(data)).encode())
            sys.stdout.buffer.flush()

    with raw_terminal() as interactive:
        if interactive:
            sys.stderr.write("attached; Ctrl-] ends\r\n")
        shower = threading.Thread(target=show, daemon=True)
        shower.start()
        try:
            while not ended.is_set():
                ready, _, _ = select.select([sys.stdin], [], [], 0.2)
                if not ready:
                    continue
                typed = os.read(sys.stdin.fileno(), 4096)
                if not typed or _ESCAPE in typed:
                    break
                stream.write(typed)
            if not interactive:
                ended.wait(2.0)  # what was asked for by a pipe gets its answer
        finally:
            stream.close()
            ended.set()
            shower.join(1.0)
    if refused:
        raise refused[0]


def attach_socket(path: Path) -> None:
    """Join the terminal to a Unix socket. Raises InfrastructureError when nobody is there."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(path))
    except OSError as exc:
        raise InfrastructureError(f"{path}: {exc.strerror}", hint="is the lab up? (`fxh lab list`)") from exc
    attach(DescriptorStream(link.detach()))
