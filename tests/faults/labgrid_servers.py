# SPDX-License-Identifier: BSD-2-Clause
"""A labgrid coordinator and an exporter on loopback, as their own programs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from labgrid.remote.common import Reservation
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.util import yaml as labgrid_yaml

from harness.deadline import ConditionNotMet, Deadline
from harness.labgrid.coordinator import Coordinator, Refused

T = TypeVar("T")


class Labgrid:
    """Both servers in ``directory``. ``resources`` is the exporter's configuration: groups of resources by class."""

    def __init__(self, directory: Path, resources: Mapping[str, Mapping[str, Any]]) -> None:
        self.directory = directory
        # It never listens, so the coordinator can bind the port, too. Until then no other program gets it.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._port.getsockname()[1]}"
        (directory / "exporter.yaml").write_text(yaml.safe_dump(dict(resources)))
        self._lock = threading.Lock()
        self._copiers: list[threading.Thread] = []
        self._coordinator: subprocess.Popen[str] | None = None
        self._exporter: subprocess.Popen[str] | None = None
        self._groups = list(resources)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start what does not run. Returns when all resources are exported."""
        if self._coordinator is None:
            self._coordinator = self._program("coordinator", "-l", self.address)
        self.start_exporter()

    def start_exporter(self) -> None:
        def exported() -> None:
            if self._exporter is None or self._exporter.poll() is not None:
                self._exporter = self._program(
                    "exporter", "-c", self.address, "-n", "rack", "--hostname", "127.0.0.1", "exporter.yaml"
                )
            try:
                missing = set(self._groups) - self._exported()
            except Refused as exc:
                raise ConditionNotMet(exc.message) from exc
            if missing:
                raise ConditionNotMet(f"not exported: {missing}")

        Deadline(180).wait("labgrid's servers", exported, 0.3)

    def stop(self, *, exporter: bool = True) -> None:
        """End the coordinator; the exporter loses it and ends, too."""
        self._end(self._coordinator)
        self._coordinator = None
        if exporter:
            self.stop_exporter()

    def stop_exporter(self) -> None:
        self._end(self._exporter)
        self._exporter = None

    @contextlib.contextmanager
    def slow_exporter(self) -> Iterator[Callable[[], None]]:
        """The exporter does not answer until the returned function is called, or until the end."""
        assert self._exporter is not None
        resume = functools.partial(self._exporter.send_signal, signal.SIGCONT)
        self._exporter.send_signal(signal.SIGSTOP)
        try:
            yield resume
        finally:
            resume()

    def close(self) -> None:
        self.stop()
        for copier in self._copiers:
            copier.join(10)
        self._port.close()

    @property
    def log(self) -> list[tuple[str, str]]:
        """The lines of the servers and of :meth:`note`, each with its UTC time (hh:mm:ss)."""
        lines = (self.directory / "servers.log").read_text(errors="replace").splitlines()
        return [(line[:8], line[9:]) for line in lines]

    def note(self, line: str) -> None:
        """Add a line to the log, with the time."""
        with self._lock, (self.directory / "servers.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}\n")

    # -- as another user ----------------------------------------------------------------------------------------------

    def add_place(self, name: str, group: str, **tags: str) -> None:
        async def add(lab: Coordinator) -> None:
            await lab._ask("AddPlace", messages.AddPlaceRequest(name=name))
            await lab._ask("AddPlaceMatch", messages.AddPlaceMatchRequest(placename=name, pattern=f"rack/{group}/*"))

        self._call(add)
        self.tag(name, **tags)

    def tag(self, name: str, **tags: str) -> None:
        self._call(lambda lab: lab._ask("SetPlaceTags", messages.SetPlaceTagsRequest(placename=name, tags=tags)))

    def acquire(self, name: str) -> None:
        """Acquire a place for desk/anna."""
        self._call(lambda lab: lab.acquire(name))

    def release(self, name: str) -> None:
        """Release a place of any user."""
        self._call(lambda lab: lab._ask("ReleasePlace", messages.ReleasePlaceRequest(placename=name)))

    def owner(self, place: str) -> str:
        """The user of the place, as HOST/USER; "" for a free place."""

        async def look(lab: Coordinator) -> str:
            return lab.places[place].acquired or ""

        return self._call(look)

    def reservations(self) -> list[str]:
        """The state of each reservation."""
        return self._call(self._reservations)

    @staticmethod
    async def _reservations(lab: Coordinator) -> list[str]:
        found = await lab._ask("GetReservations", messages.GetReservationsRequest())
        return [Reservation.from_pb2(one).state.name for one in found.reservations]

    def saved_owner(self, place: str) -> str:
        """As :meth:`owner`, from the file with which a coordinator starts."""
        file = self.directory / "places.yaml"
        found = labgrid_yaml.load(file.read_text()) if file.exists() else {}
        return found.get(place, {}).get("acquired") or ""

    def count_in_log(self, words: str) -> int:
        """The lines of the servers' log that contain ``words``."""
        return sum(words in line for _, line in self.log)

    def wait_free(self, place: str, seconds: float = 120, *, resources: bool = True) -> None:
        """Wait until the place is free and there is no reservation.

        ``resources``: also until its resources are free. A request to which the exporter does not answer within 10 s leaves them
        acquired for up to 15 s.
        """

        async def look(lab: Coordinator) -> list[str]:
            groups = lab._session.resources.get("rack", {}) if lab._session is not None and resources else {}
            held = [name for group in groups.values() for name, entry in group.items() if entry.data.get("acquired") == place]
            owner = lab.places[place].acquired
            return [*([owner] if owner else []), *await self._reservations(lab), *held]

        def free() -> None:
            if taken := self._call(look):
                raise ConditionNotMet(f"{place} is taken: {', '.join(taken)}")

        Deadline(seconds).wait(f"{place} to be free", free, 0.3)

    def _exported(self) -> set[str]:
        async def look(lab: Coordinator) -> set[str]:
            groups = lab._session.resources.get("rack", {}) if lab._session is not None else {}
            return {name for name, group in groups.items() if all(entry.data.get("avail") for entry in group.values())}

        return self._call(look)

    def _call(self, request: Callable[[Coordinator], Awaitable[T]]) -> T:
        async def call() -> T:
            lab = Coordinator(self.address, "desk/anna")
            try:
                await self._connect(lab)
                return await request(lab)
            finally:
                await lab.close()

        return asyncio.run(call())

    @staticmethod
    async def _connect(lab: Coordinator) -> None:
        """Connect; the coordinator refuses a session until it has noticed the end of this process's last one."""
        for _ in range(10):
            with contextlib.suppress(Refused):
                return await lab.connect()
            await asyncio.sleep(0.5)
        await lab.connect()

    # -- the programs -------------------------------------------------------------------------------------------------

    def _program(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        # Unbuffered: a killed coordinator must not lose the end of its log.
        argv = [sys.executable, "-u", "-m", f"labgrid.remote.{name}", *arguments]
        process = subprocess.Popen(
            argv, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._copiers.append(threading.Thread(target=self._copy, args=(name, process), daemon=True))
        self._copiers[-1].start()
        return process

    def _copy(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.note(f"{name}: {line.rstrip()}")

    @staticmethod
    def _end(process: subprocess.Popen[str] | None) -> None:
        if process is not None:
            process.kill()
            process.wait()
