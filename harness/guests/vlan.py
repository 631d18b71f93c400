# SPDX-License-Identifier: BSD-2-Clause
"""A link over a VLAN on a guest's interface."""

from __future__ import annotations

from harness.errors import CannotRun, CommandFailed
from harness.guests.link import IPV4, Family, Link

# Of the run with the slot 0. Runs that share a host share its bridge: each has a tag, a device and a net by its slot. The nets must
# not be those of links without a tag, which end at link.NETS, and must end at 255.
TAG, NET = 5, 100


class VlanLink(Link):
    """A link whose frames have the tag :attr:`tag`. dom0's end is a VLAN interface on the bridge, the guest's one on its interface."""

    def __init__(self, over: Link, family: Family = IPV4) -> None:
        """``over`` is the link without a tag. A run has one VLAN at a time."""
        slot = over.host.slot
        tag = TAG + slot
        super().__init__(over.guest, over.index, interface=f"vlan{tag}", family=family)
        self.parent, self.tag = over.interface, tag
        self.device = f"fxhvlan{tag}"
        self.expression = f"vlan {tag} and {self.expression}"
        self.net = NET + slot % (256 - NET)
        self.here, self.there = (family.address.format(net=self.net, station=number) for number in (1, 2))
        self._created = False

    def up(self) -> VlanLink:
        """Create both interfaces and set their addresses. Raises CannotRun if dom0's kernel has no VLANs."""
        guest = self.guest
        if self.interface not in {interface.name for interface in guest.os.interfaces(guest.sh)}:
            guest.sh(guest.os.vlan_command(self.parent, self.tag))
        try:
            self.dom0("ip", "link", "add", "link", self.host.bridge, "name", self.device, "type", "vlan", "id", str(self.tag))
        except CommandFailed as exc:
            # RTNETLINK answers: File exists      Error: Unknown device type.
            # The device is left from an earlier run with the same slot, which has ended.
            if "File exists" not in exc.stderr:
                raise CannotRun(
                    f"dom0 cannot create a VLAN on {self.host.bridge}: {exc.stderr.strip()}", hint="load the module 8021q in dom0"
                ) from exc
        self._created = True
        self.dom0("ip", "link", "set", self.device, "up")
        super().up()
        return self

    def down(self) -> None:
        """Remove dom0's interface, if :meth:`up` created it."""
        if self._created:
            self.dom0("ip", "link", "del", self.device, check=False)
