#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# A process can have one session with a labgrid coordinator at a time: the second one is refused as if there was no coordinator.
#
# Versions:  labgrid 26.0.1, grpcio 1.85.3 (PyPI)
# Behavior:  gRPC gives all channels of a process to one address the same TCP connection. The coordinator identifies a client by that
#            connection's peer address, and its stream for the second ClientSession ends with an AssertionError. The session reports
#            "Could not connect to coordinator". This also hits a session that begins before the coordinator has noticed the end of
#            the last one. After a pause, or from another process, the session works.
# Output:    first: connected
#            second, at the same time: Error: Could not connect to coordinator
#            third, 2 s after the end of both: connected
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the packages cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check labgrid==26.0.1 grpcio==1.85.3 grpcio-reflection==1.85.1 2>pip.log ||
  { echo "cannot install labgrid 26.0.1 from PyPI" >&2; exit 2; }
cat > sessions.py <<'PY'
import asyncio, logging, socket, subprocess, sys

from labgrid.remote.client import ClientSession

logging.disable()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % probe.getsockname()[1]
server = subprocess.Popen(
    [sys.executable, "-m", "labgrid.remote.coordinator", "-l", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)


async def end(session):
    for step in (session.stop, session.close):
        try:
            await step()
        except Exception:
            pass


async def main():
    async def attempt():
        session = ClientSession(address, asyncio.get_running_loop())
        try:
            await session.start()
            return session, "connected"
        except Exception as exc:
            return session, str(exc)

    for _ in range(60):  # until the coordinator listens
        first, result = await attempt()
        if result == "connected":
            break
        await end(first)
        await asyncio.sleep(1)
    print("first:", result)
    second, result = await attempt()
    print("second, at the same time:", result)
    await end(second)
    await end(first)
    await asyncio.sleep(2)
    third, result = await attempt()
    print("third, 2 s after the end of both:", result)
    await end(third)


try:
    asyncio.run(main())
finally:
    server.kill()
    server.wait()
PY
venv/bin/python sessions.py | tee seen
cmp -s - seen <<'TXT'
first: connected
second, at the same time: Error: Could not connect to coordinator
third, 2 s after the end of both: connected
TXT
