#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# A client that gives up while a labgrid coordinator waits for an exporter leaves the place unusable, also after its release.
#
# Versions:  labgrid 26.0.1, grpcio 1.85.3 (PyPI)
# Behavior:  gRPC cancels the coordinator's AcquirePlace when the client's deadline expires or the client ends. The cancellation
#            passes the code that gives resources back, because it is no Exception. The place stays acquired without resources. The
#            exporter answers later, so its resource belongs to no place. A release of the place succeeds and frees nothing. Until
#            the next synchronization, which runs each 15 s, every acquisition fails.
# Output:    acquire, exporter busy: DEADLINE_EXCEEDED
#            place: acquired, 0 resources
#            release: OK
#            acquire: FAILED_PRECONDITION Failed to acquire resources for place one
#            acquire, 35 s later: OK
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the packages cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check labgrid==26.0.1 grpcio==1.85.3 grpcio-reflection==1.85.1 2>pip.log ||
  { echo "cannot install labgrid 26.0.1 from PyPI" >&2; exit 2; }
cat > exporter.yaml <<'YAML'
rack:
  NetworkService:
    address: 192.0.2.7
    username: root
YAML
cat > acquire.py <<'PY'
import asyncio, logging, signal, socket, subprocess, sys

import grpc
from labgrid.remote.client import ClientSession
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages

logging.disable()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % probe.getsockname()[1]


def program(*words):
    argv = [sys.executable, "-m", *words]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def connected():
    for _ in range(60):
        session = ClientSession(address, asyncio.get_running_loop())
        try:
            await session.start()
            return session
        except Exception:
            await asyncio.sleep(1)
    raise SystemExit("the coordinator does not start")


async def main(exporter):
    session = await connected()

    async def ask(call, request, seconds=20):
        try:
            await getattr(session.stub, call)(request, timeout=seconds)
            return "OK"
        except grpc.aio.AioRpcError as exc:
            # gRPC's text for a deadline differs between versions.
            return exc.code().name + (f" {exc.details()}" if exc.code() is grpc.StatusCode.FAILED_PRECONDITION else "")

    acquire = messages.AcquirePlaceRequest(placename="one")
    await ask("AddPlace", messages.AddPlaceRequest(name="one"))
    await ask("AddPlaceMatch", messages.AddPlaceMatchRequest(placename="one", pattern="host/rack/*"))
    while not any(entry.avail for entry in session.resources.get("host", {}).get("rack", {}).values()):
        await asyncio.sleep(0.5)
    exporter.send_signal(signal.SIGSTOP)
    print("acquire, exporter busy:", await ask("AcquirePlace", acquire, 1))
    exporter.send_signal(signal.SIGCONT)
    await asyncio.sleep(2)
    [place] = (await session.stub.GetPlaces(messages.GetPlacesRequest())).places
    print("place:", "acquired," if place.acquired else "free,", len(place.acquired_resources), "resources")
    print("release:", await ask("ReleasePlace", messages.ReleasePlaceRequest(placename="one")))
    print("acquire:", await ask("AcquirePlace", acquire))
    await asyncio.sleep(35)
    print("acquire, 35 s later:", await ask("AcquirePlace", acquire))


servers = [program("labgrid.remote.coordinator", "-l", address)]
try:
    asyncio.run(asyncio.sleep(3))
    servers.append(program("labgrid.remote.exporter", "-c", address, "-n", "host", "--hostname", "127.0.0.1", "exporter.yaml"))
    asyncio.run(main(servers[1]))
finally:
    for server in servers:
        server.kill()
        server.wait()
PY
timeout 180 venv/bin/python acquire.py 2>errors | tee seen
cmp -s - seen <<'TXT'
acquire, exporter busy: DEADLINE_EXCEEDED
place: acquired, 0 resources
release: OK
acquire: FAILED_PRECONDITION Failed to acquire resources for place one
acquire, 35 s later: OK
TXT
