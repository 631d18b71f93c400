# SPDX-License-Identifier: BSD-2-Clause
"""The files that the builder writes into a world: fstab, rc.conf, configuration of loader and pygrub, gettys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.images import loader_conf_slot, metalog
from harness.images.inputs import combine
from harness.images.layout import Layout
from harness.images.metalog import Tree

# ttys(5): name, getty, type, status.
_GETTY = '{name}\t"/usr/libexec/getty {kind}"\tvt100\ton\tsecure\n'


@dataclass(frozen=True)
class OverlayFiles:
    """Files by path (``./etc/fstab``), with their content."""

    files: tuple[tuple[str, bytes], ...]

    @property
    def hash(self) -> str:
        return combine([(path, data.hex()) for path, data in self.files])

    def __add__(self, other: OverlayFiles) -> OverlayFiles:
        return OverlayFiles((*self.files, *other.files))

    def apply(self, tree: Tree, scratch: Path) -> None:
        """Put the files into ``tree``. ``scratch`` must exist until the file systems are written."""
        for number, (path, data) in enumerate(self.files):
            where = scratch / str(number)
            where.write_bytes(data)
            metalog.add_file(tree, path, where)


def for_layout(layout: Layout, ttys: str, zfs_load: bool = False) -> OverlayFiles:
    """The files for an image of ``layout``. ``ttys`` is the world's ttys(5); ``zfs_load``: the loader must load zfs.ko."""
    data = paths.project() / "images/freebsd"
    files = {
        "./etc/fstab": fstab(layout).encode(),
        "./etc/rc.conf": ((data / "etc/rc.conf").read_text() + ('zfs_enable="YES"\n' if layout.zfs else "")).encode(),
        "./etc/sysctl.conf": (data / "etc/sysctl.conf").read_bytes(),
        "./boot/loader.conf": loader_conf((data / "loader.conf").read_text(), layout, zfs_load).encode(),
        "./boot/grub/menu.lst": menu_lst(layout).encode(),
    }
    changed = with_getty(with_getty(ttys, "xc0", "Pc"), "ttyu0", "std.115200")
    if changed != ttys:
        files["./etc/ttys"] = changed.encode()
    if "bios" in layout.firmwares:
        # Otherwise the boot program before the loader waits three seconds for a key (stand/i386/gptboot/gptboot.c, keyhit()).
        files["./boot.config"] = b"-n\n"
    if layout.firmwares and not layout.zfs:
        files[loader_conf_slot.PATH] = loader_conf_slot.text({})
    return OverlayFiles(tuple(sorted(files.items())))


def loader_conf(text: str, layout: Layout, zfs_load: bool) -> str:
    """/boot/loader.conf: ``text``, adapted to ``layout``.

    With ZFS the kernel variables are in the pool's boot environment instead (harness.images.bootenv). The loader reads loader.conf
    later, so loader.conf would override the variables of a run.
    """
    if not layout.zfs:
        return text
    kept = [line for line in text.splitlines() if not line.startswith(loader_conf_slot.KERNEL_PREFIXES)]
    # As in release/tools/vmimage.subr: the vdev of a pool must not have the name of its disk's serial number.
    return "\n".join([*kept, 'kern.geom.label.disk_ident.enable="0"', *(['zfs_load="YES"'] if zfs_load else [])]) + "\n"


# REQUIRE: FILESYSTEMS
_ORDER = re.compile(r"^# (?:PROVIDE|REQUIRE|BEFORE)S?:.*$", re.MULTILINE)


def order_only(script: str) -> bytes:
    """A script of rc(8) that keeps its place in the order of all scripts and never runs (rcorder(8), ``-s nostart``)."""
    return "\n".join(["#!/bin/sh", "#", *_ORDER.findall(script), "# KEYWORD: nostart", ""]).encode()


def kernel_variables(text: str) -> dict[str, str]:
    """The kernel variables of a loader.conf, without variables of the loader."""
    # kern.panic_reboot_wait_time="3"
    found = re.findall(r'^([\w.]+)="([^"]*)"$', text, re.MULTILINE)
    return {name: value for name, value in found if name.startswith(loader_conf_slot.KERNEL_PREFIXES)}


def fstab(layout: Layout) -> str:
    """/etc/fstab for ``layout``, without ZFS datasets, which mount themselves."""
    lines = ["# Device\tMountpoint\tFStype\tOptions\tDump\tPass#"]
    for disk, number, fs in layout.parts:
        device = f"/dev/{disk.node(number)}"
        if fs.type in ("boot", "zfs"):
            continue
        if fs.type == "swap":
            lines.append(f"{device}\tnone\tswap\tsw\t0\t0")
        elif fs.type == "ext2":
            # Only pygrub reads it. A small kernel lacks the ext2 module.
            lines.append(f"{device}\t{fs.mount}\text2fs\tro,noauto\t0\t0")
        elif fs.type == "efi":
            lines.append(f"{device}\t{fs.mount}\tmsdosfs\trw\t2\t2")
        else:
            lines.append(f"{device}\t{fs.mount}\tufs\trw\t1\t{1 if fs.mount == '/' else 2}")
    return "\n".join(lines) + "\n"


def menu_variables(layout: Layout) -> dict[str, str]:
    """The kernel variables in menu.lst."""
    return {"vfs.root.mountfrom": layout.mountfrom}


def menu_lst(layout: Layout) -> str:
    """menu.lst for pygrub: the kernel's path on the first disk's file system, and the root device."""
    directory = "/boot/kernel" if layout.vdevs[0].fs[0].mount == "/" else "/kernel"
    words = ",".join(f"{name}={value}" for name, value in menu_variables(layout).items())
    return f"default=0\ntimeout=0\ntitle FreeBSD\nroot (hd0)\nkernel {directory}/kernel {words}\n"


# xc0	"/usr/libexec/getty Pc"	xterm	onifconsole	secure
def with_getty(ttys: str, name: str, kind: str) -> str:
    """ttys(5) with a login on ``name``: worlds before 13 have no line for xc0, and old ones have ttyu0 off."""
    line = re.compile(rf"^{name}[ \t].*$", re.MULTILINE)
    match = line.search(ttys)
    if match is None:
        return ttys.rstrip("\n") + "\n" + _GETTY.format(name=name, kind=kind)
    if re.search(r"\b(on|onifconsole)\b", match[0].rpartition('"')[2]):
        return ttys
    return ttys[: match.start()] + _GETTY.format(name=name, kind=kind).rstrip("\n") + ttys[match.end() :]
