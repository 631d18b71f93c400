# SPDX-License-Identifier: BSD-2-Clause
"""The program that records changes in xenstore, against a small xenstored."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.dom0 import xenstore_recorder
from harness.dom0.xenstore_recorder import DIRECTORY, ERROR, EVENT, READ, UNWATCH, WATCH, Recorder
from harness.report import console

BACKEND = "/local/domain/0/backend/vbd/3/51712"


class Xenstored:
    """Serves one connection. :meth:`write` changes a node and fires the watches on it and above it."""

    def __init__(self, path: Path) -> None:
        self.nodes = {"/local/domain": "", "/local/domain/0": "", "/local/domain/0/name": "Domain-0"}
        self.watches: set[str] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._lock = threading.Lock()
        self._peer: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def write(self, path: str, value: str) -> None:
        with self._lock:
            self.nodes[path] = value
            self.fire(path)

    def introduce(self, domain: int, name: str) -> None:
        with self._lock:
            self.nodes |= {f"/local/domain/{domain}": "", f"/local/domain/{domain}/name": name}
            self.fire("@introduceDomain")

    def release(self, domain: int) -> None:
        with self._lock:
            root = f"/local/domain/{domain}"
            self.nodes = {path: value for path, value in self.nodes.items() if path != root and not path.startswith(f"{root}/")}
            self.fire("@releaseDomain")

    def fire(self, path: str) -> None:
        for watch in self.watches:
            if path == watch or path.startswith(f"{watch}/"):
                self._send(EVENT, f"{path}\0token\0")

    def _send(self, kind: int, text: str) -> None:
        body = text.encode()
        assert self._peer is not None
        self._peer.sendall(b"".join(n.to_bytes(4, "little") for n in (kind, 0, 0, len(body))) + body)

    def _serve(self) -> None:
        self._peer, _ = self._listener.accept()
        file = self._peer.makefile("rb")
        while header := file.read(16):
            kind, length = int.from_bytes(header[:4], "little"), int.from_bytes(header[12:], "little")
            path = file.read(length).decode().split("\0")[0]
            with self._lock:
                self._answer(kind, path)

    def _answer(self, kind: int, path: str) -> None:
        if kind == WATCH:
            self.watches.add(path)
            self._send(WATCH, "OK\0")
            self._send(EVENT, f"{path}\0token\0")
        elif kind == UNWATCH:
            self.watches.discard(path)
            self._send(UNWATCH, "OK\0")
        elif kind == DIRECTORY:
            names = {node.removeprefix(f"{path}/").split("/")[0] for node in self.nodes if node.startswith(f"{path}/")}
            self._send(DIRECTORY, "".join(f"{name}\0" for name in sorted(names)))
        elif kind == READ and path in self.nodes:
            self._send(READ, self.nodes[path])
        else:
            self._send(ERROR, "ENOENT\0")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Xenstored:
    monkeypatch.setattr(xenstore_recorder, "SOCKETS", (str(tmp_path / "socket"),))
    monkeypatch.setattr(xenstore_recorder, "BATCH", 0.01)
    monkeypatch.setattr(xenstore_recorder, "LOOK", 0.1)
    return Xenstored(tmp_path / "socket")


@pytest.fixture
def log(store: Xenstored, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "xenstore.log"
    thread = threading.Thread(target=Recorder(str(path), "fxh-").run)
    thread.start()
    yield path
    path.unlink()
    thread.join(10)
    assert not thread.is_alive(), "it ends when its log is gone"


def lines(log: Path, last: str) -> list[str]:
    """The lines without times, as soon as the log contains ``last``."""
    until = time.monotonic() + 10
    while last not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)
    return re.findall(r"^\[ *\d+\.\d{6}\] (.*)$", log.read_text(), re.MULTILINE)


def test_states_of_devices_and_their_backends_are_recorded(store: Xenstored, log: Path) -> None:
    store.introduce(3, "fxh-1-guest")
    lines(log, "/local/domain/3")
    store.write("/local/domain/3/device/vbd/51712/backend", BACKEND)
    lines(log, f"{BACKEND} = ")
    store.write(f"{BACKEND}/state", "2")
    store.write(f"{BACKEND}/params", "/dev/loop0")
    store.write("/local/domain/3/control/shutdown", "halt\x1b[1m\n")
    assert lines(log, "halt") == [
        '/local/domain/3 = ""',
        f'/local/domain/3/device/vbd/51712/backend = "{BACKEND}"',
        f'{BACKEND} = ""',
        f'{BACKEND}/state = "2"',
        '/local/domain/3/control/shutdown = "halt\\x1b[1m\\n"',
    ]
    (first, *_) = console.uptime_lines(log.read_text(), 100.0, 0.0, 0.0, "xenstore")
    assert (first.text, first.kind) == ('/local/domain/3 = ""', "xenstore")


@pytest.mark.parametrize(
    "path", ["/local/domain/0", "/local/domain/0/backend/vbd/4/51712", f"{BACKEND}/../x", "/local/domain/", f"{BACKEND} x"]
)
def test_a_guest_cannot_choose_what_is_watched(store: Xenstored, log: Path, path: str) -> None:
    """The node is the guest's own. xenstored refuses a watch on a path that it does not allow, which ended the recorder."""
    store.introduce(3, "fxh-1-guest")
    lines(log, "/local/domain/3")
    store.write("/local/domain/3/device/vbd/51712/backend", path)
    lines(log, f'backend = "{path}"')
    store.write("/local/domain/3/control/shutdown", "halt")
    lines(log, "halt")
    assert store.watches == {"@introduceDomain", "@releaseDomain", "/local/domain/3"}


def test_a_device_from_before_the_watch_is_found(store: Xenstored, log: Path) -> None:
    store.nodes |= {"/local/domain/3/device/vbd/51712/backend": BACKEND, "/local/domain/3/device/vbd/51712/state": "1"}
    store.introduce(3, "fxh-1-guest")
    found = lines(log, f"{BACKEND} = ")
    assert f'/local/domain/3/device/vbd/51712/backend = "{BACKEND}"' in found
    assert '/local/domain/3/device/vbd/51712/state = "1"' in found


def test_other_domains_are_left_alone(store: Xenstored, log: Path) -> None:
    store.introduce(4, "somebody")
    store.introduce(5, "fxh-1-guest")
    lines(log, "/local/domain/5")
    store.write("/local/domain/4/control/shutdown", "halt")
    store.write("/local/domain/5/control/shutdown", "reboot")
    assert not any("domain/4" in line for line in lines(log, "reboot"))


def test_a_domain_that_is_gone_has_no_watches(store: Xenstored, log: Path) -> None:
    store.introduce(3, "fxh-1-guest")
    lines(log, "/local/domain/3")
    store.release(3)
    store.introduce(6, "fxh-1-guest")
    lines(log, "/local/domain/6")
    assert store.watches == {"@introduceDomain", "@releaseDomain", "/local/domain/6"}


def test_a_guest_that_writes_without_end_fills_no_disk(store: Xenstored, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore_recorder, "MOST", 5)
    store.introduce(3, "fxh-1-guest")
    lines(log, "/local/domain/3")
    for n in range(9):
        store.write(f"/local/domain/3/device/vif/{n}/state", "x" * 9999)
    found = lines(log, "no further changes")
    assert len(found) == 6
    assert max(map(len, found)) < 300
    assert "/local/domain/3" not in store.watches
