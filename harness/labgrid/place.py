# SPDX-License-Identifier: BSD-2-Clause
"""Acquire a place of a labgrid coordinator. A keeper process holds it (:mod:`harness.labgrid.keeper`); this is the other half."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness import paths
from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.labgrid import tags
from harness.labgrid.claims import Claim, Claims
from harness.safetext import plain

log = logging.getLogger("fxh.hosts")

# Seconds for the answer to `keep`, for the end of a keeper (it tries 20 s to reach its coordinator), and for a survey.
_KEEP = 10.0
_END = 45.0
_SURVEY = 60.0


class PlacesTaken(InfrastructureError):
    """Other users have all matching places at the moment."""


class PlacesExcluded(InfrastructureError):
    """The request excludes all matching places, which are ``names``."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


@dataclass(frozen=True)
class Service:
    """The NetworkService of a place: ssh to its dom0. ``jump`` is the exporter if it requires a proxy."""

    address: str
    username: str
    port: int
    jump: str

    @property
    def route(self) -> str:
        """``[user@]host[:port]``."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.username}@{host}:{self.port}"


class Place:
    """A place that stays acquired until :meth:`end`, or until this process ends. :func:`acquire` makes it."""

    def __init__(self, keeper: _Keeper, coordinator: str, held: Mapping[str, Any]) -> None:
        self._keeper, self._coordinator = keeper, coordinator
        self.name = str(held["place"])
        self.tags: Mapping[str, str] = held["tags"]
        service = held["service"]
        self.service = Service(
            str(service["address"]), str(service["username"]), int(service.get("port", 22)), str(service["proxy"])
        )
        self._owner = str(held["owner"])
        self.has_power = bool(held["power"])
        self.serial = _serial(held["serial"]) if held["serial"] else ()
        """Its serial port as ``hosts.NAME.serial`` has it: ``tcp:HOST:PORT`` or a command; empty without one."""
        self.shared = bool(held["shared"])
        """Another worker or run of this user had the place already."""

    @property
    def lost(self) -> str:
        """The reason why the place was lost, or ""."""
        return self._keeper.lost

    def client(self, *words: str) -> tuple[str, ...]:
        """The command line of ``labgrid-client`` for this place, under the name that acquired it."""
        host, _, user = self._owner.partition("/")
        name = ("env", "-u", "LG_ENV", "-u", "LG_STATE", "-u", "LG_INITIAL_STATE", f"LG_HOSTNAME={host}", f"LG_USERNAME={user}")
        return (*name, sys.executable, "-m", "labgrid.remote.client", "-x", self._coordinator, "-p", self.name, *words)

    def keep(self, seconds: float) -> bool:
        """Let the place stay acquired for ``seconds`` after the end of this process. Returns whether it will."""
        return self._keeper.keep(seconds)

    def held_open(self) -> tuple[int, ...]:
        """The file descriptor that keeps the place ours as long as any process has it open."""
        return self._keeper.held_open()

    def end(self) -> None:
        """Release the place, unless another worker shares it. Logs a warning if it may remain acquired."""
        self._keeper.end()


def _serial(port: Mapping[str, Any]) -> tuple[str, ...]:
    protocol, host, number, proxy = (str(port.get(key, "")) for key in ("protocol", "host", "port", "proxy"))
    if protocol == "raw" and not proxy:
        return (f"tcp:[{host}]:{number}" if ":" in host else f"tcp:{host}:{number}",)
    words = (protocol or "rfc2217", host, number, str(port.get("speed", 115200)), *filter(None, (proxy,)))
    return (sys.executable, "-m", "harness.labgrid.serial", *words)


class _Keeper:
    """The process, and the thread that reads its messages."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        # The keeper's own messages are few, and wanted only if it fails.
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - _read() closes it
        # In its own session, so that Ctrl-C does not reach it: it must release the place.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.labgrid.keeper", json.dumps(request)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
        )  # fmt: skip
        self._changed = threading.Condition()
        self._answer: Mapping[str, Any] | None = None
        self._ending = self._kept = self._gone = False
        self.lost = ""
        threading.Thread(target=self._read, daemon=True, name="labgrid-keeper").start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, self._errors:
            for line in lines:
                with contextlib.suppress(ValueError), self._changed:
                    self._take(json.loads(line))
                    self._changed.notify_all()
            self._process.wait()
            self._errors.seek(0)
            last = plain(self._errors.read().decode("utf-8", "replace")).strip().splitlines()[-1:]
        with self._changed:
            self._gone = True
            why = f"the process that holds the labgrid place ended with status {self._process.returncode}: {''.join(last)}"
            if self._answer is None:
                self._answer = {"state": "refused", "message": why, "hint": "", "busy": False, "excluded": []}
            elif not self._ending:
                self._lose(why)
            self._changed.notify_all()

    def _take(self, message: Mapping[str, Any]) -> None:
        match message.get("state"):
            case "waiting":
                log.info("waiting for a labgrid place: %s", plain(message["why"]))
            case "kept":
                self._kept = True
            case "ended" if message["left"]:
                hint = "the next run or `fxh clean --yes` releases it; or: labgrid-client -p PLACE release --kick"
                log.warning("%s\n  hint: %s", plain(message["left"]), hint)
            case "refused" if self._answer is not None:
                self._lose(f"{plain(message['message'])} ({plain(message['hint'])})")
            case "held" | "refused" | "survey":
                self._answer = message

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        log.warning("%s", why)

    def answer(self, deadline: Deadline, what: str) -> Mapping[str, Any]:
        """The keeper's answer. Raises InfrastructureError if it refuses, PlacesTaken, PlacesExcluded, DeadlineExpired."""
        with self._changed:
            while self._answer is None:
                if deadline.expired:
                    raise deadline.expire(what)
                self._changed.wait(min(1.0, deadline.remaining))
        if self._answer["state"] == "refused":
            if names := self._answer["excluded"]:
                raise PlacesExcluded(plain(self._answer["message"]), [plain(name) for name in names])
            kind = PlacesTaken if self._answer["busy"] else InfrastructureError
            raise kind(plain(self._answer["message"]), hint=plain(self._answer["hint"]))
        return self._answer

    def keep(self, seconds: float) -> bool:
        with self._changed:
            self._write(f"keep {seconds:.0f}\n")
            self._changed.wait_for(lambda: self._kept or self._gone, _KEEP)
            return self._kept and not self.lost

    def held_open(self) -> tuple[int, ...]:
        assert self._process.stdin is not None
        return () if self._process.stdin.closed else (self._process.stdin.fileno(),)

    def end(self) -> None:
        with self._changed:
            self._ending = True
            self._write("end\n")
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            # A keeper that keeps the place ends later. One that does not end is left alone: it still tries to release the place.
            if not self._kept:
                self._changed.wait_for(lambda: self._gone, _END)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def acquire(
    address: str,
    coordinator: str,
    deadline: Deadline,
    *,
    nowait: bool = False,
    avoid: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Place:
    """Acquire a place with the tags of ``address`` (``labgrid:tag=xen``) at ``coordinator`` (HOST:PORT).

    ``nowait``: do not queue. ``avoid`` are places to take last, ``exclude`` those not to take. Raises UsageError for invalid tags,
    PlacesTaken with ``nowait``, PlacesExcluded, InfrastructureError, and DeadlineExpired if other users have all places until
    ``deadline``.
    """
    wanted = tags.parse(address)
    keeper = _Keeper(_request(coordinator, mode="hold", tags=wanted, nowait=nowait, avoid=list(avoid), exclude=list(exclude)))
    try:
        return Place(keeper, coordinator, keeper.answer(deadline, f"a labgrid place for {address}"))
    except BaseException:
        keeper.end()
        raise


@dataclass(frozen=True)
class Survey:
    """The matching places and their users ("" for a free one), and the places that processes which ended left acquired."""

    places: Mapping[str, str]
    left: tuple[str, ...]


def survey(address: str, coordinator: str, *, clean: bool = False) -> Survey:
    """List the places of ``address``, or all for "". With ``clean``, release those that ended processes of this user left acquired.

    Raises UsageError, InfrastructureError.
    """
    keeper = _Keeper(_request(coordinator, mode="survey", tags=tags.parse(address) if address else {}, clean=clean))
    try:
        answer = keeper.answer(Deadline(_SURVEY), f"the places for {address}")
    finally:
        keeper.end()
    return Survey({plain(name): plain(user) for name, user in answer["places"].items()}, tuple(map(plain, answer["stale"])))


def left_behind() -> tuple[Claim, ...]:
    """The places that ended processes of this user left acquired, at any coordinator."""
    return tuple(Claims(_claims()).stale().values())


def _claims() -> Path:
    return paths.store() / "labgrid"


def _request(coordinator: str, **more: Any) -> dict[str, Any]:
    return {"coordinator": coordinator, "claims": str(_claims()), **more}
