# SPDX-License-Identifier: BSD-2-Clause
"""The files that the builder puts into a world: fstab, rc.conf, the loader's and pygrub's configuration, gettys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.images import loader_conf_slot, metalog
from harness.images.inputs import combine
from harness.images.layout import Layout
from harness.images.metalog import Tree

# In ttys(5): name, getty, type, status.
_GETTY = '{name}\t"/usr/libexec/getty {kind}"\tvt100\ton\tsecure\n'


@dataclass(frozen=True)
class Edits:
    """Files by path (``./etc/fstab``) with their content."""

    files: tuple[tuple[str, bytes], ...]

    @property
    def hash(self) -> str:
        return combine([(path, data.hex()) for path, data in self.files])

    def apply(self, tree: Tree, scratch: Path) -> None:
        """Put the files into ``tree``; ``scratch`` holds them until the file systems are made."""
        for number, (path, data) in enumerate(self.files):
            where = scratch / str(number)
            where.write_bytes(data)
            metalog.add_file(tree, path, where)


def make(layout: Layout, ttys: str, zfs_load: bool = False) -> Edits:
    """What an image of ``layout`` needs. ``ttys`` is the world's own; ``zfs_load``: the loader must load zfs.ko."""
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
    if layout.firmwares and not layout.zfs:
        files[loader_conf_slot.PATH] = loader_conf_slot.text({})
    return Edits(tuple(sorted(files.items())))


def loader_conf(text: str, layout: Layout, zfs_load: bool) -> str:
    """/boot/loader.conf: ``text``, as ``layout`` needs it.

    On ZFS the kernel variables are not in it, but in the pool's boot environment (harness.images.bootenv): loader.conf is read
    later and would override what a run writes there.
    """
    if not layout.zfs:
        return text
    kept = [line for line in text.splitlines() if not line.startswith(loader_conf_slot.KERNEL_PREFIXES)]
    # As release/tools/vmimage.subr does: a pool's vdev shall not go by its disk's serial number.
    return "\n".join([*kept, 'kern.geom.label.disk_ident.enable="0"', *(['zfs_load="YES"'] if zfs_load else [])]) + "\n"


def kernel_variables(text: str) -> dict[str, str]:
    """The kernel variables of a loader.conf, without the loader's own."""
    # kern.panic_reboot_wait_time="3"
    found = re.findall(r'^([\w.]+)="([^"]*)"$', text, re.MULTILINE)
    return {name: value for name, value in found if name.startswith(loader_conf_slot.KERNEL_PREFIXES)}


def fstab(layout: Layout) -> str:
    """/etc/fstab for ``layout``. ZFS mounts its datasets by itself."""
    lines = ["# Device\tMountpoint\tFStype\tOptions\tDump\tPass#"]
    for disk, number, fs in layout.parts:
        device = f"/dev/{disk.node(number)}"
        if fs.type in ("boot", "zfs"):
            continue
        if fs.type == "swap":
            lines.append(f"{device}\tnone\tswap\tsw\t0\t0")
        elif fs.type == "ext2":
            # Its driver is a module that a small kernel lacks, and only pygrub needs to read it.
            lines.append(f"{device}\t{fs.mount}\text2fs\tro,noauto\t0\t0")
        elif fs.type == "efi":
            lines.append(f"{device}\t{fs.mount}\tmsdosfs\trw\t2\t2")
        else:
            lines.append(f"{device}\t{fs.mount}\tufs\trw\t1\t{1 if fs.mount == '/' else 2}")
    return "\n".join(lines) + "\n"


def menu_variables(layout: Layout) -> dict[str, str]:
    """The kernel variables that menu.lst itself gives."""
    return {"vfs.root.mountfrom": layout.mountfrom}


def menu_lst(layout: Layout) -> str:
    """For pygrub: the kernel by its path on the first disk's file system, and the root device."""
    directory = "/boot/kernel" if layout.vdevs[0].fs[0].mount == "/" else "/kernel"
    words = ",".join(f"{name}={value}" for name, value in menu_variables(layout).items())
    return f"default=0\ntimeout=0\ntitle FreeBSD\nroot (hd0)\nkernel {directory}/kernel {words}\n"


# xc0	"/usr/libexec/getty Pc"	xterm	onifconsole	secure
def with_getty(ttys: str, name: str, kind: str) -> str:
    """ttys with a login on ``name``: worlds before 13 have no line for xc0, and old ones have ttyu0 off."""
    line = re.compile(rf"^{name}[ \t].*$", re.MULTILINE)
    match = line.search(ttys)
    if match is None:
        return ttys.rstrip("\n") + "\n" + _GETTY.format(name=name, kind=kind)
    if re.search(r"\b(on|onifconsole)\b", match[0].rpartition('"')[2]):
        return ttys
    return ttys[: match.start()] + _GETTY.format(name=name, kind=kind).rstrip("\n") + ttys[match.end() :]
