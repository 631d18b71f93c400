# SPDX-License-Identifier: BSD-2-Clause
"""The guest runs exactly what the image contains: kernel, version, files and root."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guests import filehash, rootfs
from harness.guests.guest import Guest
from harness.images.image import Image
from harness.oracles.finding import finding
from harness.xen.elfnotes import build_id


@pytest.mark.needs(os="freebsd", freebsd=">=13.0")
def test_running_kernel_is_the_images(guest: Guest, image: Image, kernel_file: Path) -> None:
    """The build-id of the running kernel (kern.build_id, FreeBSD 13 and later) is that of the image's kernel."""
    running, given = guest.sh("sysctl -n kern.build_id").strip(), build_id(kernel_file)

    assert running == given, finding(
        test=f"sysctl kern.build_id, after a boot of {kernel_file.name}",
        observed=f"the running kernel has the build-id {running}",
        expected=f"the running kernel has the build-id of the image's kernel, {given}",
        reference="the image's kernel file",
    )


@pytest.mark.needs(os="freebsd")
def test_running_version_is_the_manifests(guest: Guest, image: Image) -> None:
    """The release and kern.osreldate of the running kernel are those of the image.

    Source: sys/conf/newvers.sh
    """
    given = image.os_version
    if not given.release or (guest.config.type == "hvm" and not image.data["kernel"]["path"]):
        pytest.skip("needs an image that was built: the loader of an imported disk starts the kernel of the disk")

    running = guest.os.identity(guest.sh)

    release = "-".join(filter(None, (given.release, given.branch)))
    wrong = []
    if running.release != release:
        wrong.append(f"uname -r is {running.release} instead of {release}")
    if given.osreldate and running.osreldate != given.osreldate:
        wrong.append(f"kern.osreldate is {running.osreldate} instead of {given.osreldate}")
    assert not wrong, finding(
        test="uname -r and sysctl kern.osreldate",
        observed=wrong,
        expected=f"the guest runs the image's version: {given}",
        reference="sys/conf/newvers.sh; the image's manifest",
    )


@pytest.mark.needs(os="freebsd")
def test_kernel_in_the_guest_is_the_manifests(guest: Guest, image: Image) -> None:
    """The kernel file in the guest has the sha256 of the image's manifest."""
    if not image.data["kernel"]["path"]:
        pytest.skip("needs an image that was built: an imported disk has its own kernel")
    if image.data["layout"] == "ext2boot":
        pytest.skip("the /boot of this layout is on an ext2 disk, which only pygrub reads")
    path, wanted = image.data["kernel"]["path"], image.data["kernel"]["sha256"]

    found = guest.sh(f"sha256 -q {path}").strip()

    assert found == wanted, finding(
        test=f"sha256 of {path} in the guest",
        observed=f"the sha256 is {found}",
        expected=f"the sha256 is that of the image's manifest, {wanted}",
        reference="the image's manifest",
    )


@pytest.mark.needs(os="freebsd")
def test_files_read_from_the_disk_are_the_guests(guest: Guest, image: Image) -> None:
    """Each file that the harness read from the disk image has the same sha256 in the guest."""
    if not image.data.get("files"):
        pytest.skip("needs a disk image that was read; elsewhere: fxh run boot --disk FILE")

    wrong = filehash.differing(guest.sh, image.data["files"])

    assert not wrong, finding(
        test="sha256 of files in the guest",
        observed=wrong,
        expected="each file has the sha256 that was read from the disk image without mounting it",
        reference="the image's manifest",
    )


@pytest.mark.needs(os="freebsd")
def test_root_is_where_the_layout_put_it(guest: Guest, image: Image) -> None:
    """Root is on the layout's device, and every file system of fstab and every ZFS dataset is mounted."""
    root = guest.os.root_device(guest.sh)
    good = [rootfs.mounted_as(image.mountfrom), f"/dev/{image.root}", f"/dev/ufs/{image.data.get('root_label') or 'FBROOT'}"]
    below = rootfs.device(guest.sh, root)
    fstab = set(guest.sh('awk \'!/^#/ && $4 !~ /noauto/ && ($3 == "ufs" || $3 == "msdosfs") { print $2 }\' /etc/fstab').split())
    if image.zfs:
        rows = [line.split("\t") for line in guest.sh("zfs list -H -o mountpoint,canmount").splitlines()]
        fstab |= {mountpoint for mountpoint, canmount in rows if canmount == "on" and mountpoint.startswith("/")} | {"/"}
    mounted = {line.split()[1] for line in guest.sh("mount -p").splitlines() if len(line.split()) > 1}

    wrong = []
    if root not in good:
        wrong.append(f"root is {root}")
    if below != image.root_device:
        wrong.append(f"root {root} is on {below or 'no disk'}")
    if "/" not in fstab:
        wrong.append("/etc/fstab has no line for /")
    if missing := fstab - mounted:
        wrong.append(f"not mounted: {', '.join(sorted(missing))}")
    assert not wrong, finding(
        test=f"the mounts of an image with the layout {image.data['layout']}",
        observed=wrong,
        expected=f"root is {good[0]} on {image.root_device}, and all file systems of fstab are mounted",
        reference="the image's manifest; fstab(5)",
    )
