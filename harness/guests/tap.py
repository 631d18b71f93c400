# SPDX-License-Identifier: BSD-2-Clause
"""Links to emulated network cards. dom0's end of such a card is a TAP device."""

from __future__ import annotations

from types import ModuleType

from harness.dom0 import tap_relay
from harness.errors import CannotRun
from harness.guests.link import Link
from harness.guests.peer import Listener
from harness.safetext import plain
from harness.transport import Transport
from harness.xen import dom0_program

# The last number of the far end's address. Guests have 2 and 3.
STATION = 4
# Moves the TAP device "$1" into the network namespace "$2" with the address "$3", and connects the device "$4" to the bridge "$5". Further
# arguments belong to the address. A namespace may be left from a run that was killed; its relay has ended with the connection.
_CONNECT = """
set -e
far=$1 space=$2 address=$3 near=$4 bridge=$5; shift 5
ip netns del "$space" 2>/dev/null || true
ip netns add "$space"
ip link set "$far" netns "$space"
ip link set "$near" master "$bridge" up
ip -n "$space" link set "$far" up
ip -n "$space" addr add "$address" dev "$far" "$@"
"""
# Waits, for five seconds, until the device "$1" is gone.
_GONE = 'n=0; while [ -e /sys/class/net/"$1" ] && [ $n -lt 50 ]; do n=$((n + 1)); sleep 0.1; done'


def start(transport: Transport, program: ModuleType, *devices: str) -> Listener:
    """Start a program of :mod:`harness.dom0` that creates TAP ``devices``. Raises CannotRun if dom0 cannot create them."""
    listener = Listener(dom0_program.start(transport, program, *devices), "the relay of frames")
    if error := listener.until(rb"ready\n|error: ([^\n]*)\n")[1]:
        listener.stream.close()
        raise CannotRun(
            f"dom0 cannot create TAP devices: {plain(error.decode(errors='replace'))}", hint="load the module tun in dom0"
        )
    return listener


class TapLink(Link):
    """A link to a TAP device on the host's bridge, whose frames a program relays (:mod:`harness.dom0.tap_relay`).

    QEMU has such a device for each network card that it emulates. The link's far end is a network namespace of dom0.
    """

    def __init__(self, over: Link) -> None:
        """``over`` is the link between the guest and the bridge; the guest keeps its address. A run has one such link at a time."""
        super().__init__(over.guest, over.index, f"fxhnic{over.host.slot}", over.interface, family=over.family)
        self.here = self.family.address.format(net=self.net, station=STATION)
        self.device, self.near = self.namespace, f"fxhtap{over.host.slot}"
        self._relay: Listener | None = None

    @property
    def end(self) -> str:
        return self.device

    def up(self) -> TapLink:
        """Create the devices and the namespace. Raises CannotRun if dom0 cannot create TAP devices."""
        self._relay = start(self.host.transport, tap_relay, self.near, self.device)
        words = [self.device, self.namespace, self._cidr(self.here), self.near, self.host.bridge, *self.family.at_once]
        self.host.transport.run(["sh", "-c", _CONNECT, "sh", *words])
        return self

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of the path within dom0, in bytes."""
        for device in (self.present_vif, self.near):
            self.host.transport.run(["ip", "link", "set", device, "mtu", str(mtu)])
        self.dom0("ip", "link", "set", self.device, "mtu", str(mtu))

    def down(self) -> None:
        """End the program, with its devices, and remove the namespace."""
        if self._relay is not None:
            self._relay.stream.close()
            self.host.transport.run(["sh", "-c", _GONE, "sh", self.near], check=False)
        super().down()


class EmulatedLink(Link):
    """The link of a guest that drives the card that QEMU emulates for its interface."""

    @property
    def end(self) -> str:
        # libxl's name of QEMU's TAP device (xen tools/libs/light/libxl_nic.c, libxl__device_nic_devname()).
        return f"{self.present_vif}-emu"
