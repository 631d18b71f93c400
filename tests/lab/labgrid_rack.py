# SPDX-License-Identifier: BSD-2-Clause
"""Labs as places of a labgrid: each has a serial server and a network power switch, which a coordinator and an exporter offer."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from labgrid_servers import Labgrid
from remote_host import Link, Remote, Run

from harness.hosts import record
from harness.lab import registry

QMP = Path(__file__).with_name("qmp_power.py")


class SerialPort(Link):
    """A TCP server for the lab's serial port, as ser2net is."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _connect(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(self._path))
        return found


class PowerSwitch:
    """A network power switch: labgrid's driver ``simplerest`` sends GET /PORT/0 and /PORT/1, and GET /PORT for the state."""

    def __init__(self, monitor: Path) -> None:
        self.actions: list[str] = []
        self._monitor = monitor
        switch = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                switch.act({"/1/0": "hang", "/1/1": "cycle"}.get(self.path, "status"))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"1")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{{index}}/{{value}}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def act(self, action: str) -> None:
        """An action of qmp_power.py. A power switch can only switch off ("hang" stops QEMU) and on ("cycle" resets it)."""
        self.actions.append(action)
        self.note(action)
        subprocess.run([sys.executable, str(QMP), str(self._monitor), action], check=True, stdout=subprocess.DEVNULL)

    def note(self, action: str) -> None:
        """Called before each action."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Rack:
    """The labs by the names of their places, and labgrid. Runs use the home directory of the first lab."""

    def __init__(self, remotes: Mapping[str, Remote]) -> None:
        self.remotes = remotes
        self.remote = next(iter(remotes.values()))
        self.serials: dict[str, SerialPort] = {}
        self.switches: dict[str, PowerSwitch] = {}
        resources = {}
        for name, remote in remotes.items():
            sockets = registry.sockets(remote.name)
            self.serials[name], self.switches[name] = SerialPort(sockets / "com1"), PowerSwitch(sockets / "qmp")
            resources[name] = {
                "NetworkService": {"address": "127.0.0.1", "username": "root", "port": remote.one.port},
                "NetworkSerialPort": {"host": "127.0.0.1", "port": self.serials[name].port, "speed": 115200, "protocol": "raw"},
                "NetworkPowerPort": {"model": "simplerest", "host": self.switches[name].url, "index": 1},
            }
        directory = self.remote.directory / "servers"
        directory.mkdir()
        self.labgrid = Labgrid(directory, resources)
        for name in remotes:
            self.labgrid.add_place(name, name, tag="xen", arch="amd64")
            self.switches[name].note = lambda action, name=name: (  # type: ignore[method-assign,misc]
                self.labgrid.note(f"power switch of {name}: {action}") if action != "status" else None
            )
        self.remote.environment["LG_COORDINATOR"] = self.labgrid.address

    def reset(self) -> None:
        for remote in self.remotes.values():
            remote.reset()
        ssh = self.remote.directory / ".ssh"
        keys = [remote.directory / ".ssh/id_lab" for remote in self.remotes.values()]
        with (ssh / "config").open("a") as config:
            config.write("Host 127.0.0.1\n" + "".join(f"  IdentityFile {key}\n" for key in keys))
        known = "".join((remote.directory / ".ssh/known_hosts").read_text() for remote in self.remotes.values())
        (ssh / "known_hosts").write_text(known)
        (self.remote.directory / "fxh.toml").write_text("")
        self.labgrid.start()
        for switch in self.switches.values():
            switch.actions.clear()

    def start(self, suite: Path, *words: str, address: str = "labgrid:tag=xen,arch=amd64", **environment: str) -> Run:
        return self.remote.start(suite, "--xen-host", address, "--scale", "3", *words, FXH_RUN_LEASE_WAIT="1800", **environment)

    def close(self) -> None:
        self.labgrid.close()
        for each in (*self.switches.values(), *self.serials.values()):
            each.close()
        for name in self.remotes:
            shutil.rmtree(record.directory(f"labgrid:name={name}"), ignore_errors=True)
