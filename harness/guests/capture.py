# SPDX-License-Identifier: BSD-2-Clause
"""Captures of frames in dom0, by tcpdump."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import InfrastructureError
from harness.guests.peer import Listener, inside
from harness.hosts.host import XenHost

# Ends the process "$1". A tcpdump that got SIGINT did not always end. With -U each frame that it has counted is in the file, so SIGKILL
# after a second loses none of those.
_STOP = 'kill -INT "$1"; for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" 2>/dev/null || exit 0; sleep 0.1; done; kill -KILL "$1"'
# 12 packets captured, 14 packets received by filter, 0 packets dropped by kernel     (tcpdump on SIGUSR1; "1 packet" for one)
COUNTS = rb"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel"


@contextlib.contextmanager
def to_file(
    host: XenHost, device: str, target: Path, expression: str, *, namespace: str = "", whole: bool = False
) -> Iterator[None]:
    """Capture the frames on dom0's interface ``device`` that match the pcap-filter(7) ``expression`` in the file ``target``.

    Without ``whole`` the file has the first 96 bytes of each frame. Raises InfrastructureError if frames are missing.
    """
    remote = f"/run/fxh-{secrets.token_hex(4)}.pcap"
    # Without --immediate-mode a tcpdump that is stopped never reads the frames of the last second. In that mode each frame takes
    # the ring space of the longest, so the ring must be larger than the default of 2 MiB.
    ring = ["--immediate-mode", "-B", "32768", "-s", "65549" if whole else "96"]
    words = ["tcpdump", "-i", device, "-U", "-Z", "root", *ring, "-w", remote, *expression.split()]
    run = host.transport.run
    with contextlib.ExitStack() as stack:
        stream = host.transport.open(["sh", "-c", 'echo $$; exec "$@"', "sh", *inside(namespace), *words])
        stack.callback(stream.close)
        stack.callback(run, ["rm", "-f", remote])
        output = Listener(stream, "tcpdump")
        pid = output.until(rb"(\d+)\n")[1].decode()
        with contextlib.ExitStack() as stop:
            stop.callback(run, ["sh", "-c", _STOP, "sh", pid], check=False)
            output.until(rb"listening on")
            running = stop.pop_all()
        # Now there is a file to fetch, after tcpdump has ended.
        stack.callback(host.transport.get, remote, target)
        stack.enter_context(running)

        def unwritten() -> int:
            """The number of frames that the kernel has counted and tcpdump has not written."""
            run(["kill", "-USR1", pid])
            captured, received, dropped = (int(count) for count in output.until(COUNTS).groups())
            if dropped:
                raise InfrastructureError(f"dom0's kernel dropped {dropped} of {received} frames before tcpdump read them")
            return received - captured

        def all_written() -> None:
            if (left := unwritten()) > before:
                raise ConditionNotMet(f"tcpdump has {left - before} frames to write")

        # The kernel counts frames from before its filter was in place, which are never written.
        before = unwritten()
        yield
        Deadline(30).wait("tcpdump to write all frames", all_written)
