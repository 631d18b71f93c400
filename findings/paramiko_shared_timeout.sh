#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# A thread that polls a paramiko channel makes another thread's sendall() fail after the poll's time-out.
#
# Versions:  paramiko 5.1.0 (PyPI)
# Behavior:  A Channel has one time-out for both directions. A thread sets 30 s and calls sendall(). The peer reads in two parts and
#            pauses for 2 s before each, so the sender waits twice for room in the window. Meanwhile a thread that reads sets its own
#            0.2 s before each recv(). The second wait uses that: sendall() raises TimeoutError, and does not tell how much it sent.
#            Without the reading thread the same call waits for the peer and returns.
# Output:    without a reading thread: everything was sent
#            with a reading thread: TimeoutError in less than 5 s
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the package cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check paramiko==5.1.0 2>pip.log ||
  { echo "cannot install paramiko 5.1.0 from PyPI" >&2; exit 2; }
cat > both.py <<'PY'
import socket, threading, time

import paramiko


class Server(paramiko.ServerInterface):
    def check_auth_none(self, username):
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED


def attempt(polling):
    ours, theirs = socket.socketpair()
    server, client = paramiko.Transport(theirs), paramiko.Transport(ours)
    server.add_server_key(paramiko.RSAKey.generate(2048))
    server.start_server(event=threading.Event(), server=Server())
    client.start_client()
    client.auth_none("user")
    channel = client.open_session()
    peer = server.accept(10)
    size = 8 << 20  # more than the window of 2 MiB

    def take():
        for part in (size // 2, size // 2):
            time.sleep(2)
            taken = 0
            while taken < part:
                taken += len(peer.recv(1 << 16)) or part

    def poll():
        while not channel.closed:
            channel.settimeout(0.2)
            try:
                if not channel.recv(1):
                    return
            except TimeoutError:
                pass

    threading.Thread(target=take, daemon=True).start()
    if polling:
        threading.Thread(target=poll, daemon=True).start()
        time.sleep(0.5)
    begun = time.monotonic()
    try:
        channel.settimeout(30)
        channel.sendall(bytes(size))
        return "everything was sent"
    except TimeoutError:
        return "TimeoutError in less than 5 s" if time.monotonic() - begun < 5 else "TimeoutError"
    finally:
        client.close()
        server.close()


print("without a reading thread:", attempt(False))
print("with a reading thread:", attempt(True))
PY
venv/bin/python both.py > output
cat output
printf '%s\n' "without a reading thread: everything was sent" "with a reading thread: TimeoutError in less than 5 s" | cmp -s - output ||
  { echo "the behavior changed" >&2; exit 1; }
