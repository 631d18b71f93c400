# SPDX-License-Identifier: BSD-2-Clause
"""What was built is what runs: nothing on the way changes a byte of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guests import filehash, rootfs
from harness.guests.guest import Guest
from harness.images.image import Image
from harness.images.kernelfile import build_id


@pytest.mark.needs(os="freebsd", freebsd=">=13.0")
def test_running_kernel_is_the_images(guest: Guest, image: Image, kernel_file: Path) -> None:
    """The build-id that the running kernel tells (kern.build_id, 13 and later) is that of the image's kernel."""
    running = guest.sh("sysctl -n kern.build_id").strip()

    assert running == build_id(kernel_file), f"the kernel that runs has build-id {running}, the image's has {build_id(kernel_file)}"


@pytest.mark.needs(os="freebsd")
def test_running_version_is_the_manifests(guest: Guest, image: Image) -> None:
    """The running kernel's release and kern.osreldate are those of the image (sys/conf/newvers.sh makes both)."""
    given = image.os_version
    if not given.release or (guest.config.type == "hvm" and not image.data["kernel"]["path"]):
        pytest.skip("needs an image that was built: the loader of an imported disk starts the kernel that is on it")

    running = guest.profile.identity(guest.sh)

    assert running.release == "-".join(filter(None, (given.release, given.branch))), (
        f"{running.release} runs, the image has {given}"
    )
    if given.osreldate:
        assert running.osreldate == given.osreldate, f"kern.osreldate is {running.osreldate}, the image has {given}"


@pytest.mark.needs(os="freebsd")
def test_kernel_in_the_guest_is_the_manifests(guest: Guest, image: Image) -> None:
    """The sha256 of /boot/kernel/kernel, taken in the guest, is the one in the image's manifest."""
    if not image.data["kernel"]["path"]:
        pytest.skip("needs an image that was built: an imported disk has its own kernel")
    if image.data["layout"] == "ext2boot":
        pytest.skip("this layout's /boot is on an ext2 disk, which only pygrub reads")

    found = guest.sh(f"sha256 -q {image.data['kernel']['path']}").strip()

    wanted = image.data["kernel"]["sha256"]
    assert found == wanted, f"{image.data['kernel']['path']} has sha256 {found} in the guest, {wanted} in the image's manifest"


@pytest.mark.needs(os="freebsd")
def test_files_read_from_the_disk_are_the_guests(guest: Guest, image: Image) -> None:
    """Each file that was read from the disk image without mounting it has the sha256 that the guest takes of it."""
    if not image.data.get("files"):
        pytest.skip("needs a disk image that was read; elsewhere: fxh run boot --disk FILE")

    wrong = filehash.differing(guest.sh, image.data["files"])

    assert not wrong, "\n".join(wrong)


@pytest.mark.needs(os="freebsd")
def test_root_is_where_the_layout_put_it(guest: Guest, image: Image) -> None:
    """Root comes from where the layout put it, and every file system of fstab and every dataset is mounted."""
    root = guest.profile.root_device(guest.sh)
    good = [rootfs.mounted_as(image.mountfrom), f"/dev/{image.root}", f"/dev/ufs/{image.data.get('root_label') or 'FBROOT'}"]
    assert root in good, f"root is {root}, the layout {image.data['layout']} put it on {good[0]}"
    assert (below := rootfs.device(guest.sh, root)) == image.root_device, (
        f"root {root} is on {below or 'no disk'}, the layout {image.data['layout']} put it on {image.root_device}"
    )
    wanted = set(guest.sh('awk \'!/^#/ && $4 !~ /noauto/ && ($3 == "ufs" || $3 == "msdosfs") { print $2 }\' /etc/fstab').split())
    if image.zfs:
        rows = [line.split("\t") for line in guest.sh("zfs list -H -o mountpoint,canmount").splitlines()]
        wanted |= {mountpoint for mountpoint, canmount in rows if canmount == "on" and mountpoint.startswith("/")} | {"/"}
    mounted = {line.split()[1] for line in guest.sh("mount -p").splitlines() if len(line.split()) > 1}
    assert "/" in wanted, "fstab has no root"
    assert wanted <= mounted, f"not mounted: {wanted - mounted}"
