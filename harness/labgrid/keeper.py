# SPDX-License-Identifier: BSD-2-Clause
"""A process that holds a place of a labgrid coordinator for its parent, and releases it when the parent ends for any reason.

    python -m harness.labgrid.keeper REQUEST

REQUEST is a JSON object; :mod:`harness.labgrid.place` writes it. The program prints one JSON object a line. It reads these lines:

* ``keep SECONDS`` keeps the place for SECONDS after the end.
* ``end``, or the end of stdin, releases the place.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labgrid.remote.common import Place, Reservation

from harness.labgrid.claims import Claim, Claims
from harness.labgrid.coordinator import Coordinator, Refused, allocated, has_tags, is_waiting

# Seconds between two looks at a reservation in the queue, and at the place that is held.
_POLL = 1.0
# Seconds that a lost coordinator gets to come back. Until then no other user can get the place from it.
_COME_BACK = 60.0
# Seconds to release a place whose coordinator does not answer.
_RELEASE = 20.0


def send(**message: Any) -> None:
    """Send a message to the parent, if it lives."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


class Orders:
    """The parent's lines on stdin."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._keep = 0.0
        self._rest = b""
        loop = asyncio.get_running_loop()
        loop.add_reader(0, self._read)
        loop.add_signal_handler(signal.SIGTERM, self.ended.set)

    def _read(self) -> None:
        data = os.read(0, 4096)
        if not data:
            asyncio.get_running_loop().remove_reader(0)
            self.ended.set()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("ascii", "replace").partition(" ")
            if word == "end":
                self.ended.set()
            elif word == "keep":
                self._keep = time.monotonic() + float(rest)
                send(state="kept")

    async def wait(self) -> None:
        """Return when the place is to be released."""
        await self.ended.wait()
        await asyncio.sleep(max(0.0, self._keep - time.monotonic()))


class Keeper:
    """Holds one place."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._tags: Mapping[str, str] = request["tags"]
        self._nowait: bool = request["nowait"]
        self._avoid = frozenset(request["avoid"])
        self._exclude = frozenset(request["exclude"])
        self._claims = Claims(Path(request["claims"]))
        self._coordinator = Coordinator(request["coordinator"], new_owner())
        self._claim: tuple[Path, Claim] | None = None

    # -- getting a place ----------------------------------------------------------------------------------------------

    async def acquire(self) -> dict[str, Any]:
        """Get a place, or share one that another process of the user holds. Returns its description. Raises Refused."""
        await self._coordinator.connect()
        await sweep(self._coordinator, self._claims)
        matching = self._coordinator.matching(self._tags)
        if not matching:
            raise Refused(
                f"no place at labgrid coordinator {self._coordinator.address} has {_words(self._tags)}",
                "correct the tags, or ask the administrator of the lab to tag a place: labgrid-client -p PLACE set-tags KEY=VALUE",
            )
        if not (left := [place for place in matching if place.name not in self._exclude]):
            names = [place.name for place in matching]
            raise Refused(f"each place with {_words(self._tags)} is excluded: {', '.join(names)}", excluded=names)
        usable, why = [], Refused("no usable place")
        for place in left:
            try:
                self._coordinator.describe(place)
                usable.append(place)
            except Refused as exc:
                why = exc
        avoided = [place for place in usable if place.name in self._avoid]
        # Rather share a place that works than have a bad one alone.
        for group in ([place for place in usable if place not in avoided], avoided):
            for place in [one for one in group if one.acquired is None]:
                try:
                    if found := await self._try(place.name):
                        return found
                except Refused as exc:
                    why = exc
                    await self._give_back()
                    usable.remove(place)
            if found := await self._share(group):
                return found
        if not usable:
            raise why
        takers = ", ".join(f"{place.name} by {place.acquired or 'a reservation'}" for place in usable)
        if self._nowait:
            raise Refused(f"all places with {_words(self._tags)} are taken: {takers}", "wait, or ask their users", busy=True)
        send(state="waiting", why=f"places are taken: {takers}")
        return await self._queue(usable)

    async def _try(self, name: str) -> dict[str, Any] | None:
        """Acquire the place ``name`` if it is free and not reserved."""
        reservation = await self._coordinator.reserve({**self._tags, "name": name})
        try:
            return await self._take(name) if allocated(reservation) else None
        finally:
            await self._coordinator.cancel(reservation.token)

    async def _queue(self, usable: list[Place]) -> dict[str, Any]:
        """Wait in the coordinator's order for one of the places ``usable``. A reservation by tags could get an excluded one."""
        waiting: list[Reservation] = []
        try:
            for place in usable:
                waiting.append(await self._coordinator.reserve({**self._tags, "name": place.name}))
            while True:
                for n, reservation in enumerate(waiting):
                    if name := allocated(reservation):
                        return await self._take(name)
                    if not is_waiting(reservation):
                        raise Refused(
                            f"the labgrid coordinator at {self._coordinator.address} ended our reservation: it is {reservation.state.name}",
                            "ask the administrator of the lab whether places were removed",
                        )
                    waiting[n] = await self._coordinator.poll(reservation.token)
                if not any(allocated(one) for one in waiting):
                    await asyncio.sleep(_POLL)
                    if found := await self._share(usable):
                        return found
        finally:
            for reservation in waiting:
                await self._coordinator.cancel(reservation.token)

    async def _take(self, name: str) -> dict[str, Any]:
        """Acquire the place that a reservation got."""
        claim = Claim(self._coordinator.address, name, self._coordinator.owner)
        async with self._claims.exclusive():
            # The claim also stays if this fails: without an answer, the place may be acquired.
            self._claim = self._claims.add(claim), claim
            await self._coordinator.acquire(name)
        place = self._coordinator.places[name]
        if not has_tags(place, self._tags):
            raise Refused(
                f"the coordinator at {self._coordinator.address} gave place {name}, which has {_words(place.tags) or 'no tags'}, "
                f"not {_words(self._tags)}",
                f"ask the administrator of the lab to correct the tags of {name}",
            )
        return self._coordinator.describe(place) | {"shared": False}

    async def _share(self, usable: list[Place]) -> dict[str, Any] | None:
        """Share a place that another worker or run of this user holds. The leases in its dom0 divide it."""
        async with self._claims.exclusive():
            await self._coordinator.sync()
            for claim in self._claims.living():
                place = next((one for one in usable if one.name == claim.place), None)
                if place is not None and claim.coordinator == self._coordinator.address and place.acquired == claim.owner:
                    self._claim = self._claims.add(claim), claim
                    self._coordinator.owner = claim.owner
                    return self._coordinator.describe(place) | {"shared": True}
        return None

    # -- holding it ---------------------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Return when the place is no longer ours. Raises Refused with the reason."""
        assert self._claim is not None
        claim = self._claim[1]
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._coordinator.gone(), _POLL)
            if not self._coordinator.connected:
                await self._return(claim)
            self._check(claim)

    def _check(self, claim: Claim) -> None:
        place = self._coordinator.places.get(claim.place)
        if place is None or place.acquired != claim.owner:
            now = "no longer exists" if place is None else f"is acquired by {place.acquired or 'no user'}"
            raise Refused(
                f"labgrid place {claim.place} was taken from this run: it {now}",
                "ask its user and the administrator of the lab who released it",
            )

    async def _return(self, claim: Claim) -> None:
        """Connect again. A coordinator that restarted has forgotten who acquired what: acquire the place again if it is free."""
        await self._coordinator.close()
        end = time.monotonic() + _COME_BACK
        why = Refused("")
        while time.monotonic() < end:
            try:
                if not self._coordinator.connected:
                    await self._coordinator.connect()
                async with self._claims.exclusive():
                    place = self._coordinator.places.get(claim.place)
                    if place is None or place.acquired is not None:
                        return
                    self._coordinator.describe(place)  # its exporter is back
                    await self._coordinator.acquire(claim.place)
                    return
            except Refused as exc:
                why = exc
                await asyncio.sleep(_POLL)
        raise Refused(
            f"labgrid place {claim.place} is lost: {why.message} for {_COME_BACK:.0f} s",
            why.hint or "ask the administrator of the lab to start the coordinator",
        )

    # -- giving it back -----------------------------------------------------------------------------------------------

    async def release(self) -> str:
        """Release the place unless another process of the user shares it. Returns a description of the remaining claim, or ""."""
        try:
            if self._claim is None:
                return ""
            path, claim = self._claim
            end = time.monotonic() + _RELEASE
            why = "its directory of claims is locked"
            while time.monotonic() < end:
                try:
                    if not self._coordinator.connected:
                        await self._coordinator.close()
                        await self._coordinator.connect()
                    await self._give_back()
                    return ""
                except (Refused, TimeoutError) as exc:
                    why = str(exc)
                    await asyncio.sleep(_POLL)
            self._claims.abandon(path)
            return f"labgrid place {claim.place} may still be acquired by {claim.owner}: {why}"
        finally:
            await self._coordinator.close()

    async def _give_back(self) -> None:
        """Release the place that is claimed, if any; a place that is not ours stays as it is. Raises Refused, TimeoutError."""
        if self._claim is None:
            return
        path, claim = self._claim
        async with self._claims.exclusive():
            if self._claims.living().count(claim) < 2:
                await self._coordinator.release(claim.place, claim.owner)
            self._claims.remove(path)
        self._claim = None


async def sweep(coordinator: Coordinator, claims: Claims) -> list[str]:
    """Release the places at this coordinator whose holder was killed with its keeper. Returns their names."""
    found = []
    async with claims.exclusive():
        known = claims.all()
        living = {claim for claim, lives in known.values() if lives}
        for path, (claim, lives) in known.items():
            if not lives and claim.coordinator == coordinator.address:
                if claim not in living:
                    await coordinator.release(claim.place, claim.owner)
                    found.append(claim.place)
                claims.remove(path)
    return found


def new_owner() -> str:
    """A name for one acquisition, in labgrid's form HOST/USER. ``labgrid-client who`` shows it."""
    host, user = (re.sub(r"[^A-Za-z0-9._-]", "-", word) for word in (socket.gethostname(), getpass.getuser()))
    return f"{host}/fxh-{user}-{secrets.token_hex(4)}"


def _words(tags: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(tags.items()))


async def keep(request: Mapping[str, Any]) -> None:
    """Hold a place until the parent ends it, then release it."""
    orders, keeper = Orders(), Keeper(request)
    ending = asyncio.create_task(orders.wait())
    try:
        acquiring = asyncio.create_task(keeper.acquire())
        if not await _first(acquiring, ending):
            return
        send(state="held", **acquiring.result())
        holding = asyncio.create_task(keeper.hold())
        if await _first(holding, ending):
            holding.result()
    except Refused as exc:
        send(state="refused", message=exc.message, hint=exc.hint, busy=exc.busy, excluded=exc.excluded)
        await ending
    finally:
        send(state="ended", left=await keeper.release())


async def _first(task: asyncio.Task[Any], ending: asyncio.Task[None]) -> bool:
    """Wait for ``task``, but no longer than the parent wants. Returns whether it is done."""
    await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


async def survey(request: Mapping[str, Any]) -> None:
    """Send the places with the tags and their users, and the claims without a living process; with ``clean`` release these."""
    coordinator, claims = Coordinator(request["coordinator"], new_owner()), Claims(Path(request["claims"]))
    try:
        await coordinator.connect()
        stale = sorted({claim.place for claim in claims.stale().values() if claim.coordinator == coordinator.address})
        if request["clean"]:
            await sweep(coordinator, claims)
        places = {place.name: place.acquired or "" for place in coordinator.matching(request["tags"])}
        send(state="survey", places=places, stale=stale)
    except Refused as exc:
        send(state="refused", message=exc.message, hint=exc.hint, busy=False, excluded=[])
    finally:
        await coordinator.close()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent decides, or its end
        signal.signal(number, signal.SIG_IGN)
    request = json.loads(sys.argv[1])
    # labgrid logs each lost connection to the root logger; this program reports them itself.
    logging.getLogger().setLevel(logging.CRITICAL)
    asyncio.run(keep(request) if request["mode"] == "hold" else survey(request))


if __name__ == "__main__":
    main()
