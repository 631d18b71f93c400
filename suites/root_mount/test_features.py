# SPDX-License-Identifier: BSD-2-Clause
"""Disks whose backend offers more or fewer features: indirect segments, flush and barrier."""

from __future__ import annotations

import pytest

from harness.guests import files, hotplug
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted, NewGuest, NewScratch
from harness.xen import pygrub
from harness.xen.config import Disk

# Segments of a request without indirect segments (public/io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST).
DIRECT = 11
# The features that blkback offers for a disk with and without a write cache (drivers/block/xen-blkback/xenbus.c, connect()).
CACHES = {"xvdc": ("write back", {"flush", "write_barrier"}), "xvdd": ("write through", set())}
MENU = "default=0\\ntimeout=0\\ntitle x\\nroot (hd0)\\nkernel /boot/kernel/kernel\\n"


@pytest.mark.needs(os="freebsd", capability=("pygrub",))
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_synced_data_survives_a_power_cut(
    new_guest: NewGuest, booted: Booted, scratch: NewScratch, indirect: bool, case: CaseContext
) -> None:
    """Synced data is on the disk after a power cut (`xl destroy`), and the guest reports the backend's features.

    Source: sys/dev/xen/blkfront/blkfront.c, xbd_connect() and xbd_instance_create()
    """
    guest = booted() if indirect else new_guest(variables=(("hw.xbd.xbd_enable_indirect", "0"),)).boot()
    made = scratch(*CACHES, size=24 * scratches.MIB)
    wrong, written = [], {}
    for disk, (name, (cache, features)) in zip(made, CACHES.items(), strict=True):
        guest.host.transport.run(["sh", "-c", f"echo {cache} > /sys/block/{disk.target.removeprefix('/dev/')}/queue/write_cache"])
        frontend = hotplug.disk(guest, Disk(disk.target, name))
        wrong += feature_problems(guest, frontend, features, indirect)
        written[name] = write_synced_kernel(guest, frontend)

    guest.destroy()

    for disk, name in zip(made, CACHES, strict=True):
        done = pygrub.run(guest.host.transport, f"{guest.host.directory}/pygrub", disk.target)
        if done.digest("kernel") != written[name]:
            wrong.append(f"{name} ({CACHES[name][0]}): the synced data is lost: {done.complaint or 'the disk has other bytes'}")
    assert not wrong, finding(
        test=f"files of 6 MiB written and synced on a disk with a write cache and one without, hw.xbd.xbd_enable_indirect={indirect:d}, "
        "then xl destroy",
        observed=wrong,
        expected="the guest uses and reports the features of each backend, and the disks have all synced data",
        reference=f"{guest.os.source('blkfront')}, xbd_connect() and xbd_instance_create()",
    )


def feature_problems(guest: Guest, name: str, features: set[str], indirect: bool) -> list[str]:
    """Compare the sysctls of disk ``name`` with the backend's ``features`` and with ``indirect``; return what differs."""
    node = f"dev.xbd.{name.removeprefix('xbd')}"
    segments, *shown = guest.sh(f"sysctl -n {node}.max_request_segments {node}.features").split("\n")
    words = {word.strip() for word in " ".join(shown).split(",")} - {""}
    wrong = []
    if words != features:
        wrong.append(
            f"{name} shows the features {', '.join(sorted(words)) or 'none'}; its backend offers {', '.join(sorted(features)) or 'none'}"
        )
    if (int(segments) > DIRECT) != indirect:
        wrong.append(f"{name} uses requests of up to {segments} segments, with indirect segments {'on' if indirect else 'off'}")
    return wrong


def write_synced_kernel(guest: Guest, name: str) -> str:
    """Make a file system on disk ``name`` with a synced file that pygrub takes for a kernel; return its sha256."""
    # -r: a reserved block at the end; without it pygrub may not find a directory (bootable.make_ufs).
    guest.sh(
        f"newfs -O 1 -b 32768 -f 4096 -r 64 /dev/{name} >/dev/null && mount /dev/{name} /mnt && mkdir -p /mnt/boot/grub /mnt/boot/kernel"
    )
    guest.sh(
        f"printf '{MENU}' > /mnt/boot/grub/menu.lst; dd if=/dev/urandom of=/mnt/boot/kernel/kernel bs=1m count=6 2>/dev/null", 120
    )
    guest.sh("fsync /mnt/boot/kernel/kernel /mnt/boot/grub/menu.lst")
    return files.digest(guest, "/mnt/boot/kernel/kernel")
