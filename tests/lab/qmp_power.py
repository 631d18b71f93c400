# SPDX-License-Identifier: BSD-2-Clause
"""The power switch of a lab, as a command: ``qmp_power.py SOCKET status|cycle|hang`` speaks to QEMU's monitor. Needs only Python."""

from __future__ import annotations

import json
import socket
import sys

# A lab's QEMU runs with -no-reboot, so it would end at a reset.
COMMANDS = {
    "cycle": ('{"execute":"set-action","arguments":{"reboot":"reset"}}', '{"execute":"system_reset"}', '{"execute":"cont"}'),
    "status": ('{"execute":"query-status"}',),
    # The machine keeps its memory and its connections, but executes nothing.
    "hang": ('{"execute":"stop"}',),
}


def main() -> None:
    """Run the commands of an action, and print what ``ipmitool chassis power`` prints."""
    path, action = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(20)
        monitor.connect(path)
        lines = monitor.makefile("rw")
        json.loads(lines.readline())  # the greeting
        for command in ('{"execute":"qmp_capabilities"}', *COMMANDS[action]):
            lines.write(command + "\n")
            lines.flush()
            while "event" in (answer := json.loads(lines.readline())):
                pass
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']['desc']}")
    print("Chassis Power is on")


main()
