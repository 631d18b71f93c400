# SPDX-License-Identifier: BSD-2-Clause
"""A real PostgreSQL for tests: Debian's package, in a directory of its own, on a socket of its own and without TCP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

# initdb refuses to run as root.
_USER = "postgres"
TABLES = ("runs", "results", "inputs", "setup", "known_issues", "complaints", "digests")
SETTINGS = ("listen_addresses=", "max_connections=40", "shared_buffers=32MB", "fsync=off", "logging_collector=off")


def programs() -> Path | None:
    """The directory with initdb and postgres of the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgresServer:
    """A server; ``small`` gives its data a file system of that many MiB, in a separate mount namespace (root only)."""

    def __init__(self, settings: Sequence[str] = SETTINGS, small: int = 0) -> None:
        found = programs()
        assert found is not None
        self._programs, self._settings, self._small = found, settings, small
        # The path of a socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="fxh-pg-", dir="/tmp"))
        self._user = {"user": _USER, "group": _USER, "extra_groups": ()} if os.geteuid() == 0 else {}
        if self._user:
            shutil.chown(self.directory, _USER, _USER)
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        done = self._run(
            self._programs / "initdb", "-D", self.directory / "data", "-U", "fxh", "-A", "trust", "--no-sync", "-E", "UTF8"
        )
        assert done.returncode == 0, done.stdout.decode()
        self.start()

    def _run(self, *argv: object) -> subprocess.CompletedProcess[bytes]:
        words = [str(word) for word in argv]
        return subprocess.run(words, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, **self._user)  # type: ignore[call-overload,no-any-return]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = [word for setting in (*self._settings, f"unix_socket_directories={self.directory}") for word in ("-c", setting)]
        argv = [str(self._programs / "postgres"), "-D", str(self.directory / "data"), *settings]
        user = self._user
        if self._small:
            room = f"mount -t tmpfs -o size={self._small}m,mode=0700,uid={_USER},gid={_USER} none {self.directory}/small"
            argv = ["unshare", "-m", "sh", "-c", f'mkdir {self.directory}/small; {room} && exec setpriv --reuid={_USER} --regid={_USER} --clear-groups "$@"', "sh", *argv]  # fmt: skip
            user = {}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, cwd="/", stdout=log, stderr=log, stdin=subprocess.DEVNULL, **user)  # type: ignore[call-overload]
        end = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._address("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < end, (self.directory / "log").read_text()
                time.sleep(0.05)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT disconnects its clients, SIGQUIT leaves the recovery to the next start."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    def pause(self, on: bool) -> None:
        """Stop or continue all processes of the server: it answers no more, but its connections stay."""
        assert self._process is not None
        below = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in [str(self._process.pid), *below]:
            os.kill(int(pid), signal.SIGSTOP if on else signal.SIGCONT)

    def fill(self) -> Path:
        """Fill the small file system. Returns the file that takes the room."""
        assert self._process is not None
        filler = Path(f"/proc/{self._process.pid}/root{self.directory}/small/filler")
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        return filler

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def _address(self, database: str) -> str:
        return f"postgresql://fxh@/{database}?host={self.directory}"

    def url(self, database: str, user: str = "fxh") -> str:
        """The value of ``run.history`` for a database."""
        return f"postgresql+psycopg://{user}@/{database}?host={self.directory}"

    def new(self, options: str = "") -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"fxh{self._made}"
        self.sql(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def sql(self, statement: str, database: str = "postgres") -> list[Any]:
        with closing(psycopg.connect(self._address(database), autocommit=True)) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def count(self, url: str) -> dict[str, int]:
        """The numbers of rows by table, as the server counts them."""
        return {name: self.sql(f"SELECT count(*) FROM {name}", name_of(url))[0][0] for name in (*TABLES, "parts")}


def name_of(url: str) -> str:
    """The name of the database in a URL."""
    return str(make_url(url).database)


@contextmanager
def running(**more: Any) -> Iterator[PostgresServer]:
    """A server. Skips the test on a machine without PostgreSQL."""
    if programs() is None:
        pytest.skip("no PostgreSQL on this machine: fxh setup --tests")
    server = PostgresServer(**more)
    try:
        yield server
    finally:
        server.close()
