# SPDX-License-Identifier: BSD-2-Clause
"""A session with a labgrid coordinator, in the keeper's process: other processes do not import labgrid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from labgrid.remote.client import ClientSession
from labgrid.remote.common import Place, Reservation, ReservationState
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages

# Seconds for a connection, and for an answer of the coordinator. It waits up to 10 s for an exporter (ExporterCommand.wait()).
_CONNECT = 20.0
_ANSWER = 20.0

# The power ports that `labgrid-client power` of labgrid 26 can switch.
_POWER = frozenset(
    {
        "NetworkPowerPort", "PDUDaemonPort", "NetworkUSBPowerPort", "NetworkSiSPMPowerPort", "TasmotaPowerPort",
        "NetworkYKUSHPowerPort", "NetworkSysfsGPIO",
    }
)  # fmt: skip


class Refused(Exception):
    """No place is available. ``hint`` says who must act; ``busy``: another client has all matching places.

    ``excluded``: these are all matching places, and the request excludes them.
    """

    def __init__(self, message: str, hint: str = "", *, busy: bool = False, excluded: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message, self.hint, self.busy, self.excluded = message, hint, busy, list(excluded)


class Coordinator:
    """The coordinator at ``address`` (HOST:PORT). ``owner`` (``HOST/USER``) is our name there."""

    def __init__(self, address: str, owner: str) -> None:
        self.address, self.owner = address, owner
        self._session: ClientSession | None = None

    async def connect(self) -> None:
        """Connect, and learn all places and resources. Raises Refused."""
        # ClientSession takes its name from these variables only.
        os.environ["LG_HOSTNAME"], _, os.environ["LG_USERNAME"] = self.owner.partition("/")
        session = ClientSession(self.address, asyncio.get_running_loop())
        try:
            await asyncio.wait_for(session.start(), _CONNECT)
        except Exception as exc:
            await _end(session)
            raise Refused(
                f"no labgrid coordinator answers at {self.address}",
                "start it, or ask the administrator of the lab; labgrid.coordinator in fxh.toml or LG_COORDINATOR names another one",
            ) from exc
        self._session = session

    async def close(self) -> None:
        if self._session is not None:
            await _end(self._session)
            self._session = None

    @property
    def connected(self) -> bool:
        return self._session is not None and not self._session.stopping.is_set()

    async def gone(self) -> None:
        """Return when the connection has ended."""
        if self._session is not None:
            await self._session.stopping.wait()

    @property
    def places(self) -> Mapping[str, Place]:
        return self._session.places if self._session is not None else {}

    def matching(self, tags: Mapping[str, str]) -> list[Place]:
        """The places that have all tags, by name. The coordinator's scheduler also takes ``name`` for a tag."""
        return [place for _, place in sorted(self.places.items()) if has_tags(place, tags)]

    def resources(self, place: Place) -> dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
        """The available resources of a place by name: class, parameters, and labgrid's extra data, which names a proxy."""
        found = {}
        exporters = self._session.resources if self._session is not None else {}
        for exporter, groups in sorted(exporters.items()):
            for group, entries in sorted(groups.items()):
                for name, entry in sorted(entries.items()):
                    # An entry without data is a resource that its exporter took back.
                    if "cls" in entry.data and entry.avail and (match := place.getmatch((exporter, group, entry.cls, name))):
                        found[match.rename or name] = (entry.cls, entry.args, entry.extra)
        return found

    def describe(self, place: Place) -> dict[str, Any]:
        """How to use a place: its ssh service, its serial port and whether it has a power port.

        Raises Refused without a service, or if its parameters are invalid.
        """
        resources = self.resources(place)
        service = next((one for one in resources.values() if one[0] == "NetworkService"), None)
        if service is None:
            raise Refused(
                f"labgrid place {place.name} has no NetworkService",
                f"start the exporter of {place.name}, or let the administrator of the lab add a NetworkService for ssh to dom0",
            )
        values = service[1]
        wrong = [key for key in ("address", "username") if not values.get(key) or not isinstance(values[key], str)]
        wrong += ["port"] * (_port(values.get("port", 22)) is None)
        if wrong:
            raise Refused(
                f"the NetworkService of labgrid place {place.name} has an invalid {wrong[0]}: {values.get(wrong[0])!r}",
                f"ask the administrator of the lab to correct the exporter's configuration of {place.name}",
            )
        serial = next((one for one in resources.values() if one[0] == "NetworkSerialPort"), None)
        return {
            "place": place.name,
            "tags": dict(place.tags),
            "owner": self.owner,
            "service": {**values, "port": _port(values.get("port", 22)), "proxy": _proxy(service[2])},
            "serial": None if serial is None else {**serial[1], "proxy": _proxy(serial[2])},
            "power": sorted(name for name, one in resources.items() if one[0] in _POWER),
        }

    # -- requests -----------------------------------------------------------------------------------------------------

    async def reserve(self, tags: Mapping[str, str]) -> Reservation:
        """Reserve a place. If the caller is canceled, the reservation is, too: it would block the queue for a minute."""
        request = messages.CreateReservationRequest(filters={"main": messages.Reservation.Filter(filter=dict(tags))}, prio=0.0)
        asking = asyncio.ensure_future(self._ask("CreateReservation", request))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            with contextlib.suppress(Refused):
                await self.cancel((await asking).reservation.token)
            raise
        return Reservation.from_pb2(answer.reservation)

    async def poll(self, token: str) -> Reservation:
        """The reservation. It expires 60 s after the last poll."""
        return Reservation.from_pb2((await self._ask("PollReservation", messages.PollReservationRequest(token=token))).reservation)

    async def cancel(self, token: str) -> None:
        """Cancel a reservation, if it still exists."""
        with contextlib.suppress(Refused):
            await self._change("CancelReservation", messages.CancelReservationRequest(token=token))

    async def acquire(self, place: str) -> None:
        await self._change("AcquirePlace", messages.AcquirePlaceRequest(placename=place))
        await self.sync()

    async def release(self, place: str, owner: str) -> None:
        """Release a place if ``owner`` has it. Raises Refused if the coordinator does not answer."""
        if place in self.places:
            await self._change("ReleasePlace", messages.ReleasePlaceRequest(placename=place, fromuser=owner))
            await self.sync()

    async def sync(self) -> None:
        """Wait until the coordinator's changes so far have arrived."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._session.sync_with_coordinator(), _ANSWER)

    async def _change(self, call: str, request: Any) -> None:
        """Ask, and stay for the answer even if the caller is canceled.

        The coordinator stops a request whose client goes. The exporter's resources then belong to no place. The coordinator frees
        them up to 15 s later (labgrid 26, ``_synchronize_resources``), and refuses the place until then.
        """
        asking = asyncio.ensure_future(self._ask(call, request))
        try:
            await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait({asking})
            raise

    async def _ask(self, call: str, request: Any) -> Any:
        if self._session is None:
            raise Refused(f"the labgrid coordinator at {self.address} is gone")
        try:
            return await getattr(self._session.stub, call)(request, timeout=_ANSWER)
        except grpc.aio.AioRpcError as exc:
            raise Refused(
                f"the labgrid coordinator at {self.address} refuses {call}: {exc.details()}",
                "see `labgrid-client places` and the log of the coordinator, or ask the administrator of the lab",
            ) from exc


def has_tags(place: Place, tags: Mapping[str, str]) -> bool:
    known = {**place.tags, "name": place.name}
    return all(known.get(key) == value for key, value in tags.items())


def _port(value: object) -> int | None:
    """The TCP port, or None for an invalid one."""
    return int(str(value)) if re.fullmatch(r"[0-9]{1,5}", str(value)) and 0 < int(str(value)) < 1 << 16 else None


def _proxy(extra: Mapping[str, Any]) -> str:
    """The exporter, if its resources can be reached only through it."""
    return str(extra.get("proxy") or "") if extra.get("proxy_required") else ""


def allocated(reservation: Reservation) -> str:
    """The place that a reservation got, or ""."""
    if reservation.state is not ReservationState.allocated:
        return ""
    return str(reservation.allocations["main"][0])


def is_waiting(reservation: Reservation) -> bool:
    return bool(reservation.state is ReservationState.waiting)


async def _end(session: ClientSession) -> None:
    # A session that never started has no pump to stop.
    for step in (session.stop, session.close):
        with contextlib.suppress(Exception):
            await asyncio.wait_for(step(), _CONNECT)
