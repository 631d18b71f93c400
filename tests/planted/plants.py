# SPDX-License-Identifier: BSD-2-Clause
"""Regressions planted on purpose: a pytest plugin (``-p plants --plant NAME``) that makes one thing go wrong underneath.

Each changes what the suites run on (a domain configuration, dom0's state, an image, what the guest is told), never a suite.
``TABLE`` says which cases have to turn red, and with which words; ``python tests/planted/score.py`` runs them all.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.guests import replace_kernel, suspend
from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.plugin import guest_factory
from harness.xen import pygrub
from harness.xen.config import DomainConfig
from harness.xen.xl import Xl


@dataclass(frozen=True)
class Plant:
    """``case`` is ``suite/function``; ``words`` a regex for the failure's text; ``type`` the guest type to run it as.

    Where ``fatal``, no guest comes up at all, and every suite is red.
    """

    case: str
    words: str
    make: Callable[[], None]
    type: str = "pv"
    guest: str = "control"
    fatal: bool = False

    @property
    def suite(self) -> str:
        return self.case.partition("/")[0]


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by ``around(original, *arguments)``."""
    original = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, changed)


def configured(change: Callable[[DomainConfig], DomainConfig]) -> Callable[[], None]:
    """Every domain is created with another configuration than the case asked for."""

    def make() -> None:
        wrap(Xl, "create", lambda original, self, config, *rest, **more: original(self, change(config), *rest, **more))

    return make


def told(**variables: str) -> Callable[[], None]:
    """Every guest is told something more."""
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    return configured(lambda config: replace(config, extra=f"{config.extra} {words}"))


def variables(**changes: str) -> Callable[[], None]:
    """FreeBSD's kernel environment is another than the case asked for; names with a dot are written with two underscores."""

    def change(config: DomainConfig) -> DomainConfig:
        found = dict(word.partition("=")[::2] for word in config.extra.split(","))
        found |= {name.replace("__", "."): value for name, value in changes.items()}
        return replace(config, extra=",".join(f"{name}={value}" for name, value in found.items()))

    return configured(change)


def without(name: str) -> Callable[[DomainConfig], DomainConfig]:
    """A kernel variable does not arrive."""
    return lambda config: replace(config, extra=",".join(w for w in config.extra.split(",") if not w.startswith(f"{name}=")))


def moved_root(config: DomainConfig) -> DomainConfig:
    first = replace(config.disks[0], vdev="xvde")
    return replace(config, disks=(first, *config.disks[1:]))


def renamed_disk(config: DomainConfig) -> DomainConfig:
    return replace(config, disks=tuple(replace(d, vdev="xvdj") if d.vdev == "xvdb" else d for d in config.disks))


def swapped_disks(config: DomainConfig) -> DomainConfig:
    targets = {d.vdev: d.target for d in config.disks}
    other = {"xvdp": "xvdq", "xvdq": "xvdp"}
    return replace(config, disks=tuple(replace(d, target=targets[other.get(d.vdev, d.vdev)]) for d in config.disks))


def missing_disk(config: DomainConfig) -> DomainConfig:
    return replace(config, disks=tuple(d for d in config.disks if d.vdev != "xvdz"))


def corrupted_disk() -> None:
    def around(original: Any, self: Xl, config: DomainConfig, *rest: Any, **more: Any) -> Any:
        for disk in config.disks:
            if disk.vdev == "xvdb":
                self._transport.run(["dd", "if=/dev/urandom", f"of={disk.target}", "bs=512", "count=1", "seek=9"])
        return original(self, config, *rest, **more)

    wrap(Xl, "create", around)


def changed_image(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Every image is changed before pygrub sees it."""

    def make() -> None:
        def around(original: Any, transport: Any, directory: str, disk: str | bytes, *rest: Any, **more: Any) -> Any:
            return original(transport, directory, disk if isinstance(disk, str) else change(disk), *rest, **more)

        wrap(pygrub, "run", around)

    return make


def patched(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda image: image[:offset] + data + image[offset + len(data) :]


def typed(pattern: str, instead: str) -> Callable[[], None]:
    """A command in the guest that matches is another one (``\\g<0>`` for itself); ``sh`` goes through ``run``, too."""

    def make() -> None:
        wrap(
            Guest,
            "run",
            lambda original, self, command, *rest, **more: original(self, re.sub(pattern, instead, command), *rest, **more),
        )

    return make


def stale_kernel() -> None:
    """A process in dom0 holds the boot disk open, and its page cache with it: the guest's writes go past that."""

    def around(original: Any, guest: Guest) -> Any:
        script = 'exec 9< "$1"; cat <&9 > /dev/null; sleep 900 > /dev/null 2>&1 < /dev/null &'
        guest.host.transport.run(["sh", "-c", script, "sh", guest.config.disks[0].target], Deadline(120))
        return original(guest)

    wrap(replace_kernel, "volume", around)


def vif_command(*argv: str) -> Callable[[], None]:
    """A command in dom0 on the vif once it is up."""

    def make() -> None:
        def around(original: Any, self: Link, *rest: Any) -> Any:
            found = original(self, *rest)
            self.dom0(*(self.vif if word == "VIF" else word for word in argv))
            return found

        wrap(Link, "wait_up", around)

    return make


def corrupted_frames(share: str) -> Callable[[], None]:
    """Of what dom0 sends over the vif so much has a wrong bit."""
    return vif_command("tc", "qdisc", "replace", "dev", "VIF", "root", "netem", "corrupt", share)


def mem_set(change: Callable[[int], int]) -> Callable[[], None]:
    def make() -> None:
        wrap(Xl, "mem_set", lambda original, self, domain, mib: original(self, domain, change(mib)))

    return make


def forgotten_offloads() -> None:
    """An interface that is switched on again when its guest is restored."""

    def around(original: Any, guest: Guest) -> Any:
        journey = original(guest)
        guest.sh("ethtool -K eth0 tso on")
        return journey

    wrap(suspend, "through_a_file", around)


def ignored_target() -> None:
    wrap(Xl, "mem_set", lambda original, self, domain, mib: None)


def writable() -> None:
    wrap(Xl, "block_attach", lambda original, self, domain, disk: original(self, domain, replace(disk, readonly=False)))


def swallowed_bytes() -> None:
    """Every hundredth block of a console is lost."""
    from harness.console.reader import ConsoleReader

    counter = itertools.count(1)

    def around(original: Any, self: ConsoleReader, chunk: bytes) -> Any:
        return original(self, chunk[:-40] if len(chunk) > 2000 and next(counter) % 10 == 0 else chunk)

    wrap(ConsoleReader, "_take", around)


def swallowed_end() -> None:
    """The last that a console prints is lost, and then it is silent."""
    from harness.console.reader import ConsoleReader

    def around(original: Any, self: ConsoleReader, chunk: bytes) -> Any:
        return original(self, chunk.replace(b"flood-over", b""))

    wrap(ConsoleReader, "_take", around)


def deaf_to_detach() -> None:
    """A guest takes no notice of its toolstack's wish to have a disk back."""

    def around(original: Any, self: Xl, domain: str | int, vdev: str, **more: Any) -> None:
        self.pause(domain)
        try:
            original(self, domain, vdev, **more)
        finally:
            self.unpause(domain)

    wrap(Xl, "block_detach", around)


def deaf_to_control() -> None:
    """A guest takes no notice of control/shutdown."""
    from harness.guests.guest import Guest

    wrap(Guest, "control", lambda original, self, value: None)


def freebsd(case: str, words: str, make: Callable[[], None], *, fatal: bool = False) -> Plant:
    return Plant(case, words, make, "pvh", "freebsd", fatal)


NAMES = "root_mount/test_every_vdev_in_one_boot"
TABLE = {
    "wrong-vdev": Plant(NAMES, "vdev xvdb .* should be xvdb: it is xvdj", configured(renamed_disk)),
    "swapped-disks": Plant(NAMES, "should be xvdp: it is xvdq, and xvdp holds vdev xvdq", configured(swapped_disks)),
    "missing-disk": Plant(NAMES, "should be xvdz: its content is on no disk", configured(missing_disk)),
    "corrupted-disk": Plant(NAMES, "should be xvdb: its content is on no disk .* xvdb holds something else", corrupted_disk),
    "write-through": Plant("root_mount/test_read_only", "a write to xvdc", writable),
    "corrupted-menu": Plant("pygrub/test_follows_block_trees", "observed: .*(status 1|Error|Unable)", changed_image(lambda image: image.replace(b"kernel /boot/kernel/kernel", b"kernel /boot/kernel/kernwl"))),
    "ufs-block-size": Plant("pygrub/test_sparse_kernel", "Unable to find partition", changed_image(patched(8192 + 48, b"\0\0\x10\0"))),
    "ufs-magic": Plant("pygrub/test_sparse_kernel", "Unable to find partition", changed_image(patched(8192 + 1372, b"\x19\x01\x54\x19"))),
    "kernel-truncated": Plant(
        "reboot/test_replaced_kernel_runs[rename]", "3: .* neither kernel is whole|4: ",
        typed(r"(cp \S+initrd\.new \S+) &&", r"\g<1> && F=/mnt/boot/initrd.next; head -c 900000 $F > $F.x; mv $F.x $F;"),
    ),
    "stale-kernel": Plant("reboot/test_replaced_kernel_runs[in-place]", "2: the bootloader read stale blocks", stale_kernel),
    "old-kernel": Plant("reboot/test_replaced_kernel_runs[in-place]", "the old kernel", typed(r"cp \S+initrd\.new \S+$", "true")),
    "no-restart": Plant("reboot/test_plain_reboot", "did not come back", configured(lambda c: replace(c, on_reboot="destroy", on_crash="destroy"))),
    "corrupted-packets": Plant(
        "netfront/test_content_both_ways", "after \\d+ bytes|does not reach|were sent",
        corrupted_frames("100%"),
    ),
    "corrupted-datagrams": Plant(
        # By IPv6 the link may not come up at all with it.
        "netfront/test_datagrams[ipv4]", "after \\d+ bytes",
        corrupted_frames("100%"),
    ),
    "segmentation-off": Plant("netfront/test_segmentation_is_used", "TSO is on", typed(r"^ip -4 addr flush.*", r"\g<0>; ethtool -K eth0 tso off")),
    "joining-off": Plant("netfront/test_segments_are_joined", "segments are not joined", typed(r"^ip -4 addr flush.*", r"\g<0>; ethtool -K eth0 gro off")),
    "no-network": Plant("netfront/test_echo_sizes", "does not reach dom0", typed(r"ip link set eth0 up", "ip link set eth0 down")),
    "no-ipv6": Plant("netfront/test_datagrams[ipv6]", "does not reach dom0 over \\S+ by ipv6", typed(r"0 > \S+accept_dad", "1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")),
    "corrupting-bridge": Plant(
        "netfront/test_between_guests", "threw \\d+ segments away|did not get|were sent|does not reach",
        corrupted_frames("5%"),
    ),
    "offloads-forgotten": Plant("netfront/test_saved_in_the_middle", "its offloads are .*'tso': True.* they were", forgotten_offloads),
    "target-ignored": Plant("balloon/test_shrinks_and_grows_back", "the balloon stands at .* was due", ignored_target),
    "target-overshot": Plant("balloon/test_shrinks_and_grows_back", "the balloon stands at .* was due", mem_set(lambda mib: mib - 16)),
    "pages-not-zeroed": Plant(
        "balloon/test_pages_are_given_back_empty", "the secret is in \\d+ of the",
        told(init_on_alloc="0", xen_scrub_pages="0"), "pvh",
    ),
    "memory-lost": Plant("boot/test_all_memory[301]", "the kernel manages \\d+ MiB", told(mem="200M")),
    "panic-in-init": Plant("boot/test_boots_to_login", "linux-panic", told(**{"fxh.panic": "init"}), fatal=True),
    "hang-in-init": Plant("boot/test_boots_to_login", "hang: no progress after stage init", told(**{"fxh.hang": "init"}), fatal=True),
    "panic-at-login": Plant("boot/test_boots_to_login", "linux-panic", told(**{"fxh.panic": "login"}), fatal=True),
    "no-kernel": Plant(
        "boot/test_boots_to_login", "refused: .*Invalid kernel", configured(lambda c: replace(c, kernel="/bin/sh", ramdisk="")), fatal=True
    ),
    "silent-console": Plant("boot/test_boots_to_login", "hang: ", told(rdinit="/bin/cat"), fatal=True),
    "console-loses-bytes": Plant("boot/test_flood_loses_nothing", "lines of \\d+ are missing", swallowed_bytes),
    "deaf-to-detach": Plant("root_mount/test_hot_plug", "Unable to remove vbd", deaf_to_detach),
    "deaf-to-control": Plant("boot/test_comes_back_after_a_reboot", "hang: .* domain \\d+ is still there", deaf_to_control),
    "console-loses-its-end": Plant("boot/test_flood_loses_nothing", "behind them did not", swallowed_end),
    "freebsd-wrong-root": freebsd(
        "boot/test_boots_to_login", "mountroot: no root file system: ufs:/dev/xbd9 failed with error 19",
        variables(vfs__root__mountfrom="ufs:/dev/xbd9"), fatal=True,
    ),
    "freebsd-moved-root": freebsd(
        "boot/test_boots_to_login", "mountroot: no root file system: ufs:/dev/xbd0 failed with error 19", configured(moved_root),
        fatal=True,
    ),
    "freebsd-no-init": freebsd("boot/test_boots_to_login", "panic: no init", variables(init_path="/nowhere"), fatal=True),
    "freebsd-single-user": freebsd("boot/test_boots_to_login", "came up in single user mode", variables(boot_single="1"), fatal=True),
    "freebsd-little-memory": freebsd(
        "boot/test_boots_to_login", "panic|hang|trap|eof", variables(hw__physmem="20M"), fatal=True
    ),
    "freebsd-muted": freebsd("boot/test_boots_to_login", "stages reached: .*a good boot shows", variables(boot_mute="1"), fatal=True),
    "freebsd-lost-variable": freebsd("boot/test_kernel_environment_arrives", "fxh.plain", configured(without("fxh.plain"))),
    "freebsd-stays-in-debugger": freebsd(
        "boot/test_panic_is_seen_and_classified", "Xen was told|to be shut down", variables(debug__debugger_on_panic="1"),
    ),
    "freebsd-swapped-disks": freebsd(NAMES, "should be xbd15: it is xbd16", configured(swapped_disks)),
    "freebsd-checksums-left": freebsd(
        "netfront/test_checksums_by_the_guest", "have a wrong TCP checksum", typed(r"^ifconfig \S+ -txcsum.*", "true"),
    ),
    "freebsd-short-datagrams": freebsd(
        "netfront/test_datagrams", "to dom0: .* after \\d+ bytes", typed("udp.maxdgram=65535", "udp.maxdgram=4000"),
    ),
    "freebsd-old-kernel": freebsd(
        "reboot/test_replaced_kernel_runs[in-place]", "the old kernel", typed(r"cp \S+kernel\.new \S+$", "true"),
    ),
    "freebsd-old-menu": freebsd("reboot/test_replaced_menu", "the kernel's arguments", typed(r"^sed .*menu\.lst.*", "true")),
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plant", default="", choices=["", *TABLE], help="a regression to plant")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("plant")
    if name:
        TABLE[name].make()
        # What it was planted in is never taken for a good guest's warm checkpoint, nor the other way round.
        guest_factory._code_digest = functools.partial(_with, guest_factory._code_digest, name)


def _with(original: Callable[[Any], str], name: str, prepare: Any) -> str:
    return f"{original(prepare)} {name}"
