# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: run a command whose standard streams are a TCP connection.

    port_command FROM COMMAND [ARGUMENT ...]

It listens at a free port and prints its number. The first connection from the address FROM gets the command; it ends all others, which
may come from a guest.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    wanted, *argv = sys.argv[1:]
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen(1)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, (address, _) = listener.accept()
        if address == wanted:
            break
        connection.close()
    listener.close()
    for stream in (0, 1):
        os.dup2(connection.fileno(), stream)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
