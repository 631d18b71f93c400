# SPDX-License-Identifier: BSD-2-Clause
"""A panicking kernel writes its dump to its blkfront dump device and nowhere else, and the next boot saves it."""

from __future__ import annotations

import re

import pytest

from harness.console.deaths import Death
from harness.guests import hotplug, rootfs
from harness.guests.dumpdevice import DumpDevice, digest
from harness.guests.guest import Guest
from harness.hosts import scratch as scratches
from harness.hosts.scratch import ScratchDisk
from harness.images.image import Image
from harness.oracles import kerneldump
from harness.oracles.finding import finding
from harness.oracles.naming import extent_of
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted, NewScratch
from harness.xen.config import Disk

# A minidump of a guest with 512 MiB takes up to 120 MiB.
SIZE = 192 * scratches.MIB
# The least swap that the dump of a guest of the default size fits into.
FITS = 144 * scratches.MIB
ELSEWHERE = "elsewhere: fxh image build --layout gpt, then fxh run boot --image IMAGE"
SOURCE = "sys/dev/xen/blkfront/blkfront.c, xbd_dump(); sys/kern/kern_shutdown.c, dump_start(); sys/sys/kerneldump.h"
# Three partitions. The second, xbdNp2, is the dump device.
DIVIDE = """
gpart create -s gpt {disk} && gpart add -t freebsd-boot -a 4k -s 1m {disk} && gpart add -t freebsd-swap -a 1m -s {mib}m {disk} &&
gpart add -t freebsd-ufs -a 1m {disk}
"""


@pytest.mark.needs(os="freebsd")
@pytest.mark.parametrize("sector", [512, 4096])
def test_dump_reaches_the_disk(guest: Guest, scratch: NewScratch, sector: int, case: CaseContext) -> None:
    """A panic writes a complete kernel dump to the dump device, with sectors of 512 and of 4096 bytes, and to no other disk.

    Source: sys/dev/xen/blkfront/blkfront.c, xbd_dump(); sys/kern/kern_shutdown.c, dump_start(); sys/sys/kerneldump.h
    Catches: xbd_dump() counts in the wrong units on disks with sectors of 4096 bytes
    """
    disk, other = scratch("xvdc", "xvdd", size=SIZE, sector=sector)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    hotplug.disk(guest, Disk(other.target, "xvdd"))
    device = whole(guest, disk, sector)
    before = whole_digest(guest, other)
    release = guest.sh("uname -r")
    guest.sh(f"dumpon /dev/{name}")

    death = guest.panic(60)
    guest.wait_shutdown(180)

    wrong = dump_errors(device, death, release, case)
    if whole_digest(guest, other) != before:
        wrong.append("the content of the other disk changed")
    assert not wrong, finding(
        test=f"dumpon /dev/{name} (sectors of {sector} bytes), then a panic",
        observed=wrong,
        expected="the dump has equal headers before and after it, and no other disk changes",
        reference=SOURCE,
    )


@pytest.mark.needs(os="freebsd")
@pytest.mark.parametrize("sector", [512, 4096])
def test_savecore_saves_the_dump(booted: Booted, scratch: NewScratch, sector: int, case: CaseContext) -> None:
    """After the next boot savecore finds the dump, writes exactly its bytes to vmcore.0, describes it, and clears its trailer.

    Source: sbin/savecore/savecore.c, DoFile(); sys/dev/xen/blkfront/blkfront.c
    Catches: xbd_dump() counts in the wrong units on disks with sectors of 4096 bytes
    """
    guest = booted(on_reboot="restart", on_crash="restart")
    (disk,) = scratch("xvdc", size=SIZE, sector=sector)
    (files,) = scratch("xvdd", size=SIZE)
    name, target = (hotplug.disk(guest, Disk(one.target, vdev)) for one, vdev in ((disk, "xvdc"), (files, "xvdd")))
    guest.sh(f"newfs /dev/{target} > /dev/null")
    device = whole(guest, disk, sector)
    release = guest.sh("uname -r")
    guest.sh(f"dumpon /dev/{name}")

    with guest.console.expecting_death():
        guest.console_will_end()
        death = guest.panic(60)
        guest.follow_reboot(300)
    guest.wait_stage("login")
    guest.login()
    wrong = dump_errors(device, death, release, case)
    if not wrong:
        wrong = savecore_errors(guest, device, name, target)

    assert not wrong, finding(
        test=f"dumpon /dev/{name} (sectors of {sector} bytes), a panic, the next boot, savecore /mnt /dev/{name}",
        observed=wrong,
        expected="savecore writes the bytes of the dump to vmcore.0 and its header to info.0, and changes only the trailer's magic",
        reference="sbin/savecore/savecore.c, DoFile(); savecore(8)",
    )


def savecore_errors(guest: Guest, device: DumpDevice, name: str, target: str) -> list[str]:
    """Run savecore for the disk ``name``, with the file system on the disk ``target``, and return its errors as lines."""
    head, tail = device.headers()
    length = kerneldump.parse(tail).length
    found = guest.run(f"savecore -C /dev/{name}", check=False)
    if found.status:
        return [f"savecore -C does not find the dump (status {found.status}): {found.text.strip()}"]
    saved = guest.run(f"mount /dev/{target} /mnt && savecore /mnt /dev/{name}", 300, check=False)
    if saved.status:
        return [f"savecore ends with status {saved.status}: {saved.text.strip()}"]
    wrong = kerneldump.info_errors(guest.sh("cat /mnt/info.0"), kerneldump.parse(tail))
    size = int(guest.sh("stat -f %z /mnt/vmcore.0"))
    # savecore seeks over zeros, also over the last ones, so the file may end earlier than the dump (sparsefwrite()).
    if size > length:
        wrong.append(f"vmcore.0 has {size} bytes, the dump {length}")
    copy = guest.sh(f"truncate -s {length} /mnt/vmcore.0 && fxh_digest < /mnt/vmcore.0", 300).split()[0]
    if copy != device.dump_digest(tail):
        wrong.append("vmcore.0 differs from the dump on the disk")
    start = guest.sh(f"head -c {len(kerneldump.MINIDUMP)} /mnt/vmcore.0 | tr -cd '[:print:]'")
    if start != kerneldump.MINIDUMP.decode():
        wrong.append(f"vmcore.0 begins with {start!r} instead of {kerneldump.MINIDUMP.decode()!r}")
    guest.sh("umount /mnt")
    after = device.read(device.size - device.sector)
    if after[: kerneldump.SIZE] != kerneldump.cleared(tail):
        wrong.append(f"the trailer after savecore begins with {after[:20]!r}, or differs in more than its magic")
    if device.read(kerneldump.first_header_offset(tail, sector=device.sector, size=device.size)) != head:
        wrong.append("savecore changed the header before the dump")
    if not guest.run(f"savecore -C /dev/{name}", check=False).status:
        wrong.append("savecore -C finds the dump again after it was saved")
    return wrong


@pytest.mark.needs(os="freebsd")
def test_dump_to_a_swap_partition(guest: Guest, scratch: NewScratch, case: CaseContext) -> None:
    """With dumpdev="AUTO", rc dumps to the swap partition of fstab; the partition table and both neighbours keep their content.

    Source: libexec/rc/rc.d/dumpon; sys/geom/part/g_part.c, g_part_start(); sys/dev/xen/blkfront/blkfront.c, xbd_dump()
    """
    (disk,) = scratch("xvdc", size=SIZE + 8 * scratches.MIB)
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    swap = f"{name}p2"
    guest.sh(DIVIDE.format(disk=name, mib=SIZE // scratches.MIB))
    guest.sh(f"swapon /dev/{swap}; sed -i '' '/swap/d' /etc/fstab; echo '/dev/{swap} none swap sw 0 0' >> /etc/fstab")

    wrong = panic_into_swap(guest, swap, disk.target, disk.size, case)

    assert not wrong, finding(
        test=f"dumpdev=AUTO with the swap partition {swap}, then a panic",
        observed=wrong,
        expected="the dump is at the end of the partition, and the rest of the disk does not change",
        reference=f"libexec/rc/rc.d/dumpon; {SOURCE}",
    )


@pytest.mark.needs(os="freebsd")
def test_dump_to_the_swap_of_the_image(guest: Guest, image: Image, case: CaseContext) -> None:
    """With dumpdev="AUTO", a panic writes its dump to the image's own swap, and nothing else on the root's disk changes.

    The root is mounted read-only first, so that the guest itself changes nothing.

    Source: libexec/rc/rc.d/dumpon; sys/dev/xen/blkfront/blkfront.c, xbd_dump()
    """
    if image.zfs:
        pytest.skip(f"needs a root on UFS: ZFS writes to its pool by itself; {ELSEWHERE}")
    swap = guest.sh("awk '!/^#/ && $3 == \"swap\" { print $1; exit }' /etc/fstab").strip().removeprefix("/dev/")
    partition = rootfs.provider(guest.sh, swap)
    place = extent_of(guest.sh("sysctl -n kern.geom.conftxt"), partition)
    if place is None or place[1] < FITS:
        pytest.skip(f"needs an image with a swap partition of {FITS // scratches.MIB} MiB; {ELSEWHERE}")
    name = re.sub(r"p\d+$", "", partition)
    if name != guest.os.disk_name(guest.disks[0].vdev):
        pytest.skip(f"needs its swap on the root's disk, it is {partition}; {ELSEWHERE}")
    guest.sh("sync; mount -fur /")

    wrong = panic_into_swap(guest, swap, guest.disks[0].target, guest.os.disk_bytes(guest.sh, name), case)

    assert not wrong, finding(
        test=f"dumpdev=AUTO with the swap {partition} on the root's disk, then a panic",
        observed=wrong,
        expected="the dump is at the end of the swap partition, and the rest of the disk does not change",
        reference=f"libexec/rc/rc.d/dumpon; {SOURCE}",
    )


def panic_into_swap(guest: Guest, swap: str, target: str, disk_size: int, case: CaseContext) -> list[str]:
    """Let rc choose the dump device, panic, and return the errors of the dump in ``swap`` and changes outside of it, as lines.

    ``swap`` is the partition's name in fstab without /dev/, ``target`` its disk in dom0, ``disk_size`` the size of that in bytes.
    """
    partition = rootfs.provider(guest.sh, swap)
    place = extent_of(guest.sh("sysctl -n kern.geom.conftxt"), partition)
    if place is None:
        return [f"kern.geom.conftxt has no partition {partition}"]
    # With --keep dump the loader sets the kernel variable dumpdev, and AUTO prefers it to fstab (rc.d/dumpon).
    guest.run("kenv -u dumpdev", check=False)
    # rc.conf.d may be on a root that is read-only by now.
    guest.sh("mount -t tmpfs tmpfs /etc/rc.conf.d && echo dumpdev=AUTO > /etc/rc.conf.d/dumpon && /etc/rc.d/dumpon start", 120)
    if (chosen := guest.sh("readlink /dev/dumpdev").strip()) != f"/dev/{swap}":
        return [f"/etc/rc.d/dumpon with dumpdev=AUTO made {chosen!r} the dump device instead of /dev/{swap}"]
    device = DumpDevice(guest.host.transport, target, place[1], start=place[0])
    release = guest.sh("uname -r")
    before = device.digest_of_rest(disk_size)

    death = guest.panic(60)
    guest.wait_shutdown(180)

    wrong = dump_errors(device, death, release, case)
    if device.digest_of_rest(disk_size) != before:
        wrong.append(f"the disk changed outside of {partition}")
    return wrong


def dump_errors(device: DumpDevice, death: Death, release: str, case: CaseContext) -> list[str]:
    """Return the errors of the dump on ``device`` after ``death``, and keep its size as a metric."""
    head, tail = device.headers()
    message = re.sub(r"^panic: ", "", death.message)
    wrong = kerneldump.dump_errors(head, tail, sector=device.sector, size=device.size, panic=message, release=release)
    if not wrong:
        case.metrics["dump, MiB"] = kerneldump.parse(tail).length / scratches.MIB
    return wrong


def whole(guest: Guest, disk: ScratchDisk, sector: int) -> DumpDevice:
    """Return the whole disk as a dump device."""
    return DumpDevice(guest.host.transport, disk.target, disk.size, sector)


def whole_digest(guest: Guest, disk: ScratchDisk) -> str:
    """Return the md5 of a whole disk, taken in dom0."""
    return digest(guest.host.transport, disk.target, (0, disk.size))
