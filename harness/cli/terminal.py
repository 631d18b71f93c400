# SPDX-License-Identifier: BSD-2-Clause
"""Attach the user's terminal to a byte stream; Ctrl-] detaches."""

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

from harness.console.text import decode
from harness.errors import InfrastructureError, TransportError
from harness.safetext import plain
from harness.transport import Stream
from harness.transport.local import DescriptorStream

_ESCAPE = b"\x1d"  # Ctrl-]


@contextmanager
def raw_terminal() -> Iterator[bool]:
    """Put the terminal into raw mode and restore it afterwards. Yields whether stdin is a terminal."""
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
    """Connect stdin and stdout to ``stream`` until it ends or the user types Ctrl-], and close it.

    Without a terminal the output has no control sequences. Raises TransportError if reading the stream fails.
    """
    ended = threading.Event()
    errors: list[TransportError] = []

    def copy_output() -> None:
        while not ended.is_set():
            try:
                data = stream.read(1 << 16, 0.2)
            except TimeoutError:
                continue
            except TransportError as exc:
                errors.append(exc)
                data = b""
            if not data:
                ended.set()
                return
            sys.stdout.buffer.write(data if interactive else plain(decode(data)).encode())
            sys.stdout.buffer.flush()

    with raw_terminal() as interactive:
        if interactive:
            sys.stderr.write("attached; Ctrl-] detaches\r\n")
        copier = threading.Thread(target=copy_output, daemon=True)
        copier.start()
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
                ended.wait(2.0)  # stdin was a pipe that has ended: leave time for the answer
        finally:
            stream.close()
            ended.set()
            copier.join(1.0)
    if errors:
        raise errors[0]


def attach_socket(path: Path) -> None:
    """Attach the terminal to a Unix socket. Raises InfrastructureError if nothing listens there."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(path))
    except OSError as exc:
        raise InfrastructureError(f"{path}: {exc.strerror}", hint="check that the lab is up: fxh lab list") from exc
    attach(DescriptorStream(link.detach()))
